"""The house style of every figure: one palette, sizes in pixels, words that stay legible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

__all__ = [
    "ACCENT",
    "BANDS",
    "DIVERGING",
    "FINE",
    "INK",
    "MUTED",
    "OTHER",
    "OVER",
    "RULE",
    "SEQUENTIAL",
    "THIN",
    "canvas",
    "fit_width",
    "heading",
    "pixels",
    "place",
    "plain_axis",
    "save_vector",
    "shorten",
    "text_width",
    "widest",
]

DPI = 100
INK = "#1F2A36"
MUTED = "#66717E"
RULE = "#D5DAE0"
ACCENT = "#1F5A96"
OVER = "#5E2703"  # beyond the end of the scale
_UNKNOWN = "#C9CDD2"
# Blue to orange stays apart under every common colour blindness, and in lightness from the middle.
DIVERGING = LinearSegmentedColormap.from_list(
    "polylab_diverging",
    ["#174A7E", "#6FA3D0", "#F6F4EF", "#EFA35C", "#B4540A"],
).with_extremes(over=OVER, bad=_UNKNOWN)
SEQUENTIAL = LinearSegmentedColormap.from_list(
    "polylab_sequential",
    ["#FBFAF6", "#F2E3B6", "#A5CDA8", "#4BA3B3", "#2A679F", "#12244A"],
).with_extremes(over=OVER, bad=_UNKNOWN)
# Of categories; apart under every common colour blindness (Paul Tol's muted scheme).
BANDS = ("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#AA4499")
OTHER = "#BFC4CA"

MIN_WIDTH = 660  # px that a heading's lines need
FONT, TITLE = 8.5, 12.0
FINE, THIN = "polylab-fine", "polylab-thin"  # what only the vector, the pixels show
NAME_LIMIT = 32  # characters


class _Picture(Figure):
    """A figure that a notebook shows, with pyplot or without."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=DPI)
        return file.getvalue()


def canvas(width: int, height: int) -> Figure:
    """An empty white figure of `height` and at least `width` and `MIN_WIDTH` pixels.

    It is drawn without a display and without pyplot's global state.
    """
    width = max(width, MIN_WIDTH)
    figure = _Picture(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def fit_width(title: str, width: int) -> int:
    """`width`, or more where the title needs it."""
    return max(width, MIN_WIDTH, text_width(title, TITLE, bold=True) + 28)


def place(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Axes at a rectangle in pixels from the top left corner."""
    w, h = figure.get_figwidth() * DPI, figure.get_figheight() * DPI
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def heading(figure: Figure, title: str, lines: Sequence[str]) -> None:
    """Title at the top left and what is shown in smaller lines under it (58 px for two)."""
    w, h = figure.get_figwidth() * DPI, figure.get_figheight() * DPI
    style = {"va": "top", "parse_math": False}
    figure.text(14 / w, 1 - 12 / h, title, color=INK, fontsize=TITLE, fontweight="bold", **style)
    for i, line in enumerate(lines):
        figure.text(14 / w, 1 - (35 + 16 * i) / h, line, color=MUTED, fontsize=FONT, **style)


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


def save_vector(figure: Figure, file: Path | BinaryIO) -> None:
    """The figure as PDF: text stays text, cells are an image, and every row has its name.

    Names that have no room at the size of the screen are as small as their rows: legible when
    magnified, and found by a search.
    """
    drawn = [part for axes in figure.axes for part in axes.get_children()]
    either = [part for part in drawn if part.get_gid() in (FINE, THIN)]
    for part in either:
        part.set_visible(part.get_gid() == FINE)
    with rc_context({"pdf.fonttype": 3}):  # 42 takes five times as long, for a text no better found
        figure.savefig(file, format="pdf", dpi=2 * DPI)
    for part in either:
        part.set_visible(part.get_gid() == THIN)


def shorten(names: Sequence[str], limit: int = NAME_LIMIT) -> list[str]:
    """Names of at most `limit` characters in one line, cut where most of them stay different.

    The middle of the longer ones is left out; or, where this makes names equal and another cut
    makes fewer so, their end, their beginning, or what all names begin with.
    """
    names = [" ".join(name.split()) for name in names]
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


def widest(names: Sequence[str], font: float = FONT, *, limit: int = NAME_LIMIT) -> int:
    """Pixels that the widest of these names needs when shortened, with a margin."""
    return max((text_width(name, font) for name in shorten(names, limit)), default=0) + 8


def text_width(words: str, font: float = FONT, *, bold: bool = False) -> int:
    """Pixels of a line of words in the font of the figures, or a little more."""
    # on the screen each character is a whole number of pixels wide
    return round(sum(_advance(c, bold) for c in words) * font * DPI / 72 * 1.03)


@cache
def _advance(character: str, bold: bool) -> float:
    """Width of a character in units of the font's size; a wide guess for those it lacks."""
    face = get_font(findfont(FontProperties(weight="bold" if bold else "normal")))
    if not face.get_char_index(ord(character)):
        return 1.0
    face.set_size(100, 72)
    return face.load_char(ord(character)).linearHoriAdvance / 65536 / 100
