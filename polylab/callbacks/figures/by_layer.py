"""Layers x skills: how evenly each layer uses its skills, and how sharply it routes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from polylab.callbacks.figures.allocation import TOP, check_names
from polylab.callbacks.figures.maps import (
    SCALE_WIDTH,
    column_width,
    draw_relative,
    draw_scale,
    row_labels,
)
from polylab.callbacks.figures.style import (
    ACCENT,
    DPI,
    FONT,
    MUTED,
    RULE,
    Rows,
    canvas,
    heading,
    place,
    plain_axis,
    text_width,
)

__all__ = ["draw_by_layer", "short_layer_names"]

_SCALE = "usage x number of skills:\n0 = not used, 1 = all alike"
_HEADER = 46
_ENTROPY = 170  # px
_RANK_WORDS = 200  # px of the words above the ranks


def draw_by_layer(
    relative: np.ndarray,
    entropy: Sequence[float],
    *,
    layers: Sequence[str],
    title: str,
    shown: Sequence[str],
) -> Figure:
    """Heatmap of each layer's usage x S, sorted from most to least used, and its routing entropy.

    Skill k of one layer is not skill k of another, so the columns are ranks.

    Args:
        relative: `[layers, ranks]`, 1 = all skills used alike.
        entropy: Of each layer, 0 to 1.
        layers: Row names.
        title: Large.
        shown: Lines that say what is shown (at most 2).

    Raises:
        ValueError: If the names do not fit the values.
    """
    ranks = [str(k + 1) for k in range(relative.shape[1])]
    check_names(relative, layers, ranks)
    rows, names = Rows.of(len(layers)), short_layer_names(layers)
    left = 14 + text_width(names, rows.font)
    wide, top = column_width(len(ranks)) * len(ranks), TOP + _HEADER
    beside = max(wide, _RANK_WORDS) + 22
    width = max(SCALE_WIDTH, beside + _ENTROPY)
    figure = canvas(left + width + 20, top + rows.height + 58)
    heading(figure, title, shown)
    axes = place(figure, left, top, wide, rows.height)
    draw_relative(axes, relative, rows)
    every = max(1, -(-14 // column_width(len(ranks))))
    axes.xaxis.tick_top()
    axes.set_xticks(range(0, len(ranks), every), ranks[::every])
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("rank of the skill within the layer", loc="left", color=MUTED, fontsize=FONT)
    row_labels(axes, names, rows)
    _draw_entropy(figure, (left + beside, top), entropy, rows)
    draw_scale(figure, left, top + rows.height + 16, _SCALE)
    return figure


def _draw_entropy(
    figure: Figure, corner: tuple[int, int], entropy: Sequence[float], rows: Rows
) -> None:
    axes = place(figure, *corner, _ENTROPY, rows.height)
    plain_axis(axes)
    bars = [[(0, i), (e, i)] for i, e in enumerate(entropy)]
    thick = 0.62 * rows.height / rows.count * 72 / DPI
    axes.add_collection(LineCollection(bars, colors=ACCENT, linewidths=thick, capstyle="butt"))
    axes.set_xlim(0, 1)
    axes.set_ylim(rows.count - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("routing entropy (1 = uniform)", loc="left", color=MUTED, fontsize=FONT)


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
