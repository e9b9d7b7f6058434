"""Rows of a map: how high they are, which get a name, and which are drawn as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from polylab.callbacks.figures.style import (
    BANDS,
    DPI,
    FINE,
    FONT,
    INK,
    MUTED,
    OTHER,
    THIN,
    place,
    plain_axis,
    shorten,
    text_width,
)

__all__ = ["BAND", "Bands", "Rows", "Size", "label_rows"]

MAX_HEIGHT = 1600
_LABEL_STEP = 12  # px that a line of row labels needs at least
BAND = 12  # px of a strip of categories


@dataclass(frozen=True)
class Size:
    """Pixels of rows.

    Args:
        largest: Height of a row, while all together are not above `comfortable`.
        comfortable: Of all together, while each is high enough for its name.
        limit: Of all together.
        smallest: Height of a row; where `limit` has no room for that, rows are drawn together.
    """

    largest: int = 20
    comfortable: int = 900
    limit: int = MAX_HEIGHT
    smallest: int = 1


@dataclass(frozen=True)
class Rows:
    """Rows of a map, from the number of things that they show.

    Args:
        count: Things to show, such as tasks.
        together: So many neighbouring things are drawn as one row, their mean.
        height: Pixels of all rows together.
    """

    count: int
    together: int
    height: int

    @staticmethod
    def of(count: int, size: Size | None = None) -> Rows:
        """Few rows are high, more are lower, and of very many neighbours are drawn together.

        Rows too low for names are a whole number of pixels high each, so that they look alike.
        """
        size = size or Size()
        together = -(-count // (size.limit // size.smallest))
        drawn = -(-count // together)
        share = max(_LABEL_STEP + 1, size.comfortable / drawn)
        pitch = min(size.largest, share, size.limit / drawn)
        pitch = pitch if pitch >= _LABEL_STEP else int(pitch)
        return Rows(count, together, round(pitch * drawn))

    @property
    def drawn(self) -> int:
        """Rows on the page."""
        return -(-self.count // self.together)

    @property
    def pitch(self) -> float:
        """Pixels of one drawn row."""
        return self.height / self.drawn

    @property
    def every(self) -> int:
        """Every so many drawn rows have room for a name."""
        return max(1, int(np.ceil(_LABEL_STEP / self.pitch)))

    @property
    def font(self) -> float:
        """Points: smaller where rows are narrow."""
        return min(FONT, self.pitch * 72 / DPI * 0.8) if self.every == 1 else 7.0

    def fold(self, values: np.ndarray) -> np.ndarray:
        """`[count, ...]` to `[drawn, ...]`: means of the things drawn together, without NaN."""
        if self.together == 1:
            return values
        starts = np.arange(0, self.count, self.together)
        known = np.isfinite(values)
        total = np.add.reduceat(np.where(known, values, 0.0), starts)
        number = np.add.reduceat(known.astype(float), starts)
        return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)

    def at(self, thing: Any) -> Any:
        """Where on the axis of drawn rows (0, 1, ...) the centre of a thing (or of each) lies."""
        return (thing + 0.5) / self.together - 0.5

    def words(self, what: str = "tasks", cell: str = "row") -> list[str]:
        """A line for the heading, where rows (or columns) stand for several things."""
        if self.together == 1:
            return []
        return [f"a {cell} is the mean of {self.together} neighbouring {what} of {self.count:,}"]


def label_rows(
    axes: Axes, names: Sequence[str], rows: Rows, *, gap: int = 5, fine: bool = False
) -> None:
    """Names beside the rows, `gap` px away: as many as have room; `fine`: in the vector all.

    They are plain texts, which draw much faster than tick labels.
    """
    short, beside = shorten(names), axes.get_yaxis_transform()
    x = -gap / axes.get_window_extent().width
    style = {"ha": "right", "va": "center", "color": INK, "transform": beside, "parse_math": False}
    thin = rows.every * rows.together
    for i in range(0, rows.count, thin):
        named = axes.text(x, rows.at(i), short[i], fontsize=rows.font, **style)
        named.set_gid(THIN if thin > 1 and fine else None)
    if thin > 1 and fine:
        font = rows.pitch / rows.together * 72 / DPI * 0.8
        for i, name in enumerate(short):
            axes.text(x, rows.at(i), name, fontsize=font, visible=False, gid=FINE, **style)


@dataclass(frozen=True)
class Bands:
    """Categories of the rows: the most frequent ones have a colour, the others share a grey."""

    of_rows: Sequence[str | None]
    coloured: Sequence[str]

    @staticmethod
    def of(categories: Sequence[str | None] | None) -> Bands | None:
        """None where no row has a category."""
        counts = Counter(name for name in categories or [] if name)
        if not counts:
            return None
        by_size = sorted(counts, key=lambda name: (-counts[name], name))
        return Bands(list(categories or []), by_size[: len(BANDS)])

    def ordered(self, order: Sequence[int]) -> Bands:
        """The same colours for rows in another order."""
        return Bands([self.of_rows[i] for i in order], self.coloured)

    def draw(self, axes: Axes, rows: Rows, *, across: bool = False) -> None:
        """Fill `axes` with a strip: downwards beside the rows, or `across` above columns."""
        colours = dict(zip(self.coloured, BANDS, strict=False))
        cells = np.array(
            [to_rgb(colours.get(c or "", OTHER) if c else "white") for c in self.of_rows]
        )
        first = cells[:: rows.together]  # of things drawn together the first one's
        axes.imshow(
            first[None] if across else first[:, None], aspect="auto", interpolation="nearest"
        )
        plain_axis(axes)
        axes.set_xticks([])
        axes.set_yticks([])

    def legend_height(self, width: int) -> int:
        """Pixels of the legend when it is `width` wide."""
        return 18 * (1 + max(line for _, line, _ in self._entries(width))) + 22

    def draw_legend(self, figure: Figure, left: int, top: int, width: int) -> None:
        """Colours and names of the categories, in lines of at most `width` px."""
        entries = self._entries(width)
        axes = place(figure, left, top, width, self.legend_height(width))
        axes.set_xlim(0, width)
        axes.set_ylim(self.legend_height(width), 0)
        axes.set_axis_off()
        axes.text(0, 6, "category of the task", va="center", color=MUTED, fontsize=FONT)
        style = {"va": "center", "color": INK, "fontsize": FONT, "parse_math": False}
        for (name, line, x), colour in zip(
            entries, [*BANDS[: len(self.coloured)], OTHER], strict=False
        ):
            y = 27 + 18 * line
            axes.add_patch(Rectangle((x, y - 5), 10, 10, color=colour, linewidth=0))
            axes.text(x + 15, y, name, **style)

    def _entries(self, width: int) -> list[tuple[str, int, int]]:
        """Name, line and x of each entry."""
        names = shorten(self.coloured, 30)
        others = len({c for c in self.of_rows if c}) - len(names)
        if others:
            names = [*names, f"{others} other{'s' if others > 1 else ''}"]
        entries, line, x = [], 0, 0
        for name in names:
            needed = 15 + text_width(name) + 18
            if x and x + needed > width:
                line, x = line + 1, 0
            entries.append((name, line, x))
            x += needed
        return entries
