"""The parts of `verify` that run kernels of their own, interpreted: fused passes, kept codes, optimizer steps.

Not collected by name: `test_kernels.py` runs this file in a process of its own. Few inputs: the interpreter is slow.
"""

import pytest
import torch

from narrowcast import verify
from narrowcast.recipes import recipe
from narrowcast.verify import fused, states

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("name", "kind", "dtype", "passes"),
    [
        ("fp8-coat", "infinity", torch.bfloat16, 9 + 1),
        ("fp8-static", "NaN", torch.float32, 9),
        ("mxfp8", "subnormal", torch.bfloat16, 9),
    ],
)
def test_passes_and_kept_codes(name, kind, dtype, passes):
    g = torch.Generator(DEVICE).manual_seed(0)
    x, y, z = (verify.INPUTS[kind](torch.randn(8, 64, generator=g, device=DEVICE)).to(dtype) for _ in range(3))
    found = verify.Finding(name, {})
    fused.check_fused(found, recipe(name), fused.Sources(x, y, z, 0), kind)
    assert found.ok, found.first
    assert found.fused == passes
    assert found.codes == (4 if name == "fp8-coat" else 0)


def test_a_step_of_an_optimizer():
    found = states.OptimizerFinding("fp8-adam-expanded")
    states._verify(found, "many binades", torch.bfloat16, torch.device(DEVICE), 0, 1)
    assert found.ok, found.first
    assert found.parts == 4 * (1 + 9)  # step, three parts of m and of v, two of the weight
