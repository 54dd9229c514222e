"""Floor 4: what turns gradients into updates."""

from narrowcast.optim.loss_scale import LossScaler
from narrowcast.optim.schedule import SCHEDULES, learning_rate

__all__ = ["SCHEDULES", "LossScaler", "learning_rate"]
