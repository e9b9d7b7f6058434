"""The house style of every figure: one palette, sizes in pixels, names that stay legible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "DIVERGING",
    "INK",
    "MUTED",
    "OVER",
    "RULE",
    "Rows",
    "canvas",
    "heading",
    "pixels",
    "place",
    "plain_axis",
    "shorten",
    "text_width",
]

DPI = 100
INK = "#1F2A36"
MUTED = "#66717E"
RULE = "#D5DAE0"
ACCENT = "#1F5A96"
OVER = "#5E2703"  # beyond the end of the scale
# Blue to orange stays apart under every common colour blindness, and in lightness from the middle.
DIVERGING = LinearSegmentedColormap.from_list(
    "polylab_diverging",
    ["#174A7E", "#6FA3D0", "#F6F4EF", "#EFA35C", "#B4540A"],
).with_extremes(over=OVER, bad="#C9CDD2")

MAX_ROWS_HEIGHT = 1500
MIN_WIDTH = 660  # px that a heading's lines need
FONT = 8.5
_LABEL_STEP = 12  # px that a line of row labels needs at least


@dataclass(frozen=True)
class Rows:
    """Rows of a map: their height, and every how many of them gets a label."""

    count: int
    height: int  # px of all rows together
    every: int

    @staticmethod
    def of(count: int) -> Rows:
        """20 px a row while there are few, never more than `MAX_ROWS_HEIGHT` in all."""
        per_row = min(20.0, max(13.0, 900 / count), MAX_ROWS_HEIGHT / count)
        return Rows(count, round(per_row * count), max(1, int(np.ceil(_LABEL_STEP / per_row))))

    @property
    def font(self) -> float:
        """Points: smaller where rows are narrow."""
        return min(FONT, self.height / self.count * 72 / DPI * 0.8) if self.every == 1 else 7.0


def canvas(width: int, height: int) -> Figure:
    """An empty white figure of `height` and at least `width` and `MIN_WIDTH` pixels.

    It is drawn without a display and without pyplot's global state.
    """
    width = max(width, MIN_WIDTH)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Axes at a rectangle in pixels from the top left corner."""
    w, h = figure.get_figwidth() * DPI, figure.get_figheight() * DPI
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def heading(figure: Figure, title: str, lines: Sequence[str]) -> None:
    """Title at the top left and what is shown in smaller lines under it (58 px for two)."""
    w, h = figure.get_figwidth() * DPI, figure.get_figheight() * DPI
    figure.text(14 / w, 1 - 12 / h, title, va="top", color=INK, fontsize=12, fontweight="bold")
    for i, line in enumerate(lines):
        top = 1 - (35 + 16 * i) / h
        figure.text(14 / w, top, line, va="top", color=MUTED, fontsize=FONT)


def plain_axis(axes: Axes) -> None:
    """No frame, no tick marks, quiet labels."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=FONT, labelcolor=INK, pad=3)


def pixels(figure: Figure) -> np.ndarray:
    """The drawn figure, `uint8 [height, width, 3]`."""
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    return np.asarray(drawn.buffer_rgba())[..., :3].copy()


def shorten(names: Sequence[str], limit: int = 36) -> list[str]:
    """Names of at most `limit` characters, cut where it leaves the most of them different.

    The middle of the longer ones is left out; or, where this makes names equal and another cut
    makes fewer so, their end, their beginning, or what all names begin with.
    """
    first, last = min(names, default=""), max(names, default="")
    shared = next((i for i, c in enumerate(first) if last[i : i + 1] != c), len(first))
    candidates = [
        [_cut(name, limit, head) for name in names] for head in (limit // 2, limit - 1, 0)
    ]
    candidates.append([_cut(f"…{name[shared:]}", limit, limit // 2) for name in names])
    return max(candidates, key=lambda short: len(set(short)))


def _cut(name: str, limit: int, head: int) -> str:
    if len(name) <= limit:
        return name
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def text_width(names: Sequence[str], font: float = FONT) -> int:
    """Pixels that the longest of the shortened names needs (an estimate on the safe side)."""
    return round(max((len(n) for n in shorten(names)), default=0) * font * DPI / 72 * 0.58) + 8
