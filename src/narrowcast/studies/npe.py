"""Study 81: posits and FP4 by layer: 16, 8 and 4 bits in one network, trained with the formats."""

import copy
import statistics
from typing import Any

from torch import nn

from narrowcast.analysis.hardware import mac
from narrowcast.formats import format
from narrowcast.qat import Plan, finish, prepare
from narrowcast.quantize import Cast, cast
from narrowcast.studies.study import Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.studies.vision import SmallCnn, digits, score, trained
from narrowcast.workloads import Images, fit

#: value tables of sheet 81: codes 0..7
_POSIT4 = (0.0, 1 / 16, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 16.0)


def _unscaled(name: str) -> Plan:
    return Plan(Cast(format(name)), Cast(format(name)))


def _scaled(name: str, tile: str = "row") -> Plan:
    """Per-channel weight scale, per-tensor activation scale, both powers of two times what lands in the format's middle."""
    return Plan(cast(f"{name}/{tile}/fp32"), cast(f"{name}/tensor/fp32"))


FP4, POSIT4, POSIT8, POSIT16 = "e2m1fn", "posit4_1", "posit8_0", "posit16_1"
#: name -> plan by layer (the first pattern that matches decides)
_ARMS: dict[str, dict[str, Plan]] = {
    "posit16": {"*": _unscaled(POSIT16)},
    "posit8": {"*": _unscaled(POSIT8)},
    "posit8, scaled": {"*": _scaled(POSIT8)},
    "posit4": {"*": _unscaled(POSIT4)},
    "fp4": {"*": _scaled(FP4)},
    "mix": {"convs.0": _unscaled(POSIT8), "head": _unscaled(POSIT8), "*": _scaled(FP4)},
}


def _bits(plans: dict[str, Plan], model: nn.Module) -> float:
    """Return the average bits of a weight."""
    decided = prepare(copy.deepcopy(model), plans)
    total = weighed = 0.0
    for name, plan in decided.items():
        size = sum(p.numel() for n, p in model.named_parameters() if n == f"{name}.weight")
        total += size
        weighed += size * (plan.weight.format.bits if plan.weight else 32)
    return weighed / total


def _arm(model: nn.Module, plans: dict[str, Plan], train: Images, test: Images, setting: Setting, seed: int) -> float:
    tuned = copy.deepcopy(model)
    prepare(tuned, plans)
    fit(tuned, train, epochs=1 if setting.quick else 6, rate=1e-3, seed=setting.seed + seed)
    finish(tuned)
    return score(tuned, test)


def run(setting: Setting) -> Outcome:
    """Train every arm over three seeds from the same float32 networks."""
    train, test = digits(setting)
    found: dict[str, list[float]] = {name: [] for name in ("float32", *_ARMS)}
    model: nn.Module = SmallCnn()
    for seed in range(1 if setting.quick else 3):
        model = trained(SmallCnn, setting, train, epochs=15, seed=seed)
        found["float32"].append(_arm(model, {"*": Plan()}, train, test, setting, seed))
        for name, plans in list(_ARMS.items())[: 2 if setting.quick else None]:
            found[name].append(_arm(model, plans, train, test, setting, seed))
        setting.note(f"seed {seed}: done")
    mean = {name: statistics.fmean(values) for name, values in found.items() if values}
    spread = max(found["float32"]) - min(found["float32"])
    mixed = _bits(_ARMS["mix"], model)
    uniform = max(mean.get("posit4", 0.0), mean.get("fp4", 0.0))
    checks = [
        at_least("posit16 minus float32, points", mean["posit16"] - mean["float32"], -max(spread, 0.1)),
        at_least("posit8 minus float32, points", mean["posit8"] - mean["float32"], -1.0),
        at_least("mix minus the best uniform 4 bits, points", mean.get("mix", 0.0) - uniform, 0.0),
        at_most("average bits of the mix", mixed, 5.0),
        equal("posit4_1, codes 0 to 7", str(format(POSIT4).decode(format(POSIT4).codes()[:8]).tolist()), str(list(_POSIT4)), claim=False),
    ]  # fmt: skip
    rows: list[list[Any]] = [
        [name, _average_bits(name, model), mean[name], min(values), max(values)]
        for name, values in found.items()
        if values
    ]
    table = {
        "title": "Accuracy on MNIST over the seeds, percent",
        "columns": ["arm", "bits per weight", "mean", "lowest", "highest"],
        "rows": rows,
    }
    units = {name: mac(format(name), format(name)) for name in (FP4, POSIT4, POSIT8, "e4m3fn", "int8")}
    cost = {"title": "A unit that sums 1024 exact products: a model, not a synthesis", "columns": ["format", "lanes of 16 bits", "gates", "energy, pJ"],
            "rows": [[name, u.lanes, u.gates, u.energy] for name, u in units.items()]}  # fmt: skip
    notes = (
        "The formats are the true ones (posit(8,0) with es = 0, OCP's e2m1); the published code substitutes others, so its tables are not compared.",
        "The paper's silicon figures cannot be measured here; the lanes and gates are a model.",
    )
    return Outcome(tuple(checks), (table, cost), (), notes)


def _average_bits(name: str, model: nn.Module) -> float:
    return 32.0 if name == "float32" else _bits(_ARMS[name], model)


STUDY = Study(
    number=81,
    title="Posits and FP4 by layer",
    paper="Chaudhari et al. 2025, XR-NPE: High-Throughput Mixed-precision SIMD Neural Processing Engine",
    claim="16-bit posits lose nothing, 8-bit posits next to nothing, and a mix by layer beats uniform 4 bits at hardly more bits.",
    baseline="float32, trained as long",
    treatment="posit(16,1), posit(8,0), posit(4,1), FP4 (e2m1) and a mix: first convolution and head posit(8,0), the rest FP4",
    measure="accuracy of a small CNN on 5,000 MNIST test digits, trained with the formats, three seeds",
    expected="posit16 = float32; posit8 within 1 point; the mix, at 5 bits or less on average, at least as good as uniform 4 bits",
    run=run,
    needs=("data",),
)
