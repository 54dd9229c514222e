"""Whether `native` does on this machine what `emulate` says it does."""

from narrowcast.verify.checks import SHAPES, SMALL, Finding, verify
from narrowcast.verify.inputs import INPUTS
from narrowcast.verify.sums import bound, product

__all__ = ["INPUTS", "SHAPES", "SMALL", "Finding", "bound", "product", "verify"]
