"""Whether `native` does on this machine what `emulate` says it does."""

from narrowcast.verify.checks import SHAPES, SMALL, verify
from narrowcast.verify.finding import Finding
from narrowcast.verify.inputs import INPUTS
from narrowcast.verify.states import OptimizerFinding, verify_optimizer
from narrowcast.verify.sums import bound, product
from narrowcast.verify.together import verify_all

__all__ = [
    "INPUTS", "SHAPES", "SMALL", "Finding", "OptimizerFinding", "bound", "product", "verify", "verify_all",
    "verify_optimizer",
]  # fmt: skip
