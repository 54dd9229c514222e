"""Floor 4: what turns gradients into updates."""

from narrowcast.optim.catalogue import Method, method, optimizers
from narrowcast.optim.conjugate_gradient import ConjugateGradient
from narrowcast.optim.line_search import SLOPES, VALUES
from narrowcast.optim.loss_scale import LossScaler
from narrowcast.optim.narrow import NarrowOptimizer, optimizer, state_bytes
from narrowcast.optim.rules import ADAMW, Rule
from narrowcast.optim.schedule import SCHEDULES, learning_rate
from narrowcast.optim.truncate import truncate_, truncate_after_step

__all__ = [
    "ADAMW",
    "SCHEDULES",
    "SLOPES",
    "VALUES",
    "ConjugateGradient",
    "LossScaler",
    "Method",
    "NarrowOptimizer",
    "Rule",
    "learning_rate",
    "method",
    "optimizer",
    "optimizers",
    "state_bytes",
    "truncate_",
    "truncate_after_step",
]
