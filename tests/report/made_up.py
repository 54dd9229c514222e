"""A small made-up report of every kind of row, for the tests of the page."""

from typing import Any

OPERANDS = ("fwd.x", "fwd.w", "dgrad.g", "dgrad.w", "wgrad.g", "wgrad.x")
SITES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
#: (recipe, final loss, verdict, bits)
ROWS = (
    ("fp32", 3.001, "not distinguishable", 32.0),
    ("bf16", 3.0, "baseline", 16.0),
    ("fp8-rowwise", 3.004, "not distinguishable", 8.06),
    ("mxfp8", 2.95, "better", 8.25),
    ("mxfp4", 3.125, "worse", 4.25),
    ("int8-block", None, "diverged", 8.03),
)


def report() -> dict[str, Any]:
    """Return a fresh report, as ``json.load`` would."""
    return {
        "kind": "narrowcast-compare",
        "version": 1,
        "command": "narrowcast compare --data '<my texts>'",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "cpu": "a processor", "threads": 2, "date": "2026-01-02"},
        "corpus": {"name": "</script><b>texts</b>", "train_tokens": 3490339, "split": "split by file: 2 of 9"},
        "model": {"name": "a small Llama", "parameters": 1967360, "layers": 1, "hidden": None},
        "training": {"steps": 20, "tokens_per_step": 1024, "lr": 0.004},
        "baseline": "bf16",
        "noise": {"half_width": 0.0123, "explanation": "Five seeds", "losses": [3.0, 3.01, 2.99]},
        "gpu": {
            "name": "a GPU",
            "reference": "a stack of layers",
            "constants": [{"name": "fp8", "value": 1979e12, "unit": "FLOP/s", "source": "data sheet"}],
        },
        "rows": [row(*r) for r in ROWS],
        "seconds": 12.5,
    }


def row(recipe: str, loss: float | None, verdict: str, bits: float) -> dict[str, Any]:
    """Return one row; fp32 has no narrowed sites, and a run that diverged none that were measured."""
    ended = loss is not None
    return {
        "recipe": recipe,
        "summary": f"what {recipe} does",
        "paper": "Somebody & Other 2024",
        "diverged": None if ended else f"recipe {recipe} diverged at step 2: gradient of 'a.weight' is not finite",
        "val_loss": loss,
        "gap": None if loss is None else loss - 3.0,
        "verdict": verdict,
        "bits_weights": bits,
        "bits_operands": bits,
        "model_bytes": 2_230_000,
        "optimizer_bytes": 23_610_000,
        "activation_bytes": 12_870_000,
        "step_seconds": 0.1 if ended else None,
        "h100_step_seconds": 0.0003,
        "h100_8b_step_seconds": 0.0494,
        "h100_note": f"gemms of {recipe}",
        "skipped_steps": 0,
        "train": [[s, 6.0 - 0.1 * s] for s in range(1, 21 if ended else 3)],
        "val": [[0, 6.0], [10, 4.0 if recipe != "mxfp4" else 4.1], [20, loss]] if ended else [],
        "sites": [site(name, operand) for name in SITES for operand in OPERANDS] if ended and recipe != "fp32" else [],
        "conversion": [converted(name, "wide" if recipe == "fp32" else "narrow") for name in SITES],
    }


def site(name: str, operand: str) -> dict[str, Any]:
    exact = operand == "fwd.w"
    return {"site": name, "operand": operand, "sqnr_db": None if exact else 18.5, "underflow": 0.031, "saturate": 0.0}


def converted(name: str, became: str) -> dict[str, Any]:
    return {"name": name, "kind": "Linear", "shape": [32, 64], "became": became, "backend": "emulate",
            "kernel": "matmul", "why": "a < b"}  # fmt: skip
