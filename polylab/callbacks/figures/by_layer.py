"""Layers x skills: how evenly each layer uses its skills, and how sharply it routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from polylab.callbacks.figures.maps import USED, column_width, draw_cells
from polylab.callbacks.figures.rows import Rows
from polylab.callbacks.figures.sheet import Panel, Sheet, check_names
from polylab.callbacks.figures.style import ACCENT, DPI, RULE, plain_axis

__all__ = ["draw_by_layer", "short_layer_names"]

_USAGE = replace(USED, words="usage x number of skills:\n0 = not used, 1 = all alike")
_ENTROPY, _RANK_WORDS = 170, 200  # px


def draw_by_layer(
    relative: np.ndarray,
    entropy: Sequence[float],
    *,
    layers: Sequence[str],
    title: str,
    shown: Sequence[str],
    columns: Sequence[str] | None = None,
    entropy_of: str = "routing entropy",
) -> Figure:
    """Heatmap of each layer's usage x S, sorted from most to least used, and its routing entropy.

    Skill k of one layer is not skill k of another, so the columns are ranks.

    Args:
        relative: `[layers, ranks]`, 1 = all skills used alike.
        entropy: Of each layer, 0 to 1.
        layers: Row names.
        title: Large.
        shown: Lines that say what is shown.
        columns: Their names if not 1, 2, ...
        entropy_of: Words for it.

    Raises:
        ValueError: If the names do not fit the values.
    """
    ranks = columns or [str(k + 1) for k in range(relative.shape[1])]
    check_names(relative, layers, ranks)
    rows = Rows.of(len(layers))
    width = column_width(len(ranks)) * len(ranks)
    beside = max(width, _RANK_WORDS)

    def draw_usage(axes: Axes) -> None:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0, box.width * width / beside, box.height))
        draw_cells(axes, relative, rows, scale=_USAGE)
        every = max(1, -(-14 // column_width(len(ranks))))
        axes.xaxis.tick_top()
        axes.set_xticks(range(0, len(ranks), every), ranks[::every])

    panels = [
        Panel(beside, draw_usage, 18, "rank of the skill within the layer", _USAGE),
        Panel(_ENTROPY, lambda axes: _draw_entropy(axes, entropy, rows), 18,
              f"{entropy_of} (1 = uniform)"),
    ]  # fmt: skip
    return Sheet(title, [*shown, *rows.words("layers")], layers, rows).draw(panels)


def _draw_entropy(axes: Axes, entropy: Sequence[float], rows: Rows) -> None:
    plain_axis(axes)
    bars = [[(0, i), (e, i)] for i, e in enumerate(rows.fold(np.asarray(entropy, dtype=float)))]
    thick = max(0.62 * rows.pitch * 72 / DPI, 0.5)
    axes.add_collection(LineCollection(bars, colors=ACCENT, linewidths=thick, capstyle="butt"))
    axes.set_xlim(0, 1)
    axes.set_ylim(rows.drawn - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def short_layer_names(layers: Sequence[str]) -> list[str]:
    """Layer names without the dotted parts that all of them begin or end with.

    Words that only announce a number go as well: `encoder.block.3.layer.0.SelfAttention.q`
    becomes `encoder.3.0.SelfAttention.q`, while no two layers become equal.
    """
    parts = [name.split(".") for name in layers]
    while len(parts) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    thin = [
        ".".join(
            word
            for word, following in zip(p, [*p[1:], ""], strict=True)
            if not (word in ("block", "layer", "layers", "h") and following.isdigit())
        )
        for p in parts
    ]
    return thin if len(set(thin)) == len(thin) else [".".join(p) for p in parts]
