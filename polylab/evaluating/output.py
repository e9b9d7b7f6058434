"""A study on the terminal and in its folder."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from polylab.config.files import write_text
from polylab.evaluating.scores import LOSS
from polylab.terminal.rows import WIDTH, shorten

if TYPE_CHECKING:
    from polylab.evaluating.study import Study

__all__ = ["show", "table", "write"]

_CELL = 8


def show(study: Study) -> None:
    """Print the table and what was found."""
    print(f"\n{table(study)}\n")
    for sentence in study.findings():
        print(textwrap.fill(f"- {sentence}", WIDTH, subsequent_indent="  "), flush=True)
    print()


def write(study: Study, folder: Path) -> None:
    """Write `interventions.csv` and `findings.txt`; with a knock-out its table and figure too."""
    write_text(folder / "interventions.csv", study.interventions.to_csv(index=False))
    write_text(folder / "findings.txt", "".join(f"{line}\n" for line in study.findings()))
    if not study.skills:
        return
    write_text(folder / "knockout.csv", study.knockout.to_csv(index=False))
    figure = study.figure()
    (folder / "figures").mkdir(exist_ok=True)
    for form in ("png", "pdf"):
        figure.savefig(folder / "figures" / f"knockout.{form}")


def table(study: Study) -> str:
    """A line for each routing: the metric and the loss, and their changes with intervals."""
    metrics = [*dict.fromkeys([study.metric, LOSS])]
    widths = [max(_CELL, len(metric) + 2) for metric in metrics]
    names = min(max(map(len, study.routings)), WIDTH - sum(widths) - 3 * _CELL * len(metrics))
    heads = [
        f"{metric:>{width}}{'change':>{_CELL}}{'low':>{_CELL}}{'high':>{_CELL}}"
        for metric, width in zip(metrics, widths, strict=True)
    ]
    rule = "-" * (names + sum(map(len, heads)))
    lines = [
        "means over tasks by routing; changes paired by example, with 95 % intervals",
        rule,
        f"{'routing':<{names}}{''.join(heads)}",
        rule,
    ]
    for r, routing in enumerate(study.routings):
        cells = [_cells(study, r, metric, w) for metric, w in zip(metrics, widths, strict=True)]
        lines.append(f"{shorten(routing, names):<{names}}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def _cells(study: Study, r: int, metric: str, width: int) -> str:
    at = r, study.metrics.index(metric)
    value = f"{study.effects.macro.value[at]:>{width}.3f}"
    changes = study.effects.change.numbers if r else ()
    return value + "".join(f"{x[at]:>+{_CELL}.3f}" for x in changes) + " " * (3 * _CELL * (not r))
