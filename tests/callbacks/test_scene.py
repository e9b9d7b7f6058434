"""Scenes: rows and columns that stay near to where they were, and what is left out."""

import numpy as np
import pytest
import torch

from polylab.callbacks.figures import Truth
from polylab.callbacks.routers import Routers
from polylab.callbacks.scene import Scene, Start
from polylab.callbacks.seen import Allocations
from polylab.callbacks.subject import Subject
from polylab.poly.statistics import allocation_change
from tests.callbacks.test_figures import column_names, row_names, words

T, S = 6, 4
NAMES = ["e", "b", "d", "a", "f", "c"]


def layers(*, seed=0, n_layers=3, n_splits=2, sharp=2.0, n_tasks=T):
    draw = torch.Generator().manual_seed(seed)
    shape = n_tasks, n_splits, S
    return {
        f"block.{i}.q": (sharp * torch.randn(shape, generator=draw)).softmax(-1)
        for i in range(n_layers)
    }


def subject_of(weights, *, task_ids=None, **more):
    task_ids = task_ids or [*range(T)]
    routers = Routers({name: name for name in weights})
    seen = Allocations(weights, {}, task_ids)
    return Subject.of(seen, routers, tasks=[NAMES[i] for i in task_ids], **more)


def rows_of(scene):
    return row_names(scene.allocation().axes[0])


class TestOrder:
    def test_every_map_of_tasks_has_the_rows_of_the_hierarchy(self):
        start = Start(subject_of(layers(seed=1)), "the start")
        scene = Scene(subject_of(layers()), "now", start=start)
        figures = {name: draw() for name, draw in scene.figures().items()}
        assert [*figures] == [
            "allocation", "by_layer", "task_hierarchy", "task_similarity", "change", "layers"
        ]  # fmt: skip
        order = rows_of(scene)
        assert sorted(order) == sorted(NAMES)
        assert order != sorted(NAMES)
        assert row_names(figures["task_hierarchy"].axes[1]) == order
        similar = figures["task_similarity"].axes[0]
        assert row_names(similar) == column_names(similar) == order
        assert row_names(figures["change"].axes[0]) == order
        assert row_names(figures["layers"].axes[0]) == order
        assert [scene._subject.tasks[i] for i in scene.places.rows] == order

    def test_a_fresh_router_has_the_given_order(self):
        weights = {n: 0.25 + 1e-4 * (w - 0.25) for n, w in layers().items()}
        assert rows_of(Scene(subject_of(weights), "now")) == sorted(NAMES)
        kinds = {"f": ("first",), "b": ("first",), "a": ("second",)}
        scene = Scene(subject_of(weights, categories=kinds), "now")
        assert rows_of(scene) == ["b", "f", "a", "c", "d", "e"]

    def test_the_same_routing_moves_neither_rows_nor_columns(self):
        before = Scene(subject_of(layers(seed=1)), "then").places
        first = Scene(subject_of(layers()), "now", before=before)
        again = Scene(subject_of(layers()), "later", before=first.places)
        assert again.places.rows == first.places.rows
        np.testing.assert_array_equal(again.places.relative, first.places.relative)
        assert first.places.rows != Scene(subject_of(layers()), "now").places.rows

    def test_columns_follow_the_picture_before(self):
        now = layers()
        first = Scene(subject_of(now), "then")
        turned = {name: w[..., [2, 0, 3, 1]] for name, w in now.items()}
        second = Scene(subject_of(turned), "now", before=first.places)
        np.testing.assert_allclose(second.places.relative, first.places.relative, atol=1e-5)

    def test_columns_follow_the_true_skills(self):
        truth = np.eye(T, 3, dtype=bool) | np.eye(T, 3, -3, dtype=bool)
        weights = torch.full((T, 1, S), 0.1)
        for skill, column in enumerate([3, 0, 2]):
            weights[torch.from_numpy(truth[:, skill]), 0, column] = 0.7
        scene = Scene(subject_of({"q": weights}, truth=Truth(truth, [*"xyz"])), "now")
        figure = scene.allocation()
        assert column_names(figure.axes[0]) == ["skill 3", "skill 0", "skill 2", "skill 1"]
        assert "columns stand in the order of the true skills that they match best" in words(figure)

    def test_other_tasks_than_before(self):
        """An input router has rows only of tasks that were seen."""
        before = Scene(subject_of(layers(n_tasks=4), task_ids=[5, 0, 2, 1]), "then").places
        scene = Scene(subject_of(layers()), "now", before=before)
        assert sorted(scene.places.rows) == [*range(T)]


