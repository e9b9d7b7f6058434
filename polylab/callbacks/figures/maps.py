"""The panels that figures are made of: a map of weights, a true matrix, their scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from polylab.callbacks.figures.style import (
    ACCENT,
    DIVERGING,
    FONT,
    INK,
    MUTED,
    OVER,
    RULE,
    Rows,
    place,
    plain_axis,
    shorten,
    text_width,
)

__all__ = [
    "SCALE_WIDTH",
    "column_labels",
    "column_width",
    "draw_relative",
    "draw_scale",
    "draw_truth",
    "header_height",
    "row_labels",
]

SCALE_WIDTH = 470
LIMIT = 2.0  # the scale is 0 to 2 in every figure of every run: 1 = uniform stays in the middle


def column_width(n_columns: int) -> int:
    """Pixels of one column: 42 for few, less where more than 14 would not fit 600 px."""
    return max(4, min(42, 600 // n_columns))


def header_height(names: Sequence[str]) -> int:
    """Pixels above a map for its upright column names."""
    return max(24, text_width(names))


def draw_relative(axes: Axes, values: np.ndarray, rows: Rows) -> None:
    """Cells of weight x skills on the fixed scale 0 to 2; larger ones are dark, with their value.

    Args:
        axes: Filled by the map.
        values: `[rows, columns]`, 1 = uniform, NaN = unknown.
        rows: As drawn.
    """
    n_rows, n_columns = values.shape
    axes.imshow(values, cmap=DIVERGING, vmin=0, vmax=LIMIT, aspect="auto", interpolation="nearest")
    _grid(axes, n_rows, n_columns, rows)
    box = axes.get_window_extent()
    if box.width / n_columns < 22 or rows.height / n_rows < 12:
        return  # numbers would not fit: the dark colour alone marks the clipped cells
    for i, k in np.argwhere(values > LIMIT):
        axes.text(k, i, f"{values[i, k]:.1f}", color="white", fontsize=7, ha="center", va="center")


def draw_truth(axes: Axes, truth: np.ndarray, names: Sequence[str], rows: Rows) -> None:
    """The true binary tasks x skills matrix; a filled square = the task is made of this skill."""
    axes.set_xlim(-0.5, truth.shape[1] - 0.5)
    axes.set_ylim(truth.shape[0] - 0.5, -0.5)
    _grid(axes, truth.shape[0], truth.shape[1], rows)
    tasks, skills = np.nonzero(truth)
    side = min(11.0, 0.72 * rows.height / rows.count)
    axes.scatter(skills, tasks, s=(side * 0.72) ** 2, marker="s", color=ACCENT, linewidths=0)
    column_labels(axes, names)


def row_labels(axes: Axes, names: Sequence[str], rows: Rows) -> None:
    """Names beside the rows (as plain text, which draws much faster than tick labels)."""
    short, beside = shorten(names), axes.get_yaxis_transform()
    x = -5 / axes.get_window_extent().width
    style = {"ha": "right", "va": "center", "color": INK, "fontsize": rows.font}
    for i in range(0, rows.count, rows.every):
        axes.text(x, i, short[i], transform=beside, **style)


def column_labels(axes: Axes, names: Sequence[str]) -> None:
    """Upright names above the columns."""
    above, y = axes.get_xaxis_transform(), 1 + 5 / axes.get_window_extent().height
    style = {"ha": "center", "va": "bottom", "color": INK, "fontsize": FONT, "rotation": 90}
    for k, name in enumerate(shorten(names)):
        axes.text(k, y, name, transform=above, **style)


def draw_scale(figure: Figure, left: int, top: int, words: str) -> None:
    """The colour scale and `words` beside it: `SCALE_WIDTH` px wide, 46 high."""
    axes = place(figure, left, top, 236, 12)
    axes.imshow(
        np.linspace(0, LIMIT, 256)[None],
        cmap=DIVERGING,
        vmin=0,
        vmax=LIMIT,
        aspect="auto",
        extent=(0, LIMIT, 0, 1),
    )
    over = place(figure, left + 246, top, 22, 12)
    over.set_facecolor(OVER)
    for panel in (axes, over):
        panel.set_yticks([])
        plain_axis(panel)
    axes.set_xticks([0, 0.5, 1, 1.5, 2], ["0", "0.5", "1", "1.5", "2"])
    over.set_xticks([0.5], [">2"])
    axes.text(290 / 236 * LIMIT, 0.5, words, va="center", color=MUTED, fontsize=FONT)


def _grid(axes: Axes, n_rows: int, n_columns: int, rows: Rows) -> None:
    """White seams between cells while these are large enough; grey on an empty panel."""
    plain_axis(axes)
    axes.set_xticks([])
    axes.set_yticks([])
    colour = "white" if axes.images else RULE
    if rows.height / rows.count < 10:
        for spine in axes.spines.values():
            spine.set(visible=True, color=RULE)
        return
    right, bottom = n_columns - 0.5, n_rows - 0.5
    lines = [[(-0.5, i - 0.5), (right, i - 0.5)] for i in range(n_rows + 1)]
    lines += [[(k - 0.5, -0.5), (k - 0.5, bottom)] for k in range(n_columns + 1)]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.6), autolim=False)
