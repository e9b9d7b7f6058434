"""Tasks x layers: how far each task's routing has moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import column_width, share_scale
from polylab.callbacks.figures.rows import Bands, Rows
from polylab.callbacks.figures.sheet import Sheet, check_names, map_panel

__all__ = ["draw_change"]

MOST_COLUMNS = 100
_SCALE = share_scale("share of mixing weight that moved:\n0 = none, 1 = all")


def draw_change(
    moved: np.ndarray,
    *,
    tasks: Sequence[str],
    layers: Sequence[str],
    title: str,
    shown: Sequence[str],
    categories: Sequence[str | None] | None = None,
) -> Figure:
    """Heatmap of a share of each task's mixing weight in each layer, on a fixed scale.

    Above `MOST_COLUMNS` layers neighbouring ones are drawn together, as their mean.

    Args:
        moved: `[tasks, layers]`, 0 to 1, NaN = unknown.
        tasks: Row names.
        layers: Column names, in model order.
        title: Large.
        shown: Lines that say what is shown.
        categories: One name for each task (None = has none), drawn as a strip.

    Raises:
        ValueError: If the names do not fit the values.
    """
    check_names(moved, tasks, layers)
    rows, together = Rows.of(len(tasks)), -(-len(layers) // MOST_COLUMNS)
    columns = Rows(len(layers), together, 1)
    names = layers[::together]
    lines = [*shown, *rows.words(), *columns.words("layers", "column")]
    width = max(column_width(len(names), largest=20, limit=560) * len(names), 60)
    panel = map_panel(columns.fold(moved.T).T, names, rows, scale=_SCALE, width=width)
    return Sheet(title, lines, tasks, rows, Bands.of(categories)).draw([panel])
