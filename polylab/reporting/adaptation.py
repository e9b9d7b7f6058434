"""What the page of an adaptation holds: its rows, and what they come to per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polylab.reporting.reading import Folder, number
from polylab.reporting.run import flat

__all__ = ["adaptation_contents"]


def adaptation_contents(
    folder: Folder, columns: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Everything that the folder of an adaptation has to show."""
    methods = sorted({row["method"] for row in rows})
    facts = [
        ["method", ", ".join(methods)],
        ["shots", ", ".join(sorted({row["shots"] for row in rows}))],
        ["tasks", len({row["task"] for row in rows})],
        ["seeds", len({row["seed"] for row in rows})],
        ["rows", len(rows)],
    ]
    return {
        "kind": "adaptation",
        "title": folder.path.resolve().name,
        "facts": facts,
        "columns": [*columns],
        "rows": [[_cell(name, row[name]) for name in columns] for row in rows],
        "config": [list(pair) for pair in flat(folder.yaml("config.yaml"))],
        "environment": [list(pair) for pair in flat(folder.json("environment.json"))],
    }


def _cell(column: str, text: str) -> float | str | None:
    if column in ("task", "method"):  # a task may be called 7
        return text
    value = number(text)
    return text or None if value is None else value
