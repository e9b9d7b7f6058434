"""`results.csv`, a row per task and seed, written as they finish; and what they come to."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polylab.config.errors import ConfigError
from polylab.config.files import write_text

__all__ = ["Results", "summarise", "summary_table"]

Unit = tuple[str, int]  # task, seed
_FIRST, _LAST = ("task", "method", "shots", "seed"), ("parameters", "seconds")


@dataclass
class Results:
    """The finished rows of a folder, by task and seed."""

    path: Path
    rows: dict[Unit, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Those that an interrupted command has left; none without the file.

        Raises:
            ConfigError: If the file is no such table.
        """
        if not path.is_file():
            return cls(path)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if gone := {*_FIRST, *_LAST} - {*(reader.fieldnames or ())}:
                    raise ValueError(f"it has no column {', '.join(sorted(gone))}")
                found = {(row["task"], int(row["seed"])): _typed(row) for row in reader}
        except (OSError, csv.Error, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} is no table of an adaptation ({error}) · give another folder, or delete it"
            ) from error
        return cls(path, found)

    def add(self, unit: Unit, row: Mapping[str, Any], *, order: Sequence[Unit]) -> None:
        """Add a finished row and write the whole file anew, in one step, in this order.

        Rows that are not in `order` come last.
        """
        self.rows[unit] = dict(row)
        places = {unit: place for place, unit in enumerate(order)}
        units = sorted(self.rows, key=lambda unit: places.get(unit, len(places)))
        self.rows = {unit: self.rows[unit] for unit in units}
        columns = [*_FIRST, *self.metrics, *_LAST]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(self.rows.values())
        write_text(self.path, text.getvalue())

    @property
    def metrics(self) -> list[str]:
        """The columns that are scores, sorted."""
        names = {name for row in self.rows.values() for name in row}
        return sorted(names - {*_FIRST, *_LAST})


def _typed(row: Mapping[str, str]) -> dict[str, Any]:
    typed: dict[str, Any] = {"task": row["task"], "method": row["method"]}
    typed |= {name: int(row[name]) for name in ("shots", "seed", "parameters")}
    rest = {name: text for name, text in row.items() if name not in typed}
    return typed | {name: float(text) for name, text in rest.items() if text != ""}


def summarise(results: Results, *, tasks: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Per task the median and quartiles over seeds, and the same of the mean over tasks.

    `mean_of_medians` is the mean over tasks of their medians, which papers report; `mean` has the
    statistics over seeds of the mean over tasks, whose interval belongs to the whole set.

    Returns:
        `{METRIC: {"tasks": {TASK: {"median", "q25", "q75", "std", "seeds"}}, "mean": {...},
        "mean_of_medians": ...}}`; `std` is null for a single seed.
    """
    summary: dict[str, Any] = {}
    for metric in results.metrics:
        table = np.array(
            [[results.rows[task, seed].get(metric, np.nan) for seed in seeds] for task in tasks]
        )
        by_task = {task: _statistics(row) for task, row in zip(tasks, table, strict=True)}
        summary[metric] = {
            "tasks": by_task,
            "mean": _statistics(table.mean(0)),
            "mean_of_medians": float(np.mean([one["median"] for one in by_task.values()])),
        }
    return summary


def _statistics(values: Any) -> dict[str, Any]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {
        "median": float(middle),
        "q25": float(low),
        "q75": float(high),
        "std": std,
        "seeds": len(values),
    }


def summary_table(summary: Mapping[str, Any], *, title: str) -> Any:
    """A rich table of `summarise`: a row per task, the mean over tasks last."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("task", overflow="fold")  # where there is no room; names are never cut
    for metric in summary:
        table.add_column(metric, justify="right")
    for task in next(iter(summary.values()))["tasks"]:
        table.add_row(task, *(_cell(part["tasks"][task]) for part in summary.values()))
    table.add_section()
    table.add_row("mean over tasks", *(_cell(part["mean"]) for part in summary.values()))
    return table


def _cell(statistics: Mapping[str, Any]) -> str:
    return "{median:.3f} [{q25:.3f}, {q75:.3f}]".format(**statistics)
