"""What kind of folder it is, and everything that its page holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polylab.reporting.adaptation import adaptation_contents
from polylab.reporting.reading import Folder, plain
from polylab.reporting.run import run_contents
from polylab.reporting.sweep import sweep_contents

__all__ = ["page_contents"]

# any of them is something to show
SHOWN = ("metrics.json", "config.yaml", "history.jsonl", "skills.csv", "knockout.csv",
         "interventions.csv", "routing.csv")  # fmt: skip


def page_contents(path: Path) -> dict[str, Any]:
    """The contents of the page of a folder, as strict JSON values; `notes` says what is missing.

    Raises:
        ValueError: If the folder is not there, or no file in it has anything to show.
    """
    if not path.is_dir():
        raise ValueError(f"run={path}: there is no such folder · give RUN_DIR or SWEEP_DIR")
    folder = Folder(path)
    contents = _of_table(folder) if folder.has("results.csv") else _of_run(folder)
    return plain({**contents, "folder": path.resolve().name, "notes": folder.notes})


def _of_table(folder: Folder) -> dict[str, Any]:
    columns, rows = folder.table("results.csv")
    if not rows:
        why = folder.notes[-1] if folder.notes else "it has no rows"
        raise ValueError(f"{folder.path / 'results.csv'} has nothing to show: {why}")
    if {"job", "folder", "status"} <= {*columns}:
        return sweep_contents(folder, columns, rows)
    if {"task", "method", "shots", "seed"} <= {*columns}:
        return adaptation_contents(folder, columns, rows)
    raise ValueError(
        f"{folder.path / 'results.csv'} has columns {', '.join(columns)} · a sweep's has job, "
        "folder, status, an adaptation's task, method, shots, seed"
    )


def _of_run(folder: Folder) -> dict[str, Any]:
    if not any(folder.has(name) for name in SHOWN):
        raise ValueError(
            f"run={folder.path}: nothing to show in it · give a folder with one of "
            f"{', '.join(SHOWN)} or results.csv"
        )
    return run_contents(folder)
