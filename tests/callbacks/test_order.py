"""The order of tasks: that of the hierarchy, and as near as it allows to the one before."""

from itertools import product

import numpy as np
import pytest

from polylab.callbacks.figures import cluster_tasks, tree_order
from polylab.callbacks.figures.order import NOISE, is_flat

T = 7


def similarity(groups, *, near=0.9, far=0.2):
    groups = np.asarray(groups)
    alike = np.where(groups[:, None] == groups, near, far)
    np.fill_diagonal(alike, 1.0)
    return alike


def allowed(tree):
    """Every order that flipping the forks of a tree gives."""
    orders = {i: [[i]] for i in range(len(tree) + 1)}
    for i, (one, other) in enumerate(tree[:, :2].astype(int), start=len(tree) + 1):
        pairs = [*product(orders[one], orders[other])]
        orders[i] = [a + b for a, b in pairs] + [b + a for a, b in pairs]
    return orders[2 * len(tree)]


@pytest.fixture
def tree():
    features = np.random.default_rng(3).uniform(size=(T, 4))
    return cluster_tasks(1 - np.abs(features[:, None] - features).mean(-1))


def test_order_is_one_of_the_trees(tree):
    orders = allowed(tree)
    assert len(orders) == 2 ** (T - 1)
    for seed in range(20):
        before = np.random.default_rng(seed).permutation(T).tolist()
        assert tree_order(tree, before) in orders


def test_no_flip_of_a_single_fork_brings_tasks_nearer(tree):
    """Of both orders of a fork, the sum of squared distances to the places before is smaller."""
    before = [4, 2, 6, 0, 1, 5, 3]
    rank = np.argsort(before)
    found = tree_order(tree, before)
    assert found in allowed(tree)

    def cost(order):
        return sum((rank[task] - place) ** 2 for place, task in enumerate(order))

    for one, other in tree[:, :2].astype(int):
        members = [leaves(tree, node) for node in (one, other)]
        start = min(found.index(task) for group in members for task in group)
        block = found[start : start + sum(map(len, members))]
        first, second = ([task for task in block if task in group] for group in members)
        flipped = first + second if block[: len(first)] != first else second + first
        assert cost(found) <= cost(found[:start] + flipped + found[start + len(block) :])


def leaves(tree, node):
    if node <= len(tree):
        return {node}
    one, other = tree[node - len(tree) - 1, :2].astype(int)
    return leaves(tree, one) | leaves(tree, other)


def test_an_order_that_the_tree_allows_stays(tree):
    for order in allowed(tree)[::7]:
        assert tree_order(tree, order) == order


def test_groups_stand_together_in_the_order_before():
    tree = cluster_tasks(similarity([0, 1, 1, 0, 1, 0, 1]))
    assert tree_order(tree) == [0, 3, 5, 1, 2, 4, 6]
    assert tree_order(tree, [6, 5, 4, 3, 2, 1, 0]) == [6, 4, 2, 1, 5, 3, 0]


@pytest.mark.parametrize("near", [1.0, 0.0, 1 - NOISE / 2])
def test_without_a_hierarchy_nothing_moves(near):
    alike = similarity([0] * T, near=near)
    before = [2, 0, 1, 6, 3, 5, 4]
    tree = cluster_tasks(alike)
    assert is_flat(tree)
    assert tree_order(tree, before) == before


def test_a_deep_tree_needs_no_recursion():
    places = 1.5 ** np.arange(1600) / 1.5**1600
    tree = cluster_tasks(1 - np.abs(places[:, None] - places))
    order = tree_order(tree)
    assert sorted(order) == [*range(1600)]
