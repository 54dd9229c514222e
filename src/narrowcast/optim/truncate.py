"""Parameters kept in a narrow format between steps: computed in float32, rounded in place after each update.

The whole network is cut to the format after every batch (Li et al., "Exploration of numerical precision in deep neural
networks", 2018): forward, backward and update stay float32, only what is stored is narrow. With the paper's truncation
an update towards zero costs a whole step of the format and one away from zero of less than a step is lost, so weights
drift towards zero, as under weight decay.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from narrowcast.errors import InputError
from narrowcast.formats import Format, Rounding, Stream
from narrowcast.formats import format as format_of
from narrowcast.formats import rounding as rounding_of

Target = nn.Module | Optimizer | Iterable[Tensor]


@torch.no_grad()
def truncate_(
    target: Target,
    format: str | Format,
    rounding: str | Rounding = "toward-zero",
    seed: int = 0,
    step: int = 0,
) -> int:
    """Round the parameters of ``target`` in place; return how many elements changed.

    Args:
        target: a module, an optimizer, or parameters; parameters keep their dtype, and those
            that are not floating-point their value.
        format: e.g. ``e8m7``: 8 exponent and 7 mantissa bits. What it cannot reach follows its own overflow policy.
        rounding: mode; ``toward-zero`` clears the low mantissa bits.
        seed, step: decide the random bits of stochastic modes; count ``step`` up from call to call.

    Raises InputError where there is nothing to round.
    """
    fmt, mode = format_of(format), rounding_of(rounding)
    parameters = [p for p in _parameters(target) if p.is_floating_point()]
    if not parameters:
        raise InputError("nothing to truncate: the target has no floating-point parameters")
    changed = 0
    for number, parameter in enumerate(parameters):
        draws = Stream(seed, number, step).bits(parameter.shape, device=parameter.device) if mode.random else None
        narrow = fmt.round(parameter, mode, draws).to(parameter.dtype)
        changed += int((narrow != parameter).sum())
        parameter.copy_(narrow)
    return changed


@dataclass
class _AfterStep:
    """The hook of `truncate_after_step`; counts its calls for the random bits."""

    format: Format
    rounding: Rounding
    seed: int
    step: int

    def __call__(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        truncate_(optimizer, self.format, self.rounding, self.seed, self.step)
        self.step += 1


def truncate_after_step(
    optimizer: Optimizer,
    format: str | Format,
    rounding: str | Rounding = "toward-zero",
    seed: int = 0,
    step: int = 0,
) -> RemovableHandle:
    """Round an optimizer's parameters after each of its steps, and once now; arguments as for `truncate_`.

    ``step`` is the number of the first step to come, where a run resumes. Returns a handle whose ``remove()`` ends it.

    >>> model = torch.nn.Linear(8, 8)
    >>> handle = truncate_after_step(torch.optim.SGD(model.parameters(), lr=0.1), "e8m7")
    """
    hook = _AfterStep(format_of(format), rounding_of(rounding), seed, step)
    hook(optimizer, (), {})
    return optimizer.register_step_post_hook(hook)


def _parameters(target: Target) -> list[Tensor]:
    if isinstance(target, nn.Module):
        return list(target.parameters())
    if isinstance(target, Optimizer):
        return [p for group in target.param_groups for p in group["params"]]
    return list(target)
