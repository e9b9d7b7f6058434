"""Tasks x tasks: how alike they route, or how well their gradients agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import (
    Scale,
    column_labels,
    draw_cells,
    header_height,
    share_scale,
)
from polylab.callbacks.figures.rows import BAND, Bands, Rows, Size
from polylab.callbacks.figures.sheet import Panel, Sheet, check_names
from polylab.callbacks.figures.style import DIVERGING

__all__ = ["draw_task_matrix"]

_SIDE = Size(largest=34, comfortable=640, limit=640, smallest=2)
_SHARE = share_scale("share in common:\n0 = nothing, 1 = all")
_SIGNED = Scale(
    "1 = agree, 0 = unrelated,\n\N{MINUS SIGN}1 = against each other",
    DIVERGING,
    -1.0,
    1.0,
    (-1, -0.5, 0, 0.5, 1),
)


def draw_task_matrix(
    values: np.ndarray,
    *,
    tasks: Sequence[str],
    title: str,
    shown: Sequence[str],
    scale: Literal["share", "signed"] = "share",
    order: Sequence[int] | None = None,
    categories: Sequence[str | None] | None = None,
) -> Figure:
    """Heatmap of a number for every pair of tasks, on a fixed scale.

    Args:
        values: `[tasks, tasks]`, NaN = unknown. Of many tasks neighbouring ones are drawn
            together: the mean of their pairs.
        tasks: Names.
        title: Large.
        shown: Lines that say what is shown.
        scale: `share`: 0 to 1; `signed`: -1 to 1.
        order: Of rows and columns; as given if None.
        categories: One name for each task (None = has none), drawn as a strip.

    Raises:
        ValueError: If the names or the order do not fit the values.
    """
    check_names(values, tasks, tasks)
    order = check_order(order, len(tasks))
    rows = Rows.of(len(tasks), _SIDE)
    names = [tasks[i] for i in order]
    bands = Bands.of(categories)
    bands = bands and bands.ordered(order)
    folded = rows.fold(rows.fold(values[np.ix_(order, order)]).T).T
    meaning = {"share": _SHARE, "signed": _SIGNED}[scale]
    plain = Rows(rows.drawn, 1, rows.height)

    def draw(axes: Axes) -> None:
        draw_cells(axes, folded, plain, scale=meaning)
        column_labels(axes, names[:: rows.together], gap=BAND + 9 if bands else 5)
        if bands:
            strip = axes.inset_axes((0, 1 + 4 / rows.height, 1, BAND / rows.height))
            bands.draw(strip, rows, across=True)

    header = header_height(names[:: rows.together]) + (BAND + 4 if bands else 0)
    sheet = Sheet(title, [*shown, *rows.words()], names, rows, bands, all_names=True)
    return sheet.draw([Panel(rows.height, draw, header, scale=meaning)])


def check_order(order: Sequence[int] | None, count: int) -> list[int]:
    """The order, or 0, 1, ...

    Raises:
        ValueError: If it does not hold each of them once.
    """
    if order is None:
        return [*range(count)]
    if sorted(order) != [*range(count)]:
        raise ValueError(f"order={[*order]} must hold each of 0 to {count - 1} once.")
    return [*order]
