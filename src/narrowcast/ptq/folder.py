"""Quantize a Hugging Face model folder: plan, calibrate, one block at a time, a new folder with a report."""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from narrowcast.analysis.roofline import H100, Gpu
from narrowcast.errors import CheckFailed, InputError, NarrowcastError, nearest
from narrowcast.io.compressed import CompressedTensors
from narrowcast.io.files import sized
from narrowcast.io.hollow import HollowModel, open_hollow
from narrowcast.io.native import Native
from narrowcast.io.provenance import versions
from narrowcast.io.quantized import Layout
from narrowcast.io.weights import check_finite
from narrowcast.names import dtype_name
from narrowcast.ptq import memory
from narrowcast.ptq.calibration import Calibration, CalibrationConfig, from_batches, from_model, from_text
from narrowcast.ptq.catalogue import recipe as recipe_of
from narrowcast.ptq.judge import Judgement
from narrowcast.ptq.part import specs_of
from narrowcast.ptq.plan import Plan, folded, make_plan
from narrowcast.ptq.pretrained import load
from narrowcast.ptq.recipe import PtqRecipe
from narrowcast.ptq.samples import beginnings, continued, side_by_side
from narrowcast.ptq.served import in_layout
from narrowcast.ptq.staging import Staging, cache_specs, check_out, layer_specs, plain
from narrowcast.ptq.stream import Piece, Streamer
from narrowcast.ptq.targets import find_targets

LAYOUTS: dict[str, type[Layout]] = {"narrowcast": Native, "compressed-tensors": CompressedTensors}
#: called with (steps done, steps in all, what is being done); a step is a part of the model, or its check
OnStep = Callable[[int, int, str], None]
Json = dict[str, Any]


@dataclass(frozen=True)
class QuantizeConfig:
    """What to make.

    Attributes:
        model: folder of the model.
        recipe: post-training recipe, or its name, or the spelling of a cast for all weights.
        calibration: which text, and how much of it.
        batches: calibration batches from Python instead.
        held: with those, batches of token ids to judge on.
        keep_wide: further glob patterns of modules that stay wide; each must match.
        layout: how the result is written.
        device: where it is computed.
        gpu: what speed is predicted for.
        dtype: that what stays wide is stored in, and that the loaded model will have; None for the original's.
    """

    model: Path
    recipe: str | PtqRecipe
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    batches: Iterable[Any] | None = None
    held: Iterable[Tensor] = ()
    keep_wide: tuple[str, ...] = ()
    layout: Layout = field(default_factory=Native)
    device: str = "cpu"
    gpu: Gpu = H100
    dtype: torch.dtype | None = None

    @property
    def chosen(self) -> PtqRecipe:
        """The recipe with all patterns of what stays wide."""
        found = recipe_of(self.recipe)
        return replace(found, keep_wide=(*found.keep_wide, *self.keep_wide))


def layout_of(name: str) -> Layout:
    """Return the layout called ``name``; InputError with the nearest names."""
    if name not in LAYOUTS:
        raise InputError(f"unknown layout {name!r}{nearest(name, LAYOUTS)}")
    return LAYOUTS[name]()


def plan_folder(config: QuantizeConfig) -> Plan:
    """Return what would become of the model, from its config and headers alone."""
    source = _opened(config)
    config = bound(config, source)
    return make_plan(source, config.chosen, config.layout, config.gpu)


def _opened(config: QuantizeConfig) -> HollowModel:
    source = open_hollow(config.model, config.device)
    source.kept_as = config.dtype
    return source


def bound(config: QuantizeConfig, source: HollowModel) -> QuantizeConfig:
    """Return ``config`` with its layout made for the model, and its recipe in the conventions of that layout's loaders.

    The dtype is that of the first weight to be narrowed.
    """
    targets, _ = find_targets(source.model, config.chosen.keep_wide)
    dtype = source.kept_dtype(targets[0].name)
    layout = config.layout.for_model(source.model, specs_of(targets, config.chosen), dtype)
    recipe = in_layout(recipe_of(config.recipe), layout)
    return replace(config, layout=layout, recipe=recipe)


