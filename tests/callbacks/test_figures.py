"""Figures: their size, their order, their names and what they mark."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from polylab.callbacks.figures import (
    Truth,
    cluster_tasks,
    draw_allocation,
    draw_by_layer,
    draw_hierarchy,
    pixels,
    tree_order,
)
from polylab.callbacks.figures.by_layer import short_layer_names
from polylab.callbacks.figures.rows import MAX_HEIGHT, Rows
from polylab.callbacks.figures.style import ACCENT, DIVERGING, shorten

T, S, K = 7, 4, 3


@pytest.fixture
def relative():
    values = np.random.default_rng(0).uniform(0, 2, (T, S))
    values[2, 1] = 3.25
    return values


@pytest.fixture
def truth():
    return Truth(np.arange(T)[:, None] % K == np.arange(K), ["add", "read", "compare"])


def allocation(relative, **more):
    n_tasks, n_skills = relative.shape
    return draw_allocation(
        relative,
        tasks=[f"task_{i}" for i in range(n_tasks)],
        skills=[f"skill {k}" for k in range(n_skills)],
        title="Skill allocation after 3 steps",
        shown=["what is shown"],
        **more,
    )


def words(figure):
    inside = [t for axes in figure.axes for t in axes.texts]
    return [t.get_text() for t in [*figure.texts, *inside]]


def row_names(axes):
    return [t.get_text() for t in axes.texts if t.get_ha() == "right" and t.get_visible()]


def column_names(axes):
    return [t.get_text() for t in axes.texts if t.get_va() == "bottom"]


class TestAllocation:
    def test_says_what_it_shows(self, relative):
        assert {"Skill allocation after 3 steps", "what is shown"} <= set(
            words(allocation(relative))
        )

    def test_names_every_task_and_skill(self, relative):
        axes = allocation(relative).axes[0]
        assert row_names(axes) == [f"task_{i}" for i in range(T)]
        assert column_names(axes) == [f"skill {k}" for k in range(S)]

    def test_scale_is_fixed_and_larger_values_are_marked(self, relative):
        figure = allocation(relative)
        (image,) = figure.axes[0].images
        assert image.get_clim() == (0, 2)
        np.testing.assert_array_equal(image.get_array(), relative)
        assert "3.2" in words(figure)
        np.testing.assert_allclose(image.cmap(image.norm(3.25)), image.cmap.get_over())

    def test_size_does_not_depend_on_the_values(self, relative):
        first, other = pixels(allocation(relative)), pixels(allocation(np.ones((T, S))))
        assert first.shape == other.shape
        assert first.dtype == np.uint8
        assert first.shape[2] == 3

    def test_true_skills_stand_beside(self, relative, truth):
        axes = allocation(relative, truth=truth).axes[1]
        assert column_names(axes) == truth.names
        squares = next(c for c in axes.collections if isinstance(c, PathCollection))
        found = {(int(y), int(x)) for x, y in squares.get_offsets()}
        assert found == {(i, i % K) for i in range(T)}

    @pytest.mark.parametrize("n_tasks", [1, 24, 60, 400, 1600])
    def test_many_tasks_stay_on_the_page(self, n_tasks):
        image = pixels(allocation(np.ones((n_tasks, 8))))
        assert image.shape[0] < MAX_HEIGHT + 200
        assert image.shape[1] < 1200

    def test_names_that_do_not_fit_are_refused(self, relative):
        with pytest.raises(ValueError, match=r"2 row names and 4 column names .* \[7, 4\]"):
            draw_allocation(relative, tasks=["a", "b"], skills=list("wxyz"), title="", shown=[])


class TestHierarchy:
    def similarity(self):
        """Tasks 0, 3, 5 alike, and 1, 2, 4, 6."""
        group = np.array([0, 1, 1, 0, 1, 0, 1])
        return np.where(group[:, None] == group, 0.9, 0.2) + 0.1 * np.eye(T)

    def test_groups_stand_side_by_side(self):
        order = tree_order(cluster_tasks(self.similarity()))
        assert sorted(order) == list(range(T))
        assert {0, 3, 5} in (set(order[:3]), set(order[-3:]))

    def test_height_is_the_distance(self):
        tree = cluster_tasks(self.similarity())
        assert tree[-1, 2] == pytest.approx(0.8)
        assert tree[0, 2] == pytest.approx(0.1)

    def test_rows_of_all_panels_are_in_the_order_of_the_tree(self, relative, truth):
        tree = cluster_tasks(self.similarity())
        figure = draw_hierarchy(
            tree,
            relative,
            tasks=[f"task_{i}" for i in range(T)],
            skills=list("wxyz"),
            title="t",
            shown=[],
            truth=truth,
        )
        order = tree_order(tree)
        drawn, heat, true = figure.axes[:3]
        assert row_names(heat) == [f"task_{i}" for i in order]
        np.testing.assert_array_equal(heat.images[0].get_array(), relative[order])
        found = {(int(y), int(x)) for x, y in true.collections[1].get_offsets()}
        assert found == {(row, i % K) for row, i in enumerate(order)}
        (lines,) = [c for c in drawn.collections if isinstance(c, LineCollection)]
        leaves = {y for line in lines.get_segments() for x, y in line if x == 0}
        assert leaves == set(range(T))

    def test_it_says_where_there_is_no_hierarchy(self, relative):
        names = {"tasks": [*"abcdefg"], "skills": [*"wxyz"], "title": "t", "shown": []}
        for similarity, words in (
            (self.similarity(), "share of mixing weight not in common"),
            (np.ones((T, T)), "no hierarchy: all tasks are routed alike"),
        ):
            figure = draw_hierarchy(cluster_tasks(similarity), relative, **names)
            assert figure.axes[0].get_xlabel() == words

    def test_one_task_is_refused(self):
        with pytest.raises(ValueError, match=r"1 task given.*at least 2"):
            cluster_tasks(np.ones((1, 1)))


class TestByLayer:
    def test_columns_are_ranks_and_entropy_stands_beside(self):
        layers = [f"decoder.block.{i}.layer.0.SelfAttention.q" for i in range(3)]
        figure = draw_by_layer(
            np.ones((3, S)), [0.25, 0.5, 1.0], layers=layers, title="t", shown=[]
        )
        heat, entropy = figure.axes[:2]
        assert [t.get_text() for t in heat.get_xticklabels()] == ["1", "2", "3", "4"]
        assert "rank of the skill within the layer" in words(figure)
        assert [ends[1].tolist() for ends in entropy.collections[0].get_segments()] == [
            [0.25, 0],
            [0.5, 1],
            [1.0, 2],
        ]

    @pytest.mark.parametrize(
        ("given", "short"),
        [
            (
                ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.10.layer.1.wo"],
                ["encoder.0.0.SelfAttention.q", "decoder.10.1.wo"],
            ),
            (
                ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"],
                ["0.attn.c_attn", "1.attn.c_attn"],
            ),
            (["only.one.layer"], ["only.one.layer"]),
            (["a.layer.0", "a.0"], ["layer.0", "0"]),
        ],
    )
    def test_layer_names_are_short_and_distinct(self, given, short):
        assert short_layer_names(given) == short


@pytest.mark.parametrize(
    ("given", "short"),
    [
        (["short", "n" * 20], ["short", "n" * 20]),
        (["a" * 10 + "b" * 10 + "c" * 10], ["aaaaaaaaaa…ccccccccc"]),
        (
            ["x" * 12 + str(i) + "y" * 20 for i in range(2)],
            ["xxxxxxxxxxxx0yyyyyy…", "xxxxxxxxxxxx1yyyyyy…"],
        ),
    ],
)
def test_long_names_are_cut_where_they_stay_different(given, short):
    assert shorten(given, 20) == short


def test_rows_get_thinner_and_then_fewer_labels():
    assert (Rows.of(10).height, Rows.of(10).every) == (200, 1)
    assert Rows.of(60).every == 1
    assert Rows.of(60).height <= 900
    many = Rows.of(1600)
    assert many.height == MAX_HEIGHT
    assert many.height / 1600 * many.every >= 12
    labels = row_names(allocation(np.ones((1600, 8))).axes[0])
    assert labels == [f"task_{i}" for i in range(0, 1600, many.every)]


def test_ends_of_the_palette_stay_apart_without_red_green_vision():
    """Deuteranopia after Vienot 1999: below, middle and above 1 keep a luminance or blue step."""
    to_lms = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.02996, 0.18431, 1.46709]]
    )
    blind = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    simulate = np.linalg.inv(to_lms) @ blind @ to_lms
    low, middle, high = (simulate @ np.array(DIVERGING(x)[:3]) for x in (0.0, 0.5, 1.0))
    for one, other in ((low, middle), (middle, high), (low, high)):
        assert np.abs(one - other).max() > 0.3


def test_colours_are_of_the_palette(relative):
    axes = allocation(relative, truth=Truth(np.ones((T, 1), bool), ["s"])).axes[1]
    colour = axes.collections[1].get_facecolor()[0]
    assert matplotlib.colors.to_hex(colour) == ACCENT.lower()
