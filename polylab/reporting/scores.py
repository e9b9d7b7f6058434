"""Scores of tasks with their intervals, as tables of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polylab.reporting.reading import Folder, number

__all__ = ["SPLITS", "headline", "score_tables", "task_categories"]

SPLITS = {"test": "test", "val": "validation", "train": "training"}
_EXTRA = ("train_examples", "examples_seen", "passes")  # of mix.csv


def score_tables(metrics: Mapping[str, Any], folder: Folder) -> list[dict[str, Any]]:
    """One table for each split that has tasks: `{"split", "columns", "rows", "intervals"}`.

    `intervals` has `[low, high]` or null for each cell of its columns.
    """
    mix = _mix(folder)
    categories = task_categories(metrics, folder)
    tables = []
    for key, words in SPLITS.items():
        result = _mapping(metrics.get(key))
        tasks = _mapping(result.get("tasks"))
        if tasks:
            tables.append({"split": words, **_table(result, tasks, categories, mix)})
    return tables


def _table(
    result: Mapping[str, Any],
    tasks: Mapping[str, Any],
    categories: Mapping[str, str],
    mix: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    found = {name for scores in tasks.values() for name in _mapping(scores)}
    told = [*_mapping(result.get("macro"))]  # the order in which a run says them
    metrics = [*(name for name in told if name in found), *sorted(found - {*told, "loss"})]
    metrics += ["loss"] if "loss" in found else []
    extra = [name for name in _EXTRA if any(name in row for row in mix.values())]
    columns = ["task", *(["category"] if categories else []), *metrics, *extra]
    sure = _mapping(_mapping(result.get("intervals")).get("tasks"))
    rows, intervals = [], []
    for task, scores in tasks.items():
        own, about = _mapping(scores), mix.get(task, {})
        cells = {"task": task, "category": categories.get(task, "")}
        cells |= {name: number(own.get(name)) for name in metrics}
        cells |= {name: number(about.get(name)) for name in extra}
        rows.append([cells[name] for name in columns])
        intervals.append([_interval(_mapping(sure.get(task)).get(name)) for name in columns])
    has = any(cell for row in intervals for cell in row)
    return {"columns": columns, "rows": rows, "intervals": intervals if has else None}


def _interval(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = map(number, value)
    return None if low is None or high is None else [low, high]


def headline(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The macro metrics of the test, or of what there is instead, with their intervals."""
    key = next((key for key in SPLITS if metrics.get(key)), None)
    if key is None:
        return []
    result = _mapping(metrics[key])
    sure = _mapping(_mapping(result.get("intervals")).get("macro"))
    scores = {**_mapping(result.get("macro")), "loss": result.get("loss")}
    return [
        {"name": f"{SPLITS[key]} {name}", "value": value, "interval": _interval(sure.get(name))}
        for name, value in ((n, number(v)) for n, v in scores.items())
        if value is not None
    ]


def task_categories(metrics: Mapping[str, Any], folder: Folder) -> dict[str, str]:
    """Each task's category, or the data source it came from; empty where neither is known."""
    told = _mapping(metrics.get("task_categories"))
    if told:
        return {
            str(task): ", ".join(map(str, own)) if isinstance(own, list) else str(own)
            for task, own in told.items()
        }
    sources = {task: row["source"] for task, row in _mix(folder).items() if row.get("source")}
    return sources


def _mix(folder: Folder) -> dict[str, dict[str, str]]:
    columns, rows = folder.table("mix.csv")
    return {row["task"]: row for row in rows} if "task" in columns else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
