"""Where results go: a table on the screen, and a file with all that tells what was measured."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

import polylab


def where(device: str) -> dict[str, str]:
    """Card, processor and versions."""
    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {
        "card": card,
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": _version("peft"),
        "polylab": polylab.__version__,
        "command": "python "
        + " ".join([f"experiments/speed/{Path(sys.argv[0]).name}", *_arguments()]),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text in columns."""
    heads = [*rows[0]]
    cells = [heads, *([_cell(row.get(head)) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def save(path: Path, rows: Sequence[Mapping[str, Any]], *, device: str, **more: Any) -> None:
    """Write rows, machine and command as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**where(device), **more, "rows": [*rows]}, indent=1) + "\n")


def _arguments() -> list[str]:
    """Those of the command, without the file that the results go to."""
    given = sys.argv[1:]
    if "--save" in given:
        place = given.index("--save")
        del given[place : place + 2]
    return given


def _version(package: str) -> str:
    """Without an import: PEFT's asks CUDA, and then this process could not fork any more."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
