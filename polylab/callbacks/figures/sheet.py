"""The one layout of figures with named rows: names, categories, panels, scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import (
    SCALE_HEIGHT,
    SCALE_WIDTH,
    Scale,
    column_labels,
    draw_cells,
    header_height,
)
from polylab.callbacks.figures.rows import BAND, Bands, Rows, label_rows
from polylab.callbacks.figures.style import (
    FONT,
    MUTED,
    canvas,
    fit_width,
    heading,
    place,
    text_width,
    widest,
)

__all__ = ["Panel", "Sheet", "check_names", "map_panel", "wrap"]

_MARGIN, _GAP = 14, 22


@dataclass(frozen=True)
class Panel:
    """What stands beside the names of the rows.

    Args:
        width: In pixels.
        draw: Fills its axes.
        header: Pixels above it that `draw` uses.
        above: Words above the header.
        scale: Drawn under the figure, once for all panels that share it.
    """

    width: int
    draw: Callable[[Axes], None]
    header: int = 0
    above: str = ""
    scale: Scale | None = None


@dataclass(frozen=True)
class Sheet:
    """A figure of rows.

    Args:
        title: Large.
        shown: Lines that say what is shown.
        names: Of the rows.
        rows: As drawn.
        bands: Categories of the rows.
        beside: Left of the names, such as a tree.
        all_names: The vector version has the names of all rows.
    """

    title: str
    shown: Sequence[str]
    names: Sequence[str]
    rows: Rows
    bands: Bands | None = None
    beside: Panel | None = None
    all_names: bool = False

    def draw(self, panels: Sequence[Panel]) -> Figure:
        """The figure; its axes begin with those of `beside` and the panels in their order."""
        scales = [*dict.fromkeys(p.scale for p in panels if p.scale is not None)]
        left = self._left()
        inner = sum(p.width for p in panels) + _GAP * (len(panels) - 1)
        width = fit_width(self.title, left + max(inner, SCALE_WIDTH if scales else 0) + 20)
        lines = wrap(self.shown, width - 2 * _MARGIN)
        header = max(p.header + (20 if p.above else 0) for p in panels)
        top = 42 + 16 * max(2, len(lines)) + header
        under = top + self.rows.height + 16
        legend = self.bands.legend_height(width - left - 20) if self.bands else 0
        below = max(SCALE_HEIGHT * len(scales) + legend, 42)
        figure = canvas(width, under + below)
        heading(figure, self.title, lines)
        self._draw_panels(figure, panels, left, top)
        for i, scale in enumerate(scales):
            scale.draw(figure, left, under + SCALE_HEIGHT * i)
        if self.bands:
            self.bands.draw_legend(
                figure, left, under + SCALE_HEIGHT * len(scales), width - left - 20
            )
        return figure

    def _left(self) -> int:
        """Where the first panel begins."""
        left = _MARGIN + widest(self.names, self.rows.font)
        left += self.beside.width + 6 if self.beside else 0
        return left + (BAND + 4 if self.bands else 0)

    def _draw_panels(self, figure: Figure, panels: Sequence[Panel], left: int, top: int) -> None:
        height = self.rows.height
        if self.beside:
            self.beside.draw(place(figure, _MARGIN, top, self.beside.width, height))
        first, x = None, left
        for panel in panels:
            axes = place(figure, x, top, panel.width, height)
            panel.draw(axes)
            first, x = first or axes, x + panel.width + _GAP
            if panel.above:
                y = 1 + (panel.header + 7) / height
                style = {"va": "baseline", "color": MUTED, "fontsize": FONT}
                axes.text(0, y, panel.above, transform=axes.transAxes, **style)
        assert first is not None
        gap = 5 + (BAND + 4 if self.bands else 0)
        label_rows(first, self.names, self.rows, gap=gap, fine=self.all_names)
        if self.bands:
            self.bands.draw(place(figure, left - BAND - 4, top, BAND, height), self.rows)


def map_panel(
    values: np.ndarray,
    columns: Sequence[str],
    rows: Rows,
    *,
    scale: Scale,
    width: int,
    above: str = "",
) -> Panel:
    """A map of `values` `[things, columns]` under the names of its columns."""

    def draw(axes: Axes) -> None:
        draw_cells(axes, values, rows, scale=scale)
        column_labels(axes, columns)

    return Panel(width, draw, header_height(columns), above, scale)


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


def wrap(lines: Sequence[str], width: int) -> list[str]:
    """The lines, those wider than `width` px broken between words."""
    broken: list[str] = []
    for line in lines:
        so_far = ""
        for word in line.split(" "):
            longer = f"{so_far} {word}" if so_far else word
            if so_far and text_width(longer) > width:
                broken.append(so_far)
                longer = word
            so_far = longer
        broken.append(so_far)
    return broken
