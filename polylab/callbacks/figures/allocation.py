"""Tasks x skills: which skills each task mixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import (
    SCALE_WIDTH,
    column_labels,
    column_width,
    draw_relative,
    draw_scale,
    draw_truth,
    header_height,
    row_labels,
)
from polylab.callbacks.figures.style import FONT, MUTED, Rows, canvas, heading, place, text_width

__all__ = ["Truth", "draw_allocation"]

_SCALE = "weight x number of skills:\n0 = not used, 1 = uniform"
TRUE_COLUMN = 22  # px
GAP = 22
TOP = 66


@dataclass(frozen=True)
class Truth:
    """The known binary matrix `[tasks, true skills]` and the names of its skills."""

    matrix: np.ndarray
    names: Sequence[str]


def draw_allocation(
    relative: np.ndarray,
    *,
    tasks: Sequence[str],
    skills: Sequence[str],
    title: str,
    shown: Sequence[str],
    truth: Truth | None = None,
) -> Figure:
    """Heatmap of `relative = w * S`, with the true skills in a second panel where known.

    Args:
        relative: `[tasks, skills]`; 1 = uniform.
        tasks: Row names, in the order of the rows.
        skills: Column names.
        title: Large.
        shown: Lines that say what is shown (at most 2).
        truth: Its rows are the same tasks in the same order.

    Raises:
        ValueError: If the names do not fit the values.
    """
    check_names(relative, tasks, skills)
    rows = Rows.of(len(tasks))
    left = 14 + text_width(tasks, rows.font)
    width, top = panels_width(skills, truth), TOP + panels_header(skills, truth)
    figure = canvas(left + max(SCALE_WIDTH, width) + 20, top + rows.height + 58)
    heading(figure, title, shown)
    axes = draw_panels(figure, (left, top), rows, relative=relative, skills=skills, truth=truth)
    row_labels(axes, tasks, rows)
    draw_scale(figure, left, top + rows.height + 16, _SCALE)
    return figure


def draw_panels(
    figure: Figure,
    corner: tuple[int, int],
    rows: Rows,
    *,
    relative: np.ndarray,
    skills: Sequence[str],
    truth: Truth | None,
) -> Axes:
    """The weights' map at `corner` (left, top) and the true matrix beside it; returns the map."""
    left, top = corner
    width = column_width(len(skills)) * len(skills)
    axes = place(figure, left, top, width, rows.height)
    draw_relative(axes, relative, rows)
    if column_width(len(skills)) >= 11:
        column_labels(axes, skills)
    if truth is not None:
        beside = (left + width + GAP, top, TRUE_COLUMN * len(truth.names), rows.height)
        panel = place(figure, *beside)
        draw_truth(panel, truth.matrix, truth.names, rows)
        y = 1 + (header_height(truth.names) + 8) / rows.height
        words = {"color": MUTED, "fontsize": FONT, "transform": panel.transAxes}
        panel.text(0, y, "true skills", va="baseline", **words)
    return axes


def panels_width(skills: Sequence[str], truth: Truth | None) -> int:
    """Pixels of both panels of `draw_panels`."""
    width = column_width(len(skills)) * len(skills)
    return width if truth is None else width + GAP + TRUE_COLUMN * len(truth.names)


def panels_header(skills: Sequence[str], truth: Truth | None) -> int:
    """Pixels of the column names above the panels of `draw_panels`."""
    if truth is None:
        return header_height(skills)
    return max(header_height(skills), header_height(truth.names) + 24)


def check_names(values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse names that do not fit the values.

    Raises:
        ValueError: If the number of rows or columns differs from their names.
    """
    if values.shape != (len(rows), len(columns)):
        raise ValueError(
            f"{len(rows)} row names and {len(columns)} column names for values of shape "
            f"{list(values.shape)}; give one name per row and column."
        )
