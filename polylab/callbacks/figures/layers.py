"""Small maps of single layers and heads, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import SCALE_HEIGHT, USED, draw_cells
from polylab.callbacks.figures.rows import BAND, Bands, Rows, Size, label_rows
from polylab.callbacks.figures.sheet import wrap
from polylab.callbacks.figures.style import (
    DPI,
    INK,
    canvas,
    fit_width,
    heading,
    place,
    shorten,
    text_width,
    widest,
)

__all__ = ["MOST_HEADS", "MOST_PANELS", "draw_layers"]

MOST_PANELS = 24
MOST_HEADS = 8  # side by side
_GAP = 8  # px
_FONT, _LINE = 7.0, 11
_SIZE = Size(largest=14, comfortable=240, limit=270)


def draw_layers(
    maps: Mapping[str, Mapping[str, np.ndarray]],
    *,
    tasks: Sequence[str],
    title: str,
    shown: Sequence[str],
    categories: Sequence[str | None] | None = None,
) -> Figure:
    """A grid of heatmaps of `w * S` with the same rows; the heads of a layer side by side.

    Args:
        maps: By layer and by head (any words, empty for a layer's only map), each
            `[tasks, skills]`, 1 = uniform.
        tasks: Row names.
        title: Large.
        shown: Lines that say what is shown.
        categories: One name for each task (None = has none), drawn as a strip.

    Raises:
        ValueError: If a map does not fit the tasks.
    """
    for layer, heads in maps.items():
        for name, values in heads.items():
            if len(values) != len(tasks):
                raise ValueError(
                    f"map {name!r} of layer {layer!r} has shape {list(values.shape)} and there are "
                    f"{len(tasks)} tasks; give one row per task."
                )
    rows, bands = Rows.of(len(tasks), _SIZE), Bands.of(categories)
    grid = _Grid.of(maps)
    band = BAND + 4 if bands else 0
    left = 14 + widest(tasks, rows.font) + band
    width = fit_width(title, left + grid.width + 14)
    lines = wrap([*shown, *rows.words()], width - 28)
    top = 40 + 16 * max(2, len(lines))
    step = grid.header + rows.height + 10
    under = top + step * grid.lines + 8
    legend = bands.legend_height(width - left - 20) if bands else 0
    figure = canvas(width, under + SCALE_HEIGHT + legend)
    heading(figure, title, lines)
    for layer, head, down, x in grid.places():
        y = top + down * step + grid.header
        axes = place(figure, left + x, y, grid.cell, rows.height)
        draw_cells(axes, maps[layer][head], rows, scale=USED)
        _name(axes, head, grid.names[layer] if head == next(iter(maps[layer])) else [])
        if x == 0:
            label_rows(axes, tasks, rows, gap=5 + band)
            if bands:
                bands.draw(place(figure, left - band, y, BAND, rows.height), rows)
    USED.draw(figure, left, under)
    if bands:
        bands.draw_legend(figure, left, under + SCALE_HEIGHT, width - left - 20)
    return figure


@dataclass(frozen=True)
class _Grid:
    """Where the maps stand.

    Args:
        maps: Heads of each layer.
        cell: Pixels of a map.
        across: Layers in a line.
        names: Lines of words above each layer.
    """

    maps: Mapping[str, Sequence[str]]
    cell: int
    across: int
    names: Mapping[str, Sequence[str]]

    @staticmethod
    def of(maps: Mapping[str, Mapping[str, np.ndarray]]) -> _Grid:
        most = max(map(len, maps.values()))
        cell, in_line = (106, 6) if most == 1 else (78, MOST_HEADS)
        room = most * (cell + _GAP) - _GAP
        names = {layer: _break(layer, room) for layer in maps}
        return _Grid({n: [*heads] for n, heads in maps.items()}, cell, in_line // most or 1, names)

    @property
    def most(self) -> int:
        return max(map(len, self.maps.values()))

    @property
    def lines(self) -> int:
        return -(-len(self.maps) // self.across)

    @property
    def width(self) -> int:
        return min(self.across, len(self.maps)) * self.most * (self.cell + _GAP) - _GAP

    @property
    def header(self) -> int:
        """Pixels above a map."""
        named = max(map(len, self.names.values())) + (self.most > 1)
        return _LINE * named + 8

    def places(self) -> Iterator[tuple[str, str, int, int]]:
        """Layer, head, line and x of each map."""
        for i, (layer, heads) in enumerate(self.maps.items()):
            down, right = divmod(i, self.across)
            for k, head in enumerate(heads):
                yield layer, head, down, (right * self.most + k) * (self.cell + _GAP)


def _name(axes: Axes, head: str, layer: Sequence[str]) -> None:
    style = {"ha": "left", "va": "bottom", "color": INK, "fontsize": _FONT, "parse_math": False}
    y = 1 + 4 / axes.get_window_extent().height
    lines = [*layer, head] if head else layer
    axes.text(0, y, "\n".join(lines), transform=axes.transAxes, linespacing=1.15, **style)


def _break(name: str, room: int) -> list[str]:
    """Few lines of at most `room` px, filled from the end; a part too wide loses its middle."""
    lines = [""]
    for part in reversed(name.replace(".", ".\0").replace(" ", " \0").split("\0")):
        if lines[0] and text_width(part + lines[0], _FONT) > room:
            lines.insert(0, "")
        lines[0] = part + lines[0]
    fits = int(room / (_FONT * DPI / 72 * 0.65))
    wide = [text_width(line, _FONT) > room for line in lines]
    short = zip(lines, shorten(lines, fits), wide, strict=True)
    return [cut if too_wide else line.rstrip() for line, cut, too_wide in short]
