"""A tiny model's config and a little text: what the tests of training start from."""

import json
from pathlib import Path

CONFIG = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "attention_dropout": 0.1,  # a source of random bits besides our own
}  # fmt: skip


def write(folder: Path) -> Path:
    """Write ``config.json`` and ``text/`` into ``folder``."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "text").mkdir()
    for n in range(4):
        (folder / "text" / f"{n}.txt").write_text(f"def function_{n}(x):\n    return x + {n}\n" * 200)
    return folder
