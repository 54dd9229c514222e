"""Multi-stage networks: a function of one variable to near machine precision, as a sum of small networks.

    f(x)  ~  sum over stages of  magnitude_j * network_j(x)

Each stage learns what the earlier ones left over, divided by its magnitude, so that it always fits a function of size
one. What is left oscillates ever faster, so the first layer of a later stage is ``sin(kappa * (x W) + b)`` with kappa
in proportion to the residue's frequency; other layers are tanh, the last is linear.
Source: Wang and Lai, "Multi-stage neural networks: function approximator of machine precision", 2023.

Ours, each because of a measured failure (LOG.md): Levenberg and Marquardt in place of Adam and L-BFGS; a stage ends at
a goal instead of being trained out, which would leave a rough residue; the frequency is the one below which 90 % of
the residue's energy lies, instead of the largest peak; stages are fitted on an interval somewhat wider than what
counts, narrower from stage to stage, because a fit is worst at its ends; and the best of a few draws is kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.workloads.least_squares import levenberg_marquardt

Function = Callable[[Tensor], Tensor]
_PROBE = 8192  # points of the uniform grid on which residues are measured


@dataclass(frozen=True)
class Network:
    """A fully connected network of one variable on a flat vector of parameters.

    Attributes:
        width, depth: of the hidden layers.
        kappa: what multiplies the first layer's weights (not its biases).
        sine: whether the first activation is sin instead of tanh.
    """

    width: int = 20
    depth: int = 3
    kappa: float = 1.0
    sine: bool = False

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of weights [in, out] and biases [out], in turn."""
        widths = [1, *[self.width] * self.depth, 1]
        return [shape for pair in pairwise(widths) for shape in (pair, pair[1:])]

    def draw(self, seed: int) -> Tensor:
        """Return float64 parameters: Xavier's normal distribution cut at two deviations, biases zero."""
        generator, parts = torch.Generator().manual_seed(seed), []
        for shape in self.shapes:
            part = torch.zeros(shape, dtype=torch.float64)
            if len(shape) == 2:
                spread = math.sqrt(2 / sum(shape))
                torch.nn.init.trunc_normal_(part, 0, spread, -2 * spread, 2 * spread, generator=generator)
            parts.append(part.flatten())
        return torch.cat(parts)

    def weight(self) -> Tensor:
        """Return how dear a change of each parameter is, float64: the first layer's count times kappa."""
        parts = [torch.ones(shape, dtype=torch.float64) for shape in self.shapes]
        return torch.cat([parts[0].flatten() * self.kappa**2, *[part.flatten() for part in parts[1:]]])

    def __call__(self, parameters: Tensor, x: Tensor, jacobian: bool = False) -> tuple[Tensor, Tensor]:
        """Return (values [m], their derivatives by the parameters [m, n] or an empty tensor) at ``x`` [m]."""
        pieces = parameters.split([math.prod(shape) for shape in self.shapes])
        layers = [p.view(s) for p, s in zip(pieces, self.shapes, strict=True)]
        inputs: list[Tensor] = [self.kappa * x[:, None]]
        slopes: list[Tensor] = []
        for w, b in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            z = inputs[-1] @ w + b
            sine = self.sine and not slopes
            inputs.append(torch.sin(z) if sine else torch.tanh(z))
            slopes.append(torch.cos(z) if sine else 1 - inputs[-1].square())
        values = (inputs[-1] @ layers[-2] + layers[-1])[:, 0]
        return values, self._jacobian(layers, inputs, slopes) if jacobian else values.new_empty(0)

    def _jacobian(self, layers: list[Tensor], inputs: list[Tensor], slopes: list[Tensor]) -> Tensor:
        back = torch.ones_like(inputs[0])
        columns: list[Tensor] = []
        for layer in range(self.depth, -1, -1):
            outer = (inputs[layer][:, :, None] * back[:, None, :]).flatten(1)
            columns[:0] = [outer, back]
            if layer:
                back = (back @ layers[2 * layer].T) * slopes[layer - 1]
        return torch.cat(columns, 1)


