"""Which tasks route alike: a dendrogram beside the allocations in its order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from polylab.callbacks.figures.allocation import (
    TOP,
    Truth,
    check_names,
    draw_panels,
    panels_header,
    panels_width,
)
from polylab.callbacks.figures.maps import SCALE_WIDTH, draw_scale, row_labels
from polylab.callbacks.figures.style import (
    FONT,
    INK,
    MUTED,
    RULE,
    Rows,
    canvas,
    heading,
    place,
    plain_axis,
    text_width,
)

__all__ = ["cluster_tasks", "draw_hierarchy", "tree_order"]

_TREE = 300  # px
_SCALE = "weight x number of skills:\n0 = not used, 1 = uniform"
# Ends of the distance axis: few, so that figures of one run share them, and never so small that
# the noise of the start looks like a hierarchy.
_ENDS = (0.1, 0.25, 0.5, 0.75, 1.0)
_ALIKE = 1e-6  # distances below it are rounding
_MAX_ORDERED = 400  # above it, the best order of leaves takes too long


def cluster_tasks(similarity: np.ndarray) -> np.ndarray:
    """Average linkage on `1 - similarity`, scipy's form `[tasks - 1, 4]`.

    Raises:
        ValueError: If there are fewer than two tasks.
    """
    if len(similarity) < 2:
        raise ValueError(f"{len(similarity)} task given; a hierarchy needs at least 2.")
    distance = np.clip(1 - similarity, 0, None)
    np.fill_diagonal(distance, 0)
    ordered = len(similarity) <= _MAX_ORDERED
    condensed = squareform((distance + distance.T) / 2, checks=False)
    return linkage(condensed, method="average", optimal_ordering=ordered)


def tree_order(tree: np.ndarray) -> list[int]:
    """Tasks from top to bottom of the drawn tree."""
    return dendrogram(tree, no_plot=True)["leaves"]


def draw_hierarchy(
    tree: np.ndarray,
    relative: np.ndarray,
    *,
    tasks: Sequence[str],
    skills: Sequence[str],
    title: str,
    shown: Sequence[str],
    truth: Truth | None = None,
) -> Figure:
    """Dendrogram of the tasks; their allocations (and true skills) beside it in the same order.

    Args:
        tree: Of `cluster_tasks`.
        relative: `[tasks, skills]`, `w * S`, in the tasks' own order (as `tasks` and `truth`).
        tasks: Row names.
        skills: Column names.
        title: Large.
        shown: Lines that say what is shown (at most 2).
        truth: The true skills.

    Raises:
        ValueError: If the names do not fit the values.
    """
    check_names(relative, tasks, skills)
    order, rows = tree_order(tree), Rows.of(len(tasks))
    names = [tasks[i] for i in order]
    if truth is not None:
        truth = Truth(truth.matrix[order], truth.names)
    left = 14 + _TREE + 6 + text_width(tasks, rows.font)
    top = TOP + panels_header(skills, truth)
    width = max(SCALE_WIDTH, panels_width(skills, truth))
    figure = canvas(left + width + 20, top + rows.height + 58)
    heading(figure, title, shown)
    _draw_tree(figure, tree, rows, top)
    axes = draw_panels(
        figure, (left, top), rows, relative=relative[order], skills=skills, truth=truth
    )
    row_labels(axes, names, rows)
    draw_scale(figure, left, top + rows.height + 16, _SCALE)
    return figure


def _draw_tree(figure: Figure, tree: np.ndarray, rows: Rows, top: int) -> None:
    axes = place(figure, 14, top, _TREE, rows.height)
    drawn = dendrogram(tree, no_plot=True)
    # scipy puts leaf i at 10 i + 5; rows of a map are centred at i
    lines = [
        np.column_stack([d, (np.asarray(i) - 5) / 10])
        for i, d in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    axes.add_collection(LineCollection(lines, colors=INK, linewidths=1.1))
    end = next((e for e in _ENDS if tree[-1, 2] <= e), 1.0)
    axes.set_xlim(end * 1.02, 0)
    axes.set_ylim(rows.count - 0.5, -0.5)
    plain_axis(axes)
    axes.set_yticks([])
    ticks = np.linspace(0, end, 4 if end == 0.75 else 6)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks.round(3)])
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    label = "share of mixing weight not in common"
    if tree[-1, 2] < _ALIKE:
        label = "no hierarchy: all tasks are routed alike"
    axes.set_xlabel(label, color=MUTED, fontsize=FONT)