class TestChange:
    def test_values_are_the_moved_share(self):
        now, then = layers(), layers(seed=1)
        scene = Scene(subject_of(now), "now", start=Start(subject_of(then), "step 3"))
        figure = scene.change()
        drawn = figure.axes[0].images[0].get_array()
        assert drawn.mean() == pytest.approx(allocation_change(now, then))
        rows, name = scene.places.rows, "block.1.q"
        moved = (now[name] - then[name]).abs().sum(-1).mean(1) / 2
        np.testing.assert_allclose(drawn[:, 1], moved[rows], rtol=1e-5)
        assert "share of a task's mixing weight that has moved since step 3, mean of 2 heads" in (
            words(figure)
        )

    def test_tasks_that_were_not_seen_then_are_unknown(self):
        then = subject_of(layers(n_tasks=4), task_ids=[5, 0, 2, 1])
        scene = Scene(subject_of(layers()), "now", start=Start(then, "then"))
        drawn = scene._moved(then)
        assert np.isnan(drawn).all(1).tolist() == [False, False, False, True, True, False]

    def test_without_a_start_there_is_none(self):
        scene = Scene(subject_of(layers()), "now")
        assert "change" not in scene.figures()
        with pytest.raises(ValueError, match=r"no earlier allocation is known; give start="):
            scene.change()


class TestLeftOut:
    def test_one_task(self):
        scene = Scene(subject_of(layers(n_tasks=1), task_ids=[2]), "now")
        assert [*scene.figures()] == ["allocation", "by_layer", "layers"]
        assert scene.left_out == "task_hierarchy, task_similarity (there is one task)"
        for draw in (scene.task_hierarchy, scene.task_similarity):
            with pytest.raises(ValueError, match=r"1 task has no hierarchy; it takes at least 2"):
                draw()

    def test_one_skill(self):
        ones = {name: w[..., :1] * 0 + 1 for name, w in layers().items()}
        scene = Scene(subject_of(ones), "now", start=Start(subject_of(ones), "then"))
        assert [*scene.figures()] == ["allocation", "by_layer", "task_hierarchy"]
        assert scene.left_out == "change, layers, task_similarity (there is one skill)"
        figure = scene.task_hierarchy()
        assert figure.axes[0].get_xlabel() == "no hierarchy: all tasks are routed alike"
        assert "there is one skill, so nothing to choose" in words(figure)

    def test_one_map(self):
        scene = Scene(subject_of(layers(n_layers=1, n_splits=1)), "now")
        assert scene.left_out == "layers (one router: allocation shows it)"

    def test_nothing(self):
        assert Scene(subject_of(layers()), "now").left_out == ""


class TestLayers:
    @pytest.mark.parametrize(
        ("n_layers", "n_splits", "maps", "said"),
        [
            (3, 1, 3, "3 layers"),
            (61, 1, 24, "24 of 61 layers, evenly spaced"),
            (61, 4, 24, "6 of 61 layers, all 4 heads, evenly spaced"),
            (9, 64, 24, "3 of 9 layers, 8 of 64 heads, evenly spaced"),
            (1, 64, 24, "layer block.0.q, 24 of 64 heads, evenly spaced"),
        ],
    )
    def test_some_stand_for_all(self, n_layers, n_splits, maps, said):
        weights = layers(n_layers=n_layers, n_splits=n_splits, n_tasks=2)
        scene = Scene(subject_of(weights, task_ids=[0, 1]), "now")
        figure = scene.layers()
        assert f"normalised weight x {S}, {said}" in words(figure)
        drawn = [a.images[0].get_array() for a in figure.axes if a.images][:maps]
        assert all(values.shape == (2, S) for values in drawn)
        first, last = weights["block.0.q"][:, 0], weights[f"block.{n_layers - 1}.q"][:, -1]
        rows = scene.places.rows
        np.testing.assert_allclose(drawn[0], first[rows] * S, rtol=1e-5)
        np.testing.assert_allclose(drawn[-1], last[rows] * S, rtol=1e-5)
