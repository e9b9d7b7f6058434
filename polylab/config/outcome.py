"""What a finished run says on the terminal: a row for every task, and one line."""

from collections.abc import Mapping
from typing import Any


def split_results(values: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return `{"loss": ..., "macro": {...}}` from the logged `SPLIT/NAME`.

    For modules that keep no results of their own.
    """
    prefix = f"{split}/"
    named = {k.removeprefix(prefix): float(v) for k, v in values.items() if k.startswith(prefix)}
    loss = {"loss": named.pop("loss")} if "loss" in named else {}
    return loss | {"macro": named}


def summary_line(metrics: Mapping[str, Any]) -> str:
    """Return one line: the macro metrics, which weights they belong to, and the time."""
    split = _reported(metrics)
    macro = (metrics.get(split) or {}).get("macro", {})
    scores = [f"{name} {_number(value)}" for name, value in sorted(macro.items())]
    recovery = (metrics.get("recovery") or {}).get("aligned")
    if recovery is not None:
        scores.append(f"recovery {_number(recovery)}")
    kept = f"{split}, {metrics['checkpoint']} weights"
    return f"{kept}: {' · '.join(scores) or 'no metrics'} · {metrics['seconds']:.0f} s"


def print_table(metrics: Mapping[str, Any]) -> None:
    """Print a row of metrics for every task, and the macro means last.

    Of the test; of another split where that is all there is.
    """
    from rich.console import Console
    from rich.table import Table

    split = _reported(metrics)
    found = metrics.get(split) or {}
    tasks, macro = found.get("tasks", {}), found.get("macro", {})
    if not tasks:
        return
    columns = sorted({name for scores in tasks.values() for name in scores})
    table = Table("task", title=f"{split} metrics by task")
    for column in columns:
        table.add_column(column, justify="right")
    for name, scores in sorted(tasks.items()):
        table.add_row(name, *(_number(scores.get(column)) for column in columns))
    table.add_section()
    overall = {**macro, "loss": found.get("loss")}
    table.add_row("all", *(_number(overall.get(column)) for column in columns))
    Console().print(table)


def _reported(metrics: Mapping[str, Any]) -> str:
    return next((split for split in ("test", "val", "train") if metrics.get(split)), "val")


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
