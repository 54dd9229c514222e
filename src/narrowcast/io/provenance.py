"""What ran where: versions, processor, threads, date. No host names."""

import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, Any]:
    """Return the versions and the machine that a result file names."""
    from narrowcast import __version__

    found: dict[str, Any] = {
        "narrowcast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "platform": sys.platform,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
