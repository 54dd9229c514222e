"""From the tensors of a checkpoint to the parameters of a model.

Checkpoints name things as their authors did; `transformers` renames, splits and merges on loading (the experts of a
mixture lie in hundreds of tensors on disk and in one 3-D parameter in the model). Its own table of conversions is
asked, so that one parameter can be made from its tensors alone, without loading the rest.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.models.quiet import quiet


@dataclass(frozen=True)
class Origin:
    """Which tensors of a checkpoint make which parameters or buffers.

    Attributes:
        targets: names in the model's state.
        sources: names in the checkpoint, in order.
        converter: `transformers`' way from these to those with the pattern of each source, or None where the one source
            is the one target.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    converter: tuple[Any, tuple[str, ...]] | None = None

    def make(self, model: nn.Module, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return the targets' values; ``read`` gives a tensor of the checkpoint."""
        if self.converter is None:
            return {self.targets[0]: read(self.sources[0])}
        transform, patterns = self.converter
        transform = copy.deepcopy(transform)
        for source, pattern in zip(self.sources, patterns, strict=True):
            transform.add_tensor(self.targets[0], source, pattern, read(source))
        with quiet():
            made = transform.convert(self.targets[0], model=model, config=getattr(model, "config", None))
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def origins(model: nn.Module, names: list[str], what: str) -> list[Origin]:
    """Return where every parameter and saved buffer of ``model`` comes from.

    Args:
        model: hollow or not.
        names: the tensors of the checkpoint.
        what: the checkpoint, for error messages.

    Raises InputError for tensors that the model has no place for, and for parameters that no tensor fills.
    """
    state = model.state_dict()
    found: dict[str, Origin] = {}
    unknown: list[str] = []
    mapping = _mapping(model)
    for name in sorted(names, key=_natural):
        target, pattern, transform = mapping(name, state)
        if target not in state:
            unknown.append(target)
            continue
        old = found.get(target, Origin((target,), ()))
        sources = (*old.sources, name)
        if transform is None:
            found[target] = Origin((target,), sources)
        else:
            targets = tuple(target.replace(transform.target_patterns[0], t) for t in transform.target_patterns)
            patterns = (*(old.converter[1] if old.converter else ()), pattern)
            found[target] = Origin(targets, sources, (transform, patterns))
    _check(model, state, found, unknown, what)
    return list(found.values())


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which expert 10 comes after expert 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def _mapping(model: nn.Module) -> Callable[[str, Any], tuple[str, str, Any]]:
    """Return a function from a checkpoint's name to (name in the model, pattern that matched, converter or None)."""
    if not hasattr(model, "base_model_prefix"):
        return lambda name, state: (name, "", None)
    with quiet():
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    prefix = model.base_model_prefix

    def look_up(name: str, state: Any) -> tuple[str, str, Any]:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            return name, "", None
        return renamed, pattern or "", by_pattern[pattern] if pattern is not None else None

    return look_up


def _check(model: nn.Module, state: Any, found: dict[str, Origin], unknown: list[str], what: str) -> None:
    ignored = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq"]
    computed = {name for name, _ in model.named_buffers()}  # older checkpoints hold some that are made anew today
    unknown = [n for n in unknown if n not in computed and not any(re.search(pattern, n) for pattern in ignored)]
    made = {target for origin in found.values() for target in origin.targets}
    same: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(tensor), []).append(name)
    filled = made | {alias for names in same.values() if made & {*names} for alias in names}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(name for name in state if name not in filled and name in parameters)
    if missing or unknown:
        wrong = f"lacks {missing[0]}" if missing else f"holds unknown {unknown[0]}"
        count = len(missing) + len(unknown)
        raise InputError(
            f"model {what}: the weights do not fit config.json: {wrong} ({count} such tensors); copy both again"
        )
