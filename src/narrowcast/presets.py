"""Names for casts that papers and standards use. Each stands for a spelling; any other cast is spelled out.

Integer elements are written as fixed point below 2 (``q1.6``) or 1 (``q0.7``) where the source does so: the values are
those of the integer, only the stored power of two differs. A group of integers under a float16 scale, ``int4-g128``, is
what GPTQ and AWQ checkpoints hold; here symmetric, from -7 to 7.
"""

PRESETS = {
    # OCP MX v1.0: blocks of 32 under a power of two, floor rule
    "mxfp8_e4m3": "e4m3fn/1x32/e8m0",
    "mxfp8_e5m2": "e5m2/1x32/e8m0",
    "mxfp8": "e4m3fn/1x32/e8m0",
    "mxfp6_e3m2": "e3m2fn/1x32/e8m0",
    "mxfp6_e2m3": "e2m3fn/1x32/e8m0",
    "mxfp6": "e2m3fn/1x32/e8m0",
    "mxfp4": "e2m1fn/1x32/e8m0",
    "mxint8": "q1.6/1x32/e8m0",
    # not in the standard: "INT v.s. FP" (arXiv 2510.25602), whose scale is the power of two above amax / max
    "mxint6": "q1.4/1x32/e8m0-ceil",
    "mxint4": "q1.2/1x32/e8m0-ceil",
    # NVIDIA's two levels, and integers in the same place (the same paper)
    "nvfp4": "e2m1fn/1x16/e4m3fn+fp32",
    "nvint4": "int4/1x16/e4m3fn+fp32",
    # block floating point as pychop names it: N bits with the sign, and a shared 8-bit exponent that lets nothing clip
    "bfp16": "q0.15/1x16/e8m0-ceil",
    "bfp12": "q0.11/1x16/e8m0-ceil",
    "bfp8": "q0.7/1x32/e8m0-ceil",
    "bfp6": "q0.5/1x32/e8m0-ceil",
    "bfp4": "q0.3/1x32/e8m0-ceil",
    "bfp3": "q0.2/1x64/e8m0-ceil",
    "bfp2": "q0.1/1x128/e8m0-ceil",
    # dynamic fixed point: one exponent per tensor, that of its largest value (Das et al. 2018, INT16 training)
    "dfp16": "int16/tensor/e8m0",
    "dfp8": "int8/tensor/e8m0",
    # integers in groups along the contraction axis under a float16 scale
    "int4-g32": "int4/1x32/float16",
    "int4-g64": "int4/1x64/float16",
    "int4-g128": "int4/1x128/float16",
    "int8-g128": "int8/1x128/float16",
    # as in Huawei's paper: no scale, ties away from zero
    "hifloat8": "hif8/tensor/one/nearest-away",
    # bitsandbytes' 4-bit types in its blocks, but along rows
    "bnb-nf4": "nf4/1x64/fp32",
    "bnb-fp4": "fp4_bnb/1x64/fp32",
}
