"""Small maps of single layers and heads, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import SCALE_HEIGHT, USED, draw_cells
from polylab.callbacks.figures.rows import BAND, Bands, Rows, Size, label_rows
from polylab.callbacks.figures.sheet import wrap
from polylab.callbacks.figures.style import (
    DPI,
    INK,
    MIN_WIDTH,
    canvas,
    heading,
    place,
    shorten,
    text_width,
    widest,
)

__all__ = ["ACROSS", "MOST_PANELS", "draw_layers"]

MOST_PANELS = 24
ACROSS = 6
_WIDTH, _GAP = 106, 8  # px
_FONT, _LINE = 7.0, 11
_SIZE = Size(largest=14, comfortable=240, limit=270)


def draw_layers(
    maps: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    tasks: Sequence[str],
    title: str,
    shown: Sequence[str],
    across: int = ACROSS,
    categories: Sequence[str | None] | None = None,
) -> Figure:
    """A grid of heatmaps of `w * S` with the same rows, each with its name above.

    Args:
        maps: Each `[tasks, skills]`, 1 = uniform.
        names: Of the maps; broken at dots and spaces where they are long.
        tasks: Row names.
        title: Large.
        shown: Lines that say what is shown.
        across: Maps in a line, at most 6.
        categories: One name for each task (None = has none), drawn as a strip.

    Raises:
        ValueError: If the names do not fit the maps, or a map not the tasks.
    """
    if len(maps) != len(names) or any(len(one) != len(tasks) for one in maps):
        raise ValueError(
            f"{len(names)} names and {len(tasks)} tasks for maps of shapes "
            f"{[list(one.shape) for one in maps]}; give a name per map and a task per row."
        )
    rows, bands = Rows.of(len(tasks), _SIZE), Bands.of(categories)
    broken = [_break(name) for name in names]
    header = _LINE * max(map(len, broken)) + 8
    left = 14 + widest(tasks, rows.font) + (BAND + 4 if bands else 0)
    width = max(MIN_WIDTH, left + (_WIDTH + _GAP) * min(across, len(maps)) + 10)
    lines = wrap([*shown, *rows.words()], width - 28)
    top = 34 + 16 * max(2, len(lines)) + 6
    step = header + rows.height + 8
    under = top + step * -(-len(maps) // across) + 8
    legend = bands.legend_height(width - left - 20) if bands else 0
    figure = canvas(width, under + SCALE_HEIGHT + legend)
    heading(figure, title, lines)
    for i, (values, name) in enumerate(zip(maps, broken, strict=True)):
        down, right = divmod(i, across)
        x, y = left + right * (_WIDTH + _GAP), top + down * step + header
        axes = place(figure, x, y, _WIDTH, rows.height)
        draw_cells(axes, values, rows, scale=USED)
        _name(axes, name)
        if right == 0:
            label_rows(axes, tasks, rows, fine=i == 0, gap=5 + (BAND + 4 if bands else 0))
            if bands:
                bands.draw(place(figure, left - BAND - 4, y, BAND, rows.height), rows)
    USED.draw(figure, left, under)
    if bands:
        bands.draw_legend(figure, left, under + SCALE_HEIGHT, width - left - 20)
    return figure


def _name(axes: Axes, lines: Sequence[str]) -> None:
    style = {"ha": "left", "va": "bottom", "color": INK, "fontsize": _FONT, "parse_math": False}
    y = 1 + 4 / axes.get_window_extent().height
    axes.text(0, y, "\n".join(lines), transform=axes.transAxes, linespacing=1.15, **style)


def _break(name: str) -> list[str]:
    """Few lines that fit above a map, filled from the end; a part too wide loses its middle."""
    lines = [""]
    for part in reversed(name.replace(".", ".\0").replace(" ", " \0").split("\0")):
        if lines[0] and text_width(part + lines[0], _FONT) > _WIDTH:
            lines.insert(0, "")
        lines[0] = part + lines[0]
    fits = int(_WIDTH / (_FONT * DPI / 72 * 0.65))
    wide = [text_width(line, _FONT) > _WIDTH for line in lines]
    short = zip(lines, shorten(lines, fits), wide, strict=True)
    return [cut if too_wide else line.rstrip() for line, cut, too_wide in short]
