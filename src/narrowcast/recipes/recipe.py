"""A recipe: the precision of a whole training run, as data with its paper."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from narrowcast.accumulate import accumulator
from narrowcast.errors import InputError
from narrowcast.nn.change import Change
from narrowcast.nn.convert import KEEP_WIDE, Conversion, convert_linears
from narrowcast.nn.gated import Gated
from narrowcast.nn.joined import against
from narrowcast.nn.normed import NormedGates
from narrowcast.nn.qkv import NormedQKV
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.nn.unit import UnitVariance
from narrowcast.ops import Reuse
from narrowcast.optim.catalogue import method

JOINED = "joined"  # RECIPE+joined


@dataclass(frozen=True)
class LossScale:
    """Dynamic loss scaling: multiply the loss, skip steps that overflow (Micikevicius et al. 2017, section 3.2).

    Defaults are torch.amp.GradScaler's: halve at an overflow, double after ``interval`` good steps.
    """

    initial: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000

    def __post_init__(self) -> None:
        if not (self.initial > 0 and self.growth > 1 and 0 < self.backoff < 1 and self.interval >= 1):
            raise InputError("loss scale: expected initial > 0, growth > 1, 0 < backoff < 1, interval >= 1")


@dataclass(frozen=True)
class Recipe:
    """What is narrowed and how.

    Attributes:
        name: as in `nc.recipe(name)`.
        summary: one line.
        paper: where it comes from.
        linear: the three gemms of every linear layer, or None to leave them in float32.
        loss_scale: dynamic loss scaling, or None.
        keep_wide: glob patterns of modules that stay wide.
        changes: swaps of other modules.
        parametrisation: what the converted layers' weights are multiples of, or None for the model's own.
        optimizer: how master weights and moments are kept, a name of `nc.optimizers()`; None for AdamW in float32.
    """

    name: str
    summary: str
    paper: str
    linear: LinearSpec | None = None
    loss_scale: LossScale | None = None
    keep_wide: tuple[str, ...] = KEEP_WIDE
    changes: tuple[Change, ...] = ()
    parametrisation: UnitVariance | None = None
    optimizer: str | None = None

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            method(self.optimizer)

    def with_optimizer(self, name: str) -> "Recipe":
        """Return this recipe with its optimizer's states kept as ``name`` says."""
        known = method(name)
        paper = f"{self.paper}; {known.paper}" if known.paper else self.paper
        summary = f"{self.summary}; optimizer: {known.summary}"
        return replace(self, name=f"{self.name}+{name}", summary=summary, paper=paper, optimizer=name)

    def joined(self) -> "Recipe":
        """Return this recipe with each norm of a block in one with what it feeds, and with the casts between.

        That is the gated unit (`nn.normed`) and the projections of attention (`nn.qkv`). The same numbers but for the
        scales that gate and up, and q, k and v, then share; less memory traffic. InputError where gated units are kept
        otherwise, or gemms cannot be joined.
        """
        gates = [change for change in self.changes if isinstance(change, Gated)]
        why = "it has no narrow gemms" if self.linear is None else against(self.linear)
        if any(gate.saved for gate in gates):
            why = "it keeps the inputs of gated units as codes"
        if why:
            raise InputError(f"recipe {self.name} cannot have norm and gated unit joined: {why}")
        others = tuple(change for change in self.changes if change not in gates)
        changes = (*others, NormedGates(smooth=any(gate.smooth for gate in gates)), NormedQKV())
        summary = f"{self.summary}; norms in one with gated unit and with q, k, v"
        return replace(self, name=f"{self.name}+{JOINED}", summary=summary, changes=changes)

    def with_accumulator(self, name: str) -> "Recipe":
        """Return this recipe with the sums of its three gemms made as accumulator ``name`` does.

        ``hopper-fp8`` is what peers call fast accumulation: the tensor core's own register, without promotion.
        """
        if self.linear is None:
            raise InputError(f"recipe {self.name} has no narrow gemms whose sums {name!r} could make")
        sums = accumulator(name)
        was = self.linear
        if sums.on_codes and any(isinstance(op, Reuse) and op.then for op in map(was.operand, OPERANDS)):
            raise InputError(
                f"recipe {self.name}: an operand is decoded and cast again, which leaves accumulator {name!r} no codes"
            )
        fwd, dgrad, wgrad = (replace(gemm, accumulator=sums) for gemm in (was.fwd, was.dgrad, was.wgrad))
        linear = replace(was, fwd=fwd, dgrad=dgrad, wgrad=wgrad)
        summary = f"{self.summary}; sums: {sums}"
        return replace(self, name=f"{self.name}@{name}", summary=summary, linear=linear)

    def convert(
        self, model: nn.Module, *, backend: str = "auto", seed: int = 0, only: tuple[str, ...] = ()
    ) -> Conversion:
        """Apply the recipe to ``model`` in place; see `convert_linears`. Changed modules come last in the table."""
        report = convert_linears(
            model, self.linear, self.name, backend=backend, seed=seed, keep_wide=self.keep_wide, only=only
        )
        for change in self.changes:
            report.rows.extend(change.apply(model, backend))
        if self.parametrisation is not None:
            self.parametrisation.apply(model)
        return report

    def parameter_groups(self, model: nn.Module, decay: float) -> list[dict[str, Any]]:
        """Return parameter groups: matrices decay, vectors do not; ``factor`` multiplies the learning rate.

        The parametrisation gives weights rates of their own, and what they lose by decay stays what it was.
        """
        rates = self.parametrisation.rates(model) if self.parametrisation else {}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, decay): [], (1.0, 0.0): []}
        for p in model.parameters():
            factor = rates.get(id(p), 1.0)
            groups.setdefault((factor, decay / factor if p.dim() >= 2 else 0.0), []).append(p)
        return [{"params": ps, "weight_decay": d, "factor": f} for (f, d), ps in groups.items()]
