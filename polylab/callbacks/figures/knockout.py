"""Tasks x skills: what is lost when a skill is taken away, beside what is allocated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import USED, Scale, column_width
from polylab.callbacks.figures.matrix import check_order
from polylab.callbacks.figures.rows import Rows
from polylab.callbacks.figures.sheet import Sheet, check_names, map_panel
from polylab.callbacks.figures.style import DIVERGING

__all__ = ["draw_knockout"]

_STEPS = (1, 2, 2.5, 5, 10)


def draw_knockout(
    change: np.ndarray,
    relative: np.ndarray,
    *,
    tasks: Sequence[str],
    skills: Sequence[str],
    title: str,
    shown: Sequence[str],
    order: Sequence[int] | None = None,
) -> Figure:
    """Left the allocation, right what the score loses without each skill; the same rows, columns.

    A skill that is used much and a score that falls have the same colour: where the allocation
    means what it says, the maps look alike.

    Args:
        change: `[tasks, skills]`, score without the skill minus score with it; NaN = unknown.
        relative: `[tasks, skills]`, `w * S`, 1 = uniform.
        tasks: Row names.
        skills: Column names.
        title: Large.
        shown: Lines that say what is shown.
        order: Of the rows; as given if None.

    Raises:
        ValueError: If the names or the order do not fit the values.
    """
    check_names(relative, tasks, skills)
    check_names(change, tasks, skills)
    order, rows = check_order(order, len(tasks)), Rows.of(len(tasks))
    width = column_width(len(skills)) * len(skills)
    panels = [
        map_panel(relative[order], skills, rows, scale=USED, width=width, above="allocation"),
        map_panel(
            change[order],
            skills,
            rows,
            scale=_scale(change),
            width=width,
            above="score without the skill",
        ),
    ]
    return Sheet(title, [*shown, *rows.words()], [tasks[i] for i in order], rows).draw(panels)


def _scale(change: np.ndarray) -> Scale:
    """Around 0, as far as the largest change, rounded up."""
    known = np.abs(change[np.isfinite(change)])
    largest = max(float(known.max(initial=0.0)), 1e-3)
    unit = 10.0 ** np.floor(np.log10(largest))
    end = next(step * unit for step in _STEPS if step * unit >= largest * (1 - 1e-9))
    ticks = [-end, -end / 2, 0, end / 2, end]
    words = "change of the score without the skill:\nbelow 0 = the task needs it"
    return Scale(words, DIVERGING.reversed(), -end, end, [float(f"{t:.4g}") for t in ticks])
