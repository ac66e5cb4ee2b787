"""Tables as markdown, results as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table with columns padded to read well as plain text."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """The hardware and versions that a figure was measured with."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "gpu": gpu,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def hardware_words() -> str:
    """One line for under a table."""
    e = environment()
    where = e["gpu"] or f"{e['cpu_cores']} CPU cores ({e['machine']})"
    return f"{where}, torch {e['torch']}, transformers {e['transformers']}"


def write_json(path: Path | None, name: str, result: dict[str, Any]) -> None:
    """Write a result with its environment; nothing where no path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": name, "environment": environment(), **result}, indent=1) + "\n")
