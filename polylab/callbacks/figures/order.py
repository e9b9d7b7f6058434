"""The order of tasks: neighbours in the hierarchy, and as little moved as that allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

__all__ = ["NOISE", "cluster_tasks", "is_flat", "tree_order"]

NOISE = 0.005
"""Distances below it are those of a fresh router's initial noise (about 0.0002): no hierarchy."""


def cluster_tasks(similarity: np.ndarray) -> np.ndarray:
    """Average linkage on `1 - similarity`, scipy's form `[tasks - 1, 4]`.

    Raises:
        ValueError: If there are fewer than two tasks.
    """
    if len(similarity) < 2:
        raise ValueError(f"{len(similarity)} task given; a hierarchy needs at least 2.")
    distance = np.clip(1 - similarity, 0, None)
    np.fill_diagonal(distance, 0)
    return linkage(squareform((distance + distance.T) / 2, checks=False), method="average")


def is_flat(tree: np.ndarray) -> bool:
    """Whether there is no hierarchy: all tasks are alike, or all differ by the same."""
    return bool(tree[-1, 2] < NOISE or tree[-1, 2] - tree[0, 2] < 1e-6)


def tree_order(tree: np.ndarray, before: Sequence[int] | None = None) -> list[int]:
    """Tasks from top to bottom: branches stay together, and else near to where they were before.

    A tree leaves open which branch of each fork comes first: here the one whose tasks stood higher
    in the mean. So the pictures of a run can be compared. A flat tree (`is_flat`) moves nothing.

    Args:
        tree: Of `cluster_tasks`.
        before: An order of the same tasks; 0, 1, ... if None.
    """
    n_tasks = len(tree) + 1
    before = [*range(n_tasks)] if before is None else [*before]
    if is_flat(tree):
        return before
    sums = np.empty(2 * n_tasks - 1)
    sums[before] = np.arange(n_tasks)
    sizes = np.concatenate([np.ones(n_tasks), tree[:, 3]])
    forks = tree[:, :2].astype(int)
    for i, (one, other) in enumerate(forks):  # children come before their parents
        sums[n_tasks + i] = sums[one] + sums[other]
    means = sums / sizes
    order: list[int] = []
    open_nodes = [2 * n_tasks - 2]
    while open_nodes:  # no recursion: a tree of 1,600 tasks may be 1,599 forks deep
        node = open_nodes.pop()
        if node < n_tasks:
            order.append(node)
        else:
            open_nodes += sorted(forks[node - n_tasks].tolist(), key=lambda n: -means[n])
    return order
