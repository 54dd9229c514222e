"""Tasks of the LM Evaluation Harness on two models, where the extra ``narrowcast[eval]`` is installed.

The harness loads its data sets from the Hugging Face hub or a local cache; nothing of it is in this package.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from narrowcast.errors import InputError


def require_tasks() -> None:
    """Raise InputError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise InputError("--tasks needs the LM Evaluation Harness: pip install 'narrowcast[eval]' (lm-eval)")


def run_tasks(model: nn.Module, folder: Path, tasks: list[str], limit: int = 0, batch: int = 8) -> dict[str, Any]:
    """Return the harness's results, ``{task: {metric: figure}}``, standard errors among them.

    Args:
        model: a causal language model.
        folder: where its tokenizer lies.
        tasks: names that the harness knows.
        limit: at most so many documents per task, 0 for all.
        batch: documents per batch.

    Raises InputError where the harness is missing, knows no such task, or finds no data.
    """
    require_tasks()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    try:
        wrapped = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=batch)
        found = lm_eval.simple_evaluate(model=wrapped, tasks=tasks, limit=limit or None, bootstrap_iters=1000)
    except Exception as error:  # the harness and its data loaders each fail in their own way
        why = " ".join(str(error).split())[:200]
        raise InputError(f"--tasks {','.join(tasks)}: lm-eval failed ({why})") from None
    rows = found["results"].items()
    return {task: {k: v for k, v in row.items() if isinstance(v, int | float)} for task, row in rows}
