"""What the page of one run, or of an evaluation of one, holds."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from polylab.reporting.allocation import allocation_contents
from polylab.reporting.reading import Folder, number
from polylab.reporting.scores import headline, score_tables, task_categories
from polylab.reporting.series import history_series, routing_by_layer

__all__ = ["flat", "run_contents"]

PICTURES = 6_000_000  # bytes of all figures together
TABLE_ROWS = 60_000
_OF_A_STEP = re.compile(r"-(step\d+|best|last)$")
_SMALL_TABLES = {"interventions.csv": "interventions", "knockout.csv": "knockout"}


def run_contents(folder: Folder) -> dict[str, Any]:
    """Everything that the folder of a run or of an evaluation has to show."""
    config, metrics = folder.yaml("config.yaml"), folder.json("metrics.json")
    environment = folder.json("environment.json")
    if folder.has("config.yaml") and not folder.has("metrics.json"):
        folder.note("there is no metrics.json: the run is not finished, or was stopped")
    allocation = allocation_contents(folder)
    categories = task_categories(metrics, folder)
    return {
        "kind": "evaluation" if _is_evaluation(folder) else "run",
        "title": str(config.get("name") or folder.path.resolve().name),
        "facts": _facts(config, metrics, environment, allocation),
        "headline": headline(metrics),
        "scores": score_tables(metrics, folder),
        "categories": categories,
        "recovery": [[k, v] for k, v in flat(metrics.get("recovery") or {})],
        "allocation": allocation,
        "history": history_series(folder),
        "routing": routing_by_layer(folder),
        **{key: _small_table(folder, name) for name, key in _SMALL_TABLES.items()},
        "findings": folder.lines("findings.txt"),
        "config": [list(pair) for pair in flat(config)],
        "environment": [list(pair) for pair in flat(environment)],
        "pictures": _pictures(folder),
    }


def _is_evaluation(folder: Folder) -> bool:
    """Whether it looks at a run that lies elsewhere: it has results and nothing that trained."""
    trained = folder.has("history.jsonl") or (folder.path / "checkpoints").is_dir()
    return not trained and any(folder.has(n) for n in ("predictions.jsonl", "interventions.csv"))


def flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """`(dotted key, value)` of every leaf."""
    if isinstance(node, Mapping) and node:
        return [
            pair
            for key, value in node.items()
            for pair in flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(node, list):
        return [(prefix, ", ".join(map(str, node)) if node else "[]")]
    if isinstance(node, Mapping):
        return [(prefix, "{}")] if prefix else []
    return [(prefix, node)] if prefix else []


def _facts(
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    environment: Mapping[str, Any],
    allocation: Mapping[str, Any] | None,
) -> list[list[Any]]:
    known = dict(flat(config))
    seconds, parameters = number(metrics.get("seconds")), metrics.get("trainable_parameters")
    size, commit = allocation or {}, environment.get("commit")
    started = environment.get("started")
    facts = {
        "backbone": known.get("backbone.name_or_path"),
        "adapter": known.get("adapter.poly_type"),
        "rank": known.get("adapter.r"),
        "tasks": len(size["tasks"]) if size else _count_tasks(metrics),
        "skills": size.get("skills") or known.get("adapter.n_skills"),
        "heads": known.get("adapter.n_splits"),
        "steps": known.get("trainer.max_steps"),
        "batch": known.get("data.batch_size"),
        "seed": known.get("seed"),
        "trainable parameters": parameters,
        "tested checkpoint": metrics.get("checkpoint"),
        "time": None if seconds is None else duration(seconds),
        "device": environment.get("device"),
        "started": None if started is None else str(started)[:16].replace("T", " "),
        "commit": None if commit is None else _short(str(commit)),
    }
    return [[name, value] for name, value in facts.items() if value is not None]


def _count_tasks(metrics: Mapping[str, Any]) -> int | None:
    counts = [len(part.get("tasks") or {}) for part in metrics.values() if isinstance(part, dict)]
    return max(counts, default=0) or None


def _short(commit: str) -> str:
    name, dash, rest = commit.partition("-")  # -dirty: the files were others than the commit's
    return name[:12] + dash + rest


def duration(seconds: float) -> str:
    """Return a time in words, such as `1 h 20 min` or `3 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _small_table(folder: Folder, name: str) -> dict[str, Any] | None:
    columns, rows = folder.table(name)
    if not rows:
        return None
    if len(rows) > TABLE_ROWS:
        folder.note(f"{name} has {len(rows)} rows; this page holds the first {TABLE_ROWS}")
    return _with_intervals(columns, rows[:TABLE_ROWS])


def _with_intervals(columns: list[str], rows: list[dict[str, str]]) -> dict[str, Any]:
    """The ends of intervals (`X_low`, `X_high`; `low`, `high` of `value`) beside their column."""
    ends: dict[str, tuple[str, str]] = {}
    for name in columns:
        low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
        if {low, high} <= {*columns}:
            ends[name] = (low, high)
    kept = [name for name in columns if not any(name in pair for pair in ends.values())]
    cells = [[_cell(row[name]) for name in kept] for row in rows]
    sure = [[_interval(row, ends.get(name)) for name in kept] for row in rows]
    return {"columns": kept, "rows": cells, "intervals": sure if ends else None}


def _interval(row: dict[str, str], ends: tuple[str, str] | None) -> list[float] | None:
    if ends is None:
        return None
    low, high = (number(row[name]) for name in ends)
    return None if low is None or high is None else [low, high]


def _cell(text: str) -> float | str | None:
    value = number(text)
    return text or None if value is None else value


def _pictures(folder: Folder) -> list[dict[str, str]]:
    """The last figure of each kind, while they fit."""
    files = sorted((folder.path / "figures").glob("*.png"))
    last = [file for file in files if not _OF_A_STEP.search(file.stem)]
    left, pictures, gone = PICTURES, [], []
    for file in last:
        size = file.stat().st_size
        if size > left:
            gone.append(file.name)
            continue
        left -= size
        pictures.append({"name": file.stem, "data": base64.b64encode(file.read_bytes()).decode()})
    if gone:
        folder.note(f"figures/ is too large for one page; left out: {', '.join(gone)}")
    return pictures
