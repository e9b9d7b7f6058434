"""Figures of a routing, drawn with matplotlib's object interface (no display, no global state)."""

from polylab.callbacks.figures.allocation import Truth, draw_allocation
from polylab.callbacks.figures.by_layer import draw_by_layer
from polylab.callbacks.figures.hierarchy import cluster_tasks, draw_hierarchy, tree_order
from polylab.callbacks.figures.style import pixels

__all__ = [
    "Truth",
    "cluster_tasks",
    "draw_allocation",
    "draw_by_layer",
    "draw_hierarchy",
    "pixels",
    "tree_order",
]
