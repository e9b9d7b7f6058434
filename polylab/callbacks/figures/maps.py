"""The panels that figures are made of: a map of numbers, a true matrix, a colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from polylab.callbacks.figures.rows import Rows
from polylab.callbacks.figures.style import (
    ACCENT,
    DIVERGING,
    FONT,
    INK,
    MUTED,
    OVER,
    RULE,
    SEQUENTIAL,
    place,
    plain_axis,
    shorten,
    widest,
)

__all__ = [
    "SCALE_HEIGHT",
    "SCALE_WIDTH",
    "USED",
    "Scale",
    "column_labels",
    "column_width",
    "draw_cells",
    "draw_truth",
    "header_height",
    "share_scale",
]

SCALE_WIDTH, SCALE_HEIGHT = 470, 42
_NUMBER = 22, 12  # px of a cell that a number fits into
COLUMN_LIMIT = 22  # characters
_LABEL = 11  # px of a column that an upright name fits into


@dataclass(frozen=True, eq=False)
class Scale:
    """What the colours of a map mean.

    Args:
        words: Beside it, at most two lines.
        colours: From `low` to `high`.
        low: Left end.
        high: Right end.
        ticks: Numbers under it.
        is_open: Values above `high` occur: they are dark, and the legend says so.
    """

    words: str
    colours: Colormap
    low: float
    high: float
    ticks: Sequence[float]
    is_open: bool = False

    def draw(self, figure: Figure, left: int, top: int) -> None:
        """`SCALE_WIDTH` x `SCALE_HEIGHT` px with the upper left corner there."""
        bar = place(figure, left, top, 236, 12)
        ramp = np.linspace(self.low, self.high, 256)[None]
        ends = {"vmin": self.low, "vmax": self.high, "extent": (self.low, self.high, 0, 1)}
        bar.imshow(ramp, cmap=self.colours, aspect="auto", **ends)
        bar.set_xticks(
            list(self.ticks), [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in self.ticks]
        )
        bar.set_yticks([])
        plain_axis(bar)
        if self.is_open:
            over = place(figure, left + 246, top, 22, 12)
            over.set_facecolor(OVER)
            over.set_yticks([])
            plain_axis(over)
            over.set_xticks([0.5], [f">{self.high:g}"])
        beside = (290 if self.is_open else 256) / 236
        style = {"va": "center", "color": MUTED, "fontsize": FONT, "transform": bar.transAxes}
        bar.text(beside, 0.5, self.words, **style)


# 0 to 2 in every figure of every run: 1 = uniform stays in the middle
USED = Scale(
    "weight x number of skills:\n0 = not used, 1 = uniform",
    DIVERGING,
    0.0,
    2.0,
    (0, 0.5, 1, 1.5, 2),
    is_open=True,
)


def share_scale(words: str, *, high: float = 1.0) -> Scale:
    """From 0 to `high`, light to dark; what is above is marked where `high` is not all."""
    ticks = np.linspace(0, high, 5 if high < 1 else 6).round(3)
    return Scale(words, SEQUENTIAL, 0.0, high, ticks.tolist(), is_open=high < 1)


def column_width(n_columns: int, *, largest: int = 34, limit: int = 480) -> int:
    """Pixels of one column: `largest` for few, less where they would not fit `limit` px."""
    return max(4, min(largest, limit // n_columns))


def header_height(names: Sequence[str]) -> int:
    """Pixels above a map for its upright column names."""
    return max(24, widest(names, limit=COLUMN_LIMIT))


def draw_cells(axes: Axes, values: np.ndarray, rows: Rows, *, scale: Scale) -> None:
    """Cells in the colours of the scale; those beyond an open one are dark, with their value.

    Args:
        axes: Filled by the map.
        values: `[things, columns]`, NaN = unknown.
        rows: As drawn.
        scale: What the colours mean.
    """
    drawn = rows.fold(values)
    limits = {"cmap": scale.colours, "vmin": scale.low, "vmax": scale.high}
    axes.imshow(drawn, aspect="auto", interpolation="nearest", **limits)
    _grid(axes, drawn.shape[1], rows)
    wide, high = _NUMBER
    if axes.get_window_extent().width / drawn.shape[1] < wide or rows.pitch < high:
        return  # numbers would not fit: the dark colour alone marks the clipped cells
    style = {"color": "white", "fontsize": 7, "ha": "center", "va": "center"}
    for i, k in np.argwhere(drawn > scale.high) if scale.is_open else ():
        axes.text(k, i, f"{drawn[i, k]:.1f}", **style)


def draw_truth(axes: Axes, truth: np.ndarray, rows: Rows) -> None:
    """The true binary tasks x skills matrix; a filled square = the task is made of this skill."""
    axes.set_xlim(-0.5, truth.shape[1] - 0.5)
    axes.set_ylim(rows.drawn - 0.5, -0.5)
    _grid(axes, truth.shape[1], rows)
    tasks, skills = np.nonzero(truth)
    side = min(11.0, 0.72 * rows.pitch)
    style = {"marker": "s", "color": ACCENT, "linewidths": 0}
    axes.scatter(skills, rows.at(tasks), s=(side * 0.72) ** 2, **style)


def column_labels(axes: Axes, names: Sequence[str], *, gap: int = 5) -> None:
    """Upright names above the columns, `gap` px away, as many as have room."""
    box = axes.get_window_extent()
    every = max(1, int(np.ceil(_LABEL / (box.width / len(names)))))
    above, y = axes.get_xaxis_transform(), 1 + gap / box.height
    style = {"ha": "center", "va": "bottom", "color": INK, "fontsize": FONT, "rotation": 90}
    for k, name in [*enumerate(shorten(names, COLUMN_LIMIT))][::every]:
        axes.text(k, y, name, transform=above, parse_math=False, **style)


def _grid(axes: Axes, n_columns: int, rows: Rows) -> None:
    """White seams between cells while these are large enough; grey on an empty panel."""
    plain_axis(axes)
    axes.set_xticks([])
    axes.set_yticks([])
    if rows.pitch < 10 or axes.get_window_extent().width / n_columns < 8:
        for spine in axes.spines.values():
            spine.set(visible=True, color=RULE)
        return
    right, bottom = n_columns - 0.5, rows.drawn - 0.5
    lines = [[(-0.5, i - 0.5), (right, i - 0.5)] for i in range(rows.drawn + 1)]
    lines += [[(k - 0.5, -0.5), (k - 0.5, bottom)] for k in range(n_columns + 1)]
    colour = "white" if axes.images else RULE
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.6), autolim=False)
