"""FP-Quant's layout, from tensors written by its definition: what is decoded, how inputs are narrowed, what is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import hadamard
from tests.ptq.architectures import TABLE
from tests.ptq.folders import configured, logits, saved

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.io.foreign.table import reader_of
from narrowcast.quantize import cast

GRID = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
G = torch.Generator().manual_seed(0)
ACT = 96.0


def rotation(size: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.tensor(hadamard(size) * size**-0.5, dtype=dtype)


def stored(dtype: str, rows: int, columns: int, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A module's tensors, and the values of its rotated weight."""
    group = 16 if dtype == "nvfp4" else 32
    codes = torch.randint(0, 16, (rows, columns), generator=G)
    scales = torch.randint(100 if dtype == "mxfp4" else 8, 120, (rows, columns // group), generator=G).to(torch.uint8)
    own = 448.0 if dtype == "nvfp4" else 3.0
    powers = scales.view(torch.float8_e4m3fn).float() if dtype == "nvfp4" else torch.exp2(scales.float() - 127)
    parts = {
        "qweight": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), "scales": scales,
        "weight_global_scale": torch.tensor([own]), "act_global_scale": torch.tensor([ACT if dtype == "nvfp4" else own]),
        "forward_hadamard_matrix": rotation(size), "backward_hadamard_matrix": rotation(size),
    }  # fmt: skip
    return parts, GRID[codes] * (powers.double() / own).repeat_interleave(group, 1)


def settings(dtype: str, **more) -> dict:
    return {"quant_method": "fp_quant", "forward_dtype": dtype, "forward_method": "abs_max"} | more


def read(config, parts):
    names = {f"m.{suffix}": suffix for suffix in parts}
    reader = reader_of(config, frozenset(names), "test")
    assert set(reader.parts(names)["m"].values()) == set(names)
    return reader.read("m", parts)


@pytest.mark.parametrize(("dtype", "size"), [("nvfp4", 16), ("nvfp4", 128), ("mxfp4", 32), ("mxfp4", 64)])
def test_values_and_inputs(dtype, size):
    parts, expected = stored(dtype, 8, 256, size)
    found = read(settings(dtype, hadamard_group_size=size), parts)
    assert torch.allclose(found.values().double(), expected, rtol=2e-7, atol=0)  # 4/3 and the quotient are rounded
    assert str(found.transform) == f"hadamard{size}"
    x = torch.randn(5, 256, generator=G)
    turned = (x.double().view(5, -1, size) @ rotation(size, torch.float64)).view(5, 256)
    assert torch.allclose(found.transform.forward(x).double(), turned, atol=1e-6)
    blocks = turned.float().view(5, -1, 16 if dtype == "nvfp4" else 32)
    amax = blocks.abs().amax(-1, keepdim=True)
    if dtype == "nvfp4":
        step = (ACT * amax / 6).to(torch.float8_e4m3fn).float() / ACT
    else:
        step = torch.exp2(amax.log2().floor() - 2) * 4 / 3
    near = (blocks / step)[..., None] - GRID
    off = (found.activation.apply(turned.float()).view_as(blocks) / step)[..., None] - GRID
    assert torch.allclose(off.abs().amin(-1), torch.zeros(()), atol=1e-5)  # on the grid
    assert (
        (found.activation.apply(turned.float()).view_as(blocks) - blocks).abs() <= near.abs().amin(-1) * step + 1e-6
    ).all()


def test_plain_numbers_and_no_rotation():
    weight = torch.randn(8, 32, generator=G).bfloat16()
    parts, _ = stored("nvfp4", 8, 32, 16)
    dense = {k: v for k, v in parts.items() if "hadamard" in k or "global" in k} | {"dqweight": weight}
    found = read(settings("nvfp4", pseudoquantization=True), dense)
    assert torch.equal(found.values(), weight.float()) and str(found.transform) == "hadamard16"
    eye = read(settings("nvfp4"), parts | {"forward_hadamard_matrix": torch.eye(16)})
    assert eye.transform is None and eye.activation == cast(f"e2m1fn/1x16/e4m3fn+divide-fp32-fixed{1 / ACT!r}")


def test_a_model_runs_as_the_definition_says(tmp_path):
    """Logits of a loaded folder against the same model with its linear layers written out."""
    folder = saved(TABLE[0], tmp_path / "model")
    tensors, reference = load_file(folder / "model.safetensors"), nc.load(folder)
    narrow = cast("e2m1fn/1x32/e8m0-four-thirds")

    def rotated(module, args):
        return narrow.apply((args[0].unflatten(-1, (-1, 32)) @ rotation(32, torch.float32)).flatten(-2))

    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            parts, values = stored("mxfp4", *module.weight.shape, 32)
            parts["scales"] = parts["scales"] - 9  # weights of a usual size
            tensors.pop(f"{name}.weight")
            tensors |= {f"{name}.{suffix}": part for suffix, part in parts.items()}
            module.weight.data = values.float() * 2.0**-9
            module.register_forward_pre_hook(rotated)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    configured(folder, quantization_config=settings("mxfp4", hadamard_group_size=32))
    assert nc.describe(folder).startswith("FP-Quant mxfp4: e2m1fn in groups of 32 under e8m0, times 4/3, inputs alike")
    model = nc.load(folder)
    found, expected = logits(model, TABLE[0].inputs(0)), logits(reference, TABLE[0].inputs(0))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()  # a rotated input on a tie may go either way
    nc.save_pretrained(model, tmp_path / "ours", layout="narrowcast")
    assert torch.equal(logits(nc.load(tmp_path / "ours"), TABLE[0].inputs(0)), found)


@pytest.mark.parametrize(
    ("config", "parts", "said"),
    [
        (settings("mxfp8"), {}, "expected nvfp4 or mxfp4 by abs_max"),
        (settings("mxfp4", forward_method="quest"), {}, "by quest"),
        (settings("nvfp4", store_master_weights=True), {}, "master weights stored"),
        (settings("mxfp4"), {"weight_global_scale": torch.ones(1)}, "weight_global_scale: expected 3, found 1.0"),
        (settings("mxfp4"), {"scales": torch.zeros(8, 1, dtype=torch.uint8)}, "below"),
        (settings("mxfp4"), {"scales": torch.zeros(8, 2, dtype=torch.uint8)}, r"shape \(8, 2\), expected \(8, 1\)"),
        (settings("mxfp4"), {"scales": torch.zeros(8, 1)}, "expected uint8"),
        (settings("mxfp4"), {"forward_hadamard_matrix": rotation(32).flip(0)}, "no Hadamard matrix of Sylvester's"),
    ],
)
def test_what_cannot_be_read(config, parts, said):
    tensors = stored("mxfp4", 8, 32, 32)[0] | parts
    with pytest.raises(InputError, match=said):
        read(config, tensors)
