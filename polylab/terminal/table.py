"""The scores of every task on 80 columns; of very many tasks the worst and the best."""

from collections.abc import Mapping, Sequence
from typing import Any

from polylab.terminal.rows import WIDTH, shorten, wrap

_NARROWEST = 20  # of the column of names; metrics that leave it less are left to metrics.json
_ALL = 50  # more tasks are not all listed
_ENDS = 10  # then so many of the worst and of the best are

Scores = Mapping[str, float | int | None]


def task_table(result: Mapping[str, Any], *, title: str) -> str:
    """Return a line for every task, the means with their interval, and what was left out.

    Args:
        result: A split's part of `metrics.json`: `tasks`, `macro`, `loss` and maybe `intervals`.
        title: Of the table.
    """
    tasks: Mapping[str, Scores] = result["tasks"]
    means: Scores = dict(result.get("macro", {}))
    if result.get("loss") is not None:
        means = {**means, "loss": result["loss"]}
    known = {name for scores in (*tasks.values(), means) for name in scores}
    metrics = [name for name in (*result.get("macro", {}), *sorted(known)) if name != "loss"]
    metrics = [*dict.fromkeys(metrics), "loss"] if "loss" in known else [*dict.fromkeys(metrics)]
    columns = _fitting(metrics)
    widths = [max(len(column), 5) + 2 for column in columns]
    ends = _intervals(result, columns)
    names = min(max(map(len, [*tasks, "mean over tasks"])), WIDTH - sum(widths))

    def line(name: str, cells: Sequence[str]) -> str:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{shorten(name, names):<{names}}{''.join(padded)}"

    rule = "-" * (names + sum(widths))
    best, hidden = _listed(tasks, columns[0])
    rows = [line(name, [number(tasks[name].get(c)) for c in columns]) for name in best]
    if hidden:
        rows.insert(_ENDS, f"... {hidden:,} more, between the worst and the best by {columns[0]}")
    mean = line("mean over tasks", [number(means.get(column)) for column in columns])
    lines = [title, rule, line("task", columns), rule, *rows, rule, mean]
    lines += [line(name, cells) for name, cells in ends]
    if left := metrics[len(columns) :]:
        lines += wrap(f"not shown: {' · '.join(left)}", WIDTH)
    return "\n".join(lines)


def number(value: Any) -> str:
    """Return three decimals of a score, a whole number as it is, and `-` for none."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _fitting(metrics: Sequence[str]) -> list[str]:
    """The first metrics that leave room for the names of tasks; one at least."""
    fitting, room = [], WIDTH - _NARROWEST
    for metric in metrics:
        room -= max(len(metric), 5) + 2
        if fitting and room < 0:
            break
        fitting.append(metric)
    return fitting


def _listed(tasks: Mapping[str, Scores], metric: str) -> tuple[list[str], int]:
    """Names of the tasks to list, and how many are left out."""
    if len(tasks) <= _ALL:
        return sorted(tasks), 0
    scored = {name: scores.get(metric) for name, scores in tasks.items()}
    known = {name: value for name, value in scored.items() if value is not None}
    ranked = sorted(known, key=lambda name: (known[name], name), reverse=metric == "loss")
    if len(ranked) <= 2 * _ENDS:
        return ranked, len(tasks) - len(ranked)
    return [*ranked[:_ENDS], *ranked[-_ENDS:]], len(tasks) - 2 * _ENDS


def _intervals(result: Mapping[str, Any], columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    found = result.get("intervals")
    if not found:
        return []
    ends = [found["macro"].get(column, [None, None]) for column in columns]
    words = (f"  {found['level']:.0%} from", "      to")
    return [(word, [number(end[i]) for end in ends]) for i, word in enumerate(words)]
