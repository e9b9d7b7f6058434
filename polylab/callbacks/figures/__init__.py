"""Figures of a routing, drawn with matplotlib's object interface (no display, no global state)."""

from polylab.callbacks.figures.allocation import Truth, draw_allocation
from polylab.callbacks.figures.by_layer import draw_by_layer
from polylab.callbacks.figures.change import draw_change
from polylab.callbacks.figures.hierarchy import draw_hierarchy
from polylab.callbacks.figures.knockout import draw_knockout
from polylab.callbacks.figures.layers import draw_layers
from polylab.callbacks.figures.matrix import draw_task_matrix
from polylab.callbacks.figures.order import cluster_tasks, tree_order
from polylab.callbacks.figures.style import pixels, save_vector

__all__ = [
    "Truth",
    "cluster_tasks",
    "draw_allocation",
    "draw_by_layer",
    "draw_change",
    "draw_hierarchy",
    "draw_knockout",
    "draw_layers",
    "draw_task_matrix",
    "pixels",
    "save_vector",
    "tree_order",
]
