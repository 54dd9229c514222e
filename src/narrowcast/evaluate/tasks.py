"""Tasks of the LM Evaluation Harness on two models, where the extra ``narrowcast[eval]`` is installed.

The harness loads its data sets from the Hugging Face hub or a local cache; nothing of it is in this package. A task of
one's own is a YAML file in the harness's format (its data may be local), named by its path.
"""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from narrowcast.errors import InputError


def require_tasks() -> None:
    """Raise InputError where the harness, or what it needs for models of transformers, is not installed."""
    absent = [name for name in ("lm_eval", "accelerate") if find_spec(name) is None]
    if absent:
        raise InputError(
            f"--tasks needs the LM Evaluation Harness: pip install 'narrowcast[eval]' "
            f"(lm-eval[hf]; absent: {', '.join(absent)})"
        )


def _named(tasks: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of tasks, and the folders where those given as files lie."""
    import yaml

    names, folders = [], []
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
            continue
        if not Path(task).is_file():
            raise InputError(f"--tasks {task}: no such file")
        try:  # the harness's own tags stay text
            found = yaml.load(Path(task).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"--tasks {task}: not YAML: {' '.join(str(error).split())[:120]}") from None
        if not isinstance(found, dict) or "task" not in found:
            raise InputError(f"--tasks {task}: no task of lm-eval: expected a mapping with the key 'task'")
        names.append(found["task"])
        folders.append(str(Path(task).resolve().parent))
    return names, folders


def run_tasks(model: nn.Module, folder: Path, tasks: list[str], limit: int = 0, batch: int = 8) -> dict[str, Any]:
    """Return the harness's results, ``{task: {metric: figure}}``, standard errors among them.

    Args:
        model: a causal language model.
        folder: where its tokenizer lies.
        tasks: names that the harness knows, or YAML files of tasks.
        limit: at most so many documents per task, 0 for all.
        batch: documents per batch.

    Raises InputError where the harness is missing, knows no such task, or finds no data.
    """
    require_tasks()
    names, folders = _named(tasks)
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from transformers import AutoTokenizer

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of defaults, one line a metric
        wrapped = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=batch)
        known = TaskManager(include_path=folders or None)
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=names, limit=limit or None, bootstrap_iters=1000, task_manager=known
        )
    except Exception as error:  # the harness and its data loaders each fail in their own way
        why = " ".join(str(error).split())[:200]
        raise InputError(f"--tasks {','.join(tasks)}: lm-eval failed ({why})") from None
    rows = found["results"].items()
    return {task: {k: v for k, v in row.items() if isinstance(v, int | float)} for task, row in rows}