def quantize_folder(
    config: QuantizeConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep = lambda *done: None,
    on_report: Callable[[Json, Path], object] = lambda report, folder: None,
    command: str = "",
) -> Json:
    """Quantize the model into the new folder ``out`` and return the report, which is also ``out/report.json``.

    The work is done in a hidden folder beside ``out``, which takes its place when everything is there. A run that was
    killed goes on with ``resume`` behind its last finished block, to the same bits. ``on_report`` may add files to the
    folder before that, such as a page of the report.

    Raises InputError for bad input; then there is no ``out`` and nothing is left behind, but for finished blocks where
    only the disk was full.
    """
    check_out(out, resume=resume, overwrite=overwrite)
    begin = time.perf_counter()
    source = _opened(config)
    config = bound(config, source)
    plan = make_plan(source, config.chosen, config.layout, config.gpu)
    memory.restart_peak()
    rest = memory.now()
    for number, name in enumerate(check_finite(source.weights)):
        on_step(number, len(source.weights), f"checking {name}")
    data = _calibration(config, source, on_step)
    streamer = Streamer(source, config.chosen, data)
    staging = Staging(out, config.layout, len(streamer.parts))
    _check_space(staging, plan)
    staging.open(_settings(config, source, data), resume=resume, overwrite=overwrite)
    try:
        records, judgement, resumed = _stream(streamer, staging, on_step)
        if judgement is not None and not judgement.finite:
            which = "quantized" if judgement.before < float("inf") else "original"
            raise CheckFailed(
                f"recipe {config.chosen.name}: the predictions of the {which} model are not finite; take another "
                "recipe, or keep what overflows wide (--keep-wide)"
            )
        report = _report(config, plan, streamer, records, judgement)
        report |= {
            "command": command,
            "resumed_after": resumed,
            "seconds": time.perf_counter() - begin,
            "memory": _memory(source, streamer, rest),
        }
        staging.complete(config.model, _config_json(config, source, records), records)
        report |= _samples(source, staging, data)
        on_report(report, staging.folder)
        staging.publish(report)
    except NarrowcastError as error:
        if "cannot write" in str(error):
            raise InputError(f"{error}; what is finished is kept, go on with --resume") from None
        staging.discard()
        raise
    return report


def _stream(streamer: Streamer, staging: Staging, on_step: OnStep) -> tuple[list[Json], Judgement | None, int]:
    """Take the model through its parts; return what became of each, what it lost, and the parts found finished."""
    records, state = staging.done()
    blocks = len(streamer.blocks) if streamer.prefix else 0
    records = records[:blocks]
    names, resumed = streamer.parts, len(records)
    if records and state is None and streamer.data.batches:
        raise InputError(f"{staging.folder}: the state of the run is missing; start anew with --overwrite")
    on_step(len(records), len(names), names[min(len(records), len(names) - 1)])

    def store(piece: Piece) -> None:
        records.append(staging.store(piece, plain(piece.part.narrowed)))
        on_step(len(records), len(names), names[min(len(records), len(names) - 1)])

    return records, streamer.run(store, resumed, state), resumed


def _calibration(config: QuantizeConfig, source: HollowModel, on_step: OnStep) -> Calibration:
    """Return what the model is shown, from wherever it is to come."""
    if config.batches is not None:
        data = from_batches(config.batches, config.held)
        if not data.batches and config.chosen.needs_calibration:
            raise InputError(f"recipe {config.chosen.name} needs calibration data and the iterable is empty")
        return data
    needed, name = config.chosen.needs_calibration, config.chosen.name
    if not source.known:
        if needed:
            kind = source.settings.get("model_type")
            raise InputError(
                f"recipe {name} needs calibration, and model_type {kind!r}, unknown to transformers, cannot be run; "
                "take a recipe that looks at weights alone, such as w4a16-rtn-g32 or w8a8-fp8"
            )
        return Calibration((), source="none: the architecture cannot be run")
    if config.calibration.data is not None:
        if source.tokenizer is None:
            raise InputError(
                f"{source.folder}: has no tokenizer.json, without which a text cannot be used; copy it there, or leave "
                "--data out: the model then writes its own"
            )
        return from_text(config.calibration, source.tokenizer, source.model)
    why = _cannot_write(source)
    if why and needed:
        raise InputError(f"recipe {name} needs calibration data, and {why}; give a text with --data")
    if why:
        return Calibration((), source=f"none: no --data, and {why}")
    names = source.names()
    source.load_buffers()
    source.load(names)
    data = from_model(config.calibration, source.model, lambda n, total: on_step(n, total, "writing calibration text"))
    source.release(names)
    return data