@dataclass(frozen=True)
class Stage:
    """One fitted network.

    Attributes:
        magnitude: what its output is multiplied by: half the largest residue it was fitted to.
        frequency: of that residue, in cycles per unit of x.
        network, parameters: what was fitted; the parameters' dtype is that of its arithmetic.
        rms: what it left of its target, in units of the magnitude.
        steps: of the least-squares method.
    """

    magnitude: float
    frequency: float
    network: Network
    parameters: Tensor
    rms: float
    steps: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return its contribution at ``x`` [m], in the dtype of ``x``."""
        return self.magnitude * self.network(self.parameters, x.to(self.parameters.dtype))[0].to(x.dtype)


@dataclass(frozen=True)
class Plan:
    """How stages are fitted.

    Attributes:
        width, depth: of every network.
        points: least count of points of the uniform grid; more where the residue's frequency asks for them.
        goal: root mean square, in units of the magnitude, at which a stage ends; the last one takes all its steps.
        steps: most steps of a stage.
        draws: fits from different initial weights, the best of which is kept.
        margin: by how much the first stage's interval goes beyond [-1, 1] on either side.
        reach: kappa over 2 pi times the frequency; None for kappa = 1 and tanh in every stage.
        share: of the residue's energy that lies below its frequency; 0 for the largest peak (the paper's).
        dtypes: of each stage's network and its fit; the last one stands for all later stages.
        residue: dtype of the residues and of their sum.
    """

    width: int = 20
    depth: int = 3
    points: int = 1600
    goal: float = 1e-3
    steps: int = 40
    draws: int = 4
    margin: float = 0.2
    reach: float | None = 3.0
    share: float = 0.9
    dtypes: tuple[torch.dtype, ...] = (torch.float64,)
    residue: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or self.margin < 0 or not self.dtypes:
            raise InputError(f"plan {self}: expected 0 <= share < 1, margin >= 0 and a dtype")

    def network(self, stage: int, frequency: float) -> Network:
        """Return the network of ``stage`` for a residue of this frequency."""
        if stage == 0 or self.reach is None:
            return Network(self.width, self.depth)
        return Network(self.width, self.depth, 2 * math.pi * self.reach * frequency, sine=True)


def fit(f: Function, stages: int, plan: Plan | None = None, seed: int = 0) -> list[Stage]:
    """Fit ``f`` (float64 [m] to float64 [m], defined on [-1 - margin, 1 + margin]) by ``stages`` networks."""
    plan = plan or Plan()
    found: list[Stage] = []
    if stages < 1:
        raise InputError(f"stages is {stages}; expected at least 1")
    for j in range(stages):
        ends = [1 + plan.margin * max(0, stages - 1 - k) / max(1, stages - 1) for k in (j, j + 1)]
        last = j == stages - 1
        these = replace(plan, goal=0.0) if last else plan
        draws = [_stage(f, found, these, ends[0], seed + 1000 * j + d) for d in range(plan.draws)]
        costs = [_cost(residue(f, [*found, stage], plan, ends[1]), plan, ends[1], last) for stage in draws]
        found.append(draws[costs.index(min(costs))])
    return found


def evaluate(stages: list[Stage], x: Tensor) -> Tensor:
    """Return the sum of all stages at ``x`` [m], accumulated in the dtype of ``x``."""
    total = torch.zeros_like(x)
    for stage in stages:
        total = total + stage(x)
    return total


def residue(f: Function, stages: list[Stage], plan: Plan, end: float, points: int = _PROBE) -> Tensor:
    """Return what the stages leave of ``f`` on a uniform grid over [-end, end]."""
    x = torch.linspace(-end, end, points, dtype=torch.float64).to(plan.residue)
    return _left(f, stages, x)


def frequency(residue: Tensor, length: float, share: float = 0.9) -> float:
    """Return the frequency below which ``share`` of the energy lies (0: the largest peak), in cycles per unit.

    ``residue`` lies on a uniform grid over an interval of ``length``; 1 / length is the least that is returned.
    """
    window = torch.hann_window(len(residue), periodic=False, dtype=residue.dtype)  # the ends do not meet: no leakage
    energy = torch.fft.rfft(residue * window if share else residue).abs().square()
    energy[0] = 0
    total = energy.cumsum(0)
    index = int((total < share * total[-1]).sum()) if share else int(energy.argmax())
    return max(1, index) / length


def _left(f: Function, stages: list[Stage], x: Tensor) -> Tensor:
    rest = f(x)
    for stage in stages:
        rest = rest - stage(x)
    return rest


def _stage(f: Function, before: list[Stage], plan: Plan, end: float, seed: int) -> Stage:
    pitch = frequency(residue(f, before, plan, end), 2 * end, plan.share)
    points = max(plan.points, math.ceil(6 * math.pi * end * min(pitch, 2 * plan.points / (6 * math.pi * end))))
    x = torch.linspace(-end, end, points, dtype=torch.float64).to(plan.residue)
    rest = _left(f, before, x)
    magnitude = float(rest.abs().max()) / 2
    network = plan.network(len(before), pitch)
    dtype = plan.dtypes[min(len(before), len(plan.dtypes) - 1)]
    target, inside = (rest / magnitude).to(dtype), x.to(dtype)
    weight = network.weight().to(dtype) if network.sine else None
    fitted = levenberg_marquardt(
        lambda v, wanted: network(v, inside, wanted),
        network.draw(seed).to(dtype),
        target,
        plan.steps,
        plan.goal,
        weight,
    )
    return Stage(magnitude, pitch, network, fitted.unknowns, fitted.rms, fitted.steps)


def _cost(left: Tensor, plan: Plan, end: float, last: bool) -> float:
    """Return how bad a residue is: how large, and unless it is the last, how fast it oscillates, squared."""
    return float(left.abs().max()) * (1.0 if last else frequency(left, 2 * end, plan.share) ** 2)
