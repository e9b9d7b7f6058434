"""Which tasks route alike: a dendrogram beside the allocations in its order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from polylab.callbacks.figures.allocation import Truth, allocation_panels
from polylab.callbacks.figures.order import is_flat, tree_order
from polylab.callbacks.figures.rows import Bands, Rows
from polylab.callbacks.figures.sheet import Panel, Sheet
from polylab.callbacks.figures.style import (
    FINE,
    FONT,
    INK,
    MUTED,
    RULE,
    THIN,
    plain_axis,
)

__all__ = ["draw_hierarchy"]

_TREE = 240  # px
_LOW = 8  # px that a branch needs for lines of its own
# Ends of the distance axis: few, so that figures of one run share them, and never so small that
# the noise of the start looks like a hierarchy.
_ENDS = (0.1, 0.25, 0.5, 0.75, 1.0)


def draw_hierarchy(
    tree: np.ndarray,
    relative: np.ndarray,
    *,
    tasks: Sequence[str],
    skills: Sequence[str],
    title: str,
    shown: Sequence[str],
    truth: Truth | None = None,
    order: Sequence[int] | None = None,
    categories: Sequence[str | None] | None = None,
) -> Figure:
    """Dendrogram of the tasks; their allocations (and true skills) beside it in the same order.

    Args:
        tree: Of `cluster_tasks`.
        relative: `[tasks, skills]`, `w * S`, in the tasks' own order (as `tasks`, `truth` and
            `categories`).
        tasks: Row names.
        skills: Column names.
        title: Large.
        shown: Lines that say what is shown.
        truth: The true skills.
        order: Of the rows, one that `tree_order` gives; that of a first picture if None.
        categories: One name for each task (None = has none), drawn as a strip.

    Raises:
        ValueError: If the names do not fit the values.
    """
    order = tree_order(tree) if order is None else [*order]
    rows, bands = Rows.of(len(tasks)), Bands.of(categories)
    names = [tasks[i] for i in order]
    panels = allocation_panels(
        relative[order], names, rows, skills=skills, truth=truth and truth.ordered(order)
    )
    beside = Panel(_TREE, lambda axes: _draw_tree(axes, tree, rows, order=order))
    lines = [*shown, *rows.words()]
    sheet = Sheet(title, lines, names, rows, bands and bands.ordered(order), beside, all_names=True)
    return sheet.draw(panels)


def _draw_tree(axes: Axes, tree: np.ndarray, rows: Rows, *, order: Sequence[int]) -> None:
    end = next((e for e in _ENDS if tree[-1, 2] <= e), 1.0)
    if not is_flat(tree):
        _draw_forks(axes, tree, rows, order=order)
    axes.set_xlim(end * 1.02, 0)
    axes.set_ylim(rows.drawn - 0.5, -0.5)
    plain_axis(axes)
    axes.set_yticks([])
    ticks = np.linspace(0, end, 4 if end == 0.75 else 6)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks.round(3)])
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    label = "share of mixing weight not in common"
    if is_flat(tree):
        alike = tree[-1, 2] < 0.5
        label = (
            "no hierarchy: all tasks are routed alike"
            if alike
            else ("no hierarchy: no two tasks are alike")
        )
    axes.set_xlabel(label, color=MUTED, fontsize=FONT)


def _draw_forks(axes: Axes, tree: np.ndarray, rows: Rows, *, order: Sequence[int]) -> None:
    """Each fork a line of four corners; on the screen, a branch too low for lines a grey wedge."""
    n_tasks = len(tree) + 1
    top, middle, bottom = (np.empty(2 * n_tasks - 1) for _ in range(3))
    top[order] = middle[order] = bottom[order] = rows.at(np.arange(n_tasks))
    height = np.concatenate([np.zeros(n_tasks), tree[:, 2]])
    lines, wedges = [], []
    for i, (one, other) in enumerate(tree[:, :2].astype(int), start=n_tasks):
        pair = [one, other]
        top[i], middle[i], bottom[i] = top[pair].min(), middle[pair].mean(), bottom[pair].max()
        (x, z), (y, v) = height[pair], middle[pair]
        lines.append([(x, y), (height[i], y), (height[i], v), (z, v)])
        wedges.append([(height[i], middle[i]), (0, top[i]), (0, bottom[i])])
    is_low = (bottom - top)[n_tasks:] * rows.pitch < _LOW
    parent = np.full(2 * n_tasks - 1, -1)
    for i, pair in enumerate(tree[:, :2].astype(int)):
        parent[pair] = i
    outermost = is_low & ~np.append(is_low, False)[parent[n_tasks:]]
    if rows.pitch * 2 >= _LOW:
        axes.add_collection(LineCollection(lines, colors=INK, linewidths=1.1))
        return
    seen = [line for line, low in zip(lines, is_low, strict=True) if not low]
    folded = [wedge for wedge, outer in zip(wedges, outermost, strict=True) if outer]
    axes.add_collection(PolyCollection(folded, facecolors=MUTED, linewidths=0, gid=THIN))
    axes.add_collection(LineCollection(seen, colors=INK, linewidths=0.8, gid=THIN))
    fine = {"linewidths": 0.2, "visible": False, "gid": FINE}
    axes.add_collection(LineCollection(lines, colors=INK, **fine))
