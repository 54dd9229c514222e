"""Floor 2', beside ops: kernels in Triton, one in CUDA C++. Reached through `backend` alone, imported when needed.

Every kernel gives the codes and scales of its plain twin bit for bit. What that takes: no fused multiply-add where the
twin has two roundings, IEEE division, subnormals kept, maxima taken so that NaN wins, Hadamard butterflies in the
twin's order, and random bits from the same counters.

``TRITON_INTERPRET=1`` in the environment (before Triton is imported) runs the same kernels on a CPU, slowly: for tests.
"""
