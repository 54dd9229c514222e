"""Floor 4: what turns gradients into updates."""

from narrowcast.optim.conjugate_gradient import ConjugateGradient
from narrowcast.optim.line_search import SLOPES, VALUES
from narrowcast.optim.loss_scale import LossScaler
from narrowcast.optim.schedule import SCHEDULES, learning_rate
from narrowcast.optim.truncate import truncate_, truncate_after_step

__all__ = [
    "SCHEDULES",
    "SLOPES",
    "VALUES",
    "ConjugateGradient",
    "LossScaler",
    "learning_rate",
    "truncate_",
    "truncate_after_step",
]
