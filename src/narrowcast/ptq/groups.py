"""Which weights belong together by their names, where no forward pass has shown it.

Serving engines fuse the projections of one input into one matrix, which has one scale per tensor: so q, k and v, and
gate and up, share theirs. `observe.wiring` sees who shares an input; before any pass, and for architectures that cannot
be run, the names that models have in common must do.
"""

from narrowcast.ptq.observe import Group
from narrowcast.ptq.targets import Target

#: last parts of the names of modules under one parent that see the same input
TIED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)


def tied_by_name(targets: list[Target]) -> list[Group]:
    """Return ``targets`` grouped by `TIED`, in their order; weights of one group have one K."""
    groups: dict[object, list[Target]] = {}
    for target in targets:
        parent, _, last = target.module.rpartition(".")
        family = next((names for names in TIED if last in names), None)
        alone = family is None or target.kind != "Linear"
        key = target.name if alone else (parent, family, target.shape[1])
        groups.setdefault(key, []).append(target)
    return [Group(members, why="no calibration") for members in groups.values()]
