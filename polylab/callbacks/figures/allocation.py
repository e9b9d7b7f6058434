"""Tasks x skills: which skills each task mixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import (
    USED,
    column_labels,
    column_width,
    draw_truth,
    header_height,
)
from polylab.callbacks.figures.rows import Bands, Rows
from polylab.callbacks.figures.sheet import Panel, Sheet, check_names, map_panel

__all__ = ["Truth", "allocation_panels", "draw_allocation"]

_TRUE_COLUMN = 18  # px


@dataclass(frozen=True)
class Truth:
    """The known binary matrix `[tasks, true skills]` and the names of its skills."""

    matrix: np.ndarray
    names: Sequence[str]

    def ordered(self, order: Sequence[int]) -> Truth:
        """The same with the tasks in another order."""
        return Truth(self.matrix[order], self.names)


def draw_allocation(
    relative: np.ndarray,
    *,
    tasks: Sequence[str],
    skills: Sequence[str],
    title: str,
    shown: Sequence[str],
    truth: Truth | None = None,
    categories: Sequence[str | None] | None = None,
) -> Figure:
    """Heatmap of `relative = w * S`, with the true skills in a second panel where known.

    Args:
        relative: `[tasks, skills]`; 1 = uniform.
        tasks: Row names, in the order of the rows.
        skills: Column names.
        title: Large.
        shown: Lines that say what is shown.
        truth: Its rows are the same tasks in the same order.
        categories: One name for each task (None = has none), drawn as a strip.

    Raises:
        ValueError: If the names do not fit the values.
    """
    rows = Rows.of(len(tasks))
    panels = allocation_panels(relative, tasks, rows, skills=skills, truth=truth)
    sheet = Sheet(title, [*shown, *rows.words()], tasks, rows, Bands.of(categories))
    return sheet.draw(panels)


def allocation_panels(
    relative: np.ndarray,
    tasks: Sequence[str],
    rows: Rows,
    *,
    skills: Sequence[str],
    truth: Truth | None,
) -> list[Panel]:
    """The weights' map, and the true matrix beside it where known.

    Raises:
        ValueError: If the names do not fit the values.
    """
    check_names(relative, tasks, skills)
    width = column_width(len(skills)) * len(skills)
    panels = [map_panel(relative, skills, rows, scale=USED, width=width)]
    if truth is not None:
        check_names(truth.matrix, tasks, truth.names)
        panels.append(_truth_panel(truth, rows))
    return panels


def _truth_panel(truth: Truth, rows: Rows) -> Panel:
    def draw(axes: Axes) -> None:
        draw_truth(axes, truth.matrix, rows)
        column_labels(axes, truth.names)

    width = max(70, _TRUE_COLUMN * len(truth.names))
    return Panel(width, draw, header_height(truth.names), "true skills")