def _cannot_write(source: HollowModel) -> str:
    """Return why the model cannot write text of its own, or an empty string."""
    if not hasattr(source.model, "generate") or not getattr(source.model, "can_generate", lambda: False)():
        return "the model writes no text"
    need, free = 4 * sum(p.numel() for p in source.places.names.values()), memory.available(source.device)
    if free is not None and need > free // 2:
        return f"the model as a whole ({need / 1e9:.1f} GB) does not fit the memory to write its own"
    return ""


def _check_space(staging: Staging, plan: Plan) -> None:
    """Refuse before any work where the disk is too full for the result."""
    folder = staging.folder.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < plan.bytes_after:
        raise InputError(
            f"--out {staging.out}: {sized(free)} are free, the result takes {sized(plan.bytes_after)}; "
            "make room or choose another disk"
        )


def _settings(config: QuantizeConfig, source: HollowModel, data: Calibration) -> Json:
    """Return everything that decides the bits: a resumed run must share it."""
    files = sorted({stored.file for stored in source.weights.values()})
    return {
        "model": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "recipe": config.chosen.to_json(),
        "layout": config.layout.name,
        "device": config.device,
        "dtype": str(config.dtype),
        "calibration": data.digest,
        "narrowcast": versions()["narrowcast"],
        "torch": versions()["torch"],
    }


def _config_json(config: QuantizeConfig, source: HollowModel, records: list[Json]) -> Json:
    specs = layer_specs(records)
    narrow = {spec.module for spec in specs}
    wide = [n for n, m in source.model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and n not in narrow]
    settings = {**source.settings, "quantization_config": config.layout.config(specs, wide, cache_specs(records))}
    if config.dtype is not None:
        settings.pop("torch_dtype", None)
        settings["dtype"] = dtype_name(config.dtype)
    return settings


def _samples(source: HollowModel, staging: Staging, data: Calibration) -> Json:
    """Return what the model wrote before and writes now, or why that is not shown."""
    prompts = beginnings(data.held)
    why = _cannot_write(source) if source.known else "the architecture cannot be run"
    if source.tokenizer is None or not prompts or why:
        return {"samples": [], "no_samples": f"No samples: {why or 'there is no text, or no tokenizer'}."}
    original = open_hollow(source.folder, str(source.device))  # the modules of ``source`` narrow their inputs by now
    original.load_buffers()
    original.load(original.names())
    before = continued(original.model, prompts, source.tokenizer)
    del original
    narrow = load(staging.folder, torch.float32).to(source.device)
    after = continued(narrow, prompts, source.tokenizer)
    return {"samples": side_by_side(prompts, before, after, source.tokenizer)}


def _memory(source: HollowModel, streamer: Streamer, rest: int) -> Json:
    """Return what was held at most: weights and hidden states counted here, the whole process by the system."""
    return {
        "weights_peak": source.peak,
        "activations_peak": streamer.activations,
        "model_bytes": 4 * sum(p.numel() for p in source.places.names.values()),
        "process_peak": memory.peak(),
        "process_before": rest,
    }


def _report(
    config: QuantizeConfig, plan: Plan, streamer: Streamer, records: list[Json], judgement: Judgement | None
) -> Json:
    narrowed = [row for record in records for row in record["narrowed"]]
    after = sum(size for record in records for size in record["tensors"].values())
    return {
        "kind": "narrowcast-quantize",
        "version": 1,
        "versions": versions(),
        "model": {
            "name": str(config.model),
            "type": streamer.source.settings.get("model_type"),
            "known": streamer.source.known,
            "parameters": sum(p.numel() for p in streamer.source.places.names.values()),
        },
        "recipe": {"name": config.chosen.name, "summary": config.chosen.summary, "paper": config.chosen.paper},
        "layout": config.layout.name,
        "calibration": {
            "source": streamer.data.source,
            "tokens": streamer.data.tokens,
            "held_tokens": sum(b.numel() for b in streamer.data.held),
            "seed": config.calibration.seed,
        },
        "plan": {**plan.to_json(), "folded": folded(plan).to_json()["rows"]},
        "bytes_before": plan.bytes_before,
        "bytes_after": after,
        "judgement": judgement.to_json() if judgement else None,
        "layers": narrowed,
        "drift": [{"part": name, "drift": r["drift"]} for name, r in zip(streamer.parts, records, strict=True)],
        "silent": {name: count for record in records for name, count in record["silent"].items()},
        "samples": [],
    }
