"""Figures: their size, their order, their names and what they mark."""

import io

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from PIL import Image

from polylab.callbacks.figures import (
    Truth,
    cluster_tasks,
    draw_allocation,
    draw_by_layer,
    draw_change,
    draw_hierarchy,
    draw_knockout,
    draw_layers,
    draw_task_matrix,
    pixels,
    save_vector,
    tree_order,
)
from polylab.callbacks.figures.by_layer import short_layer_names
from polylab.callbacks.figures.rows import MAX_HEIGHT, Bands, Rows, Size
from polylab.callbacks.figures.style import ACCENT, BANDS, DIVERGING, shorten

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


class TestRows:
    @pytest.mark.parametrize("count", [1, 6, 27, 100, 400, 1600, 1601, 5000])
    def test_they_fit_and_their_names_do_not_touch(self, count):
        rows = Rows.of(count)
        assert rows.height <= MAX_HEIGHT
        assert rows.drawn == -(-count // rows.together)
        assert rows.pitch * rows.every >= 12
        assert rows.pitch >= 1
        assert rows.pitch >= 12 or rows.pitch == int(rows.pitch)
        assert rows.words() == [] or rows.words() == [
            f"a row is the mean of {rows.together} neighbouring tasks of {count:,}"
        ]

    def test_things_drawn_together_are_their_mean(self):
        rows = Rows.of(7, Size(limit=3))
        values = np.arange(14.0).reshape(7, 2)
        values[0, 0] = values[6, 1] = np.nan
        np.testing.assert_array_equal(rows.fold(values), [[3, 3], [8, 9], [12, np.nan]])
        assert [rows.at(i) for i in range(3)] == pytest.approx([-1 / 3, 0, 1 / 3])


class TestBands:
    def test_categories_are_a_strip_with_a_legend(self, relative):
        categories = ["sums", "words", "sums", None, "sums", "words", "rare"]
        figure = allocation(relative, categories=categories)
        strip = next(
            a for a in figure.axes if a.images and a.images[0].get_array().shape == (T, 1, 3)
        )
        cells = strip.images[0].get_array()[:, 0]
        found = ["white" if tuple(c) == (1, 1, 1) else matplotlib.colors.to_hex(c) for c in cells]
        sums, words_, rare = (colour.lower() for colour in BANDS[:3])
        colours = {"sums": sums, "words": words_, "rare": rare, None: "white"}  # by frequency
        assert found == [colours[c] for c in categories]
        assert {"sums", "words", "rare", "category of the task"} <= set(words(figure))

    def test_many_categories_share_a_grey(self):
        categories = [f"kind {i}" for i in range(12) for _ in range(12 - i)]
        bands = Bands.of(categories)
        assert bands.coloured == [f"kind {i}" for i in range(8)]
        figure = allocation(np.ones((len(categories), S)), categories=categories)
        assert "4 others" in words(figure)
        assert "kind 8" not in words(figure)

    def test_without_categories_there_is_none(self):
        assert Bands.of(None) is None
        assert Bands.of([None, ""]) is None


class TestMatrix:
    def draw(self, values, **more):
        return draw_task_matrix(
            values, tasks=[f"t{i}" for i in range(len(values))], title="t", shown=[], **more
        )

    def test_rows_and_columns_stand_in_the_same_order(self):
        values = np.random.default_rng(0).uniform(size=(T, T))
        order = [3, 1, 6, 0, 2, 5, 4]
        axes = self.draw(values, order=order).axes[0]
        np.testing.assert_array_equal(axes.images[0].get_array(), values[order][:, order])
        assert row_names(axes) == column_names(axes) == [f"t{i}" for i in order]
        assert axes.images[0].get_clim() == (0, 1)

    def test_signed_scale(self):
        axes = self.draw(-np.eye(T), scale="signed").axes[0]
        assert axes.images[0].get_clim() == (-1, 1)
        assert axes.images[0].cmap.name == DIVERGING.name

    def test_many_tasks_are_drawn_together_and_the_figure_says_so(self):
        values = np.full((700, 700), 0.25)
        values[:3, 3:6] = [[0, 0.5, 1], [0.75, 0.25, 0.5], [0.5, 0.5, 0.5]]
        figure = self.draw(values)
        assert figure.axes[0].images[0].get_array().shape == (234, 234)
        assert figure.axes[0].images[0].get_array()[0, 1] == pytest.approx(0.5)
        assert "a row is the mean of 3 neighbouring tasks of 700" in words(figure)

    def test_refuses(self):
        with pytest.raises(ValueError, match=r"order=\[0, 0\] must hold each of 0 to 1 once"):
            self.draw(np.eye(2), order=[0, 0])
        with pytest.raises(ValueError, match=r"2 row names and 2 column names .* \[2, 3\]"):
            self.draw(np.ones((2, 3)))


class TestKnockout:
    def test_both_maps_have_the_same_rows_and_columns(self, relative):
        change = np.random.default_rng(1).uniform(-0.31, 0.2, (T, S))
        change[1, 2], change[0, 0] = -0.31, np.nan
        order = [6, 5, 4, 3, 2, 1, 0]
        figure = draw_knockout(
            change, relative, tasks=[*"abcdefg"], skills=[*"wxyz"], title="t", shown=[], order=order
        )
        used, lost = figure.axes[:2]
        np.testing.assert_array_equal(used.images[0].get_array(), relative[order])
        np.testing.assert_array_equal(lost.images[0].get_array(), change[order])
        assert row_names(used) == [*"gfedcba"]
        assert column_names(used) == column_names(lost) == [*"wxyz"]
        low, high = lost.images[0].get_clim()
        assert (low, high) == (-0.5, 0.5)  # 0.31, rounded up
        ticks = [t.get_text() for axes in figure.axes for t in axes.get_xticklabels()]
        assert {"\N{MINUS SIGN}0.5", "\N{MINUS SIGN}0.25", "0.25", "0.5"} <= set(ticks)

    def test_a_loss_has_the_colour_of_use(self):
        one = np.ones((1, 1))
        figure = draw_knockout(-one, 2 * one, tasks=["a"], skills=["s"], title="", shown=[])
        used, lost = (axes.images[0] for axes in figure.axes[:2])
        assert used.cmap(used.norm(2.0)) == pytest.approx(lost.cmap(lost.norm(-1.0)))

    @pytest.mark.parametrize("change", [0.0, np.nan])
    def test_nothing_lost(self, change):
        values = np.full((2, 3), change)
        figure = draw_knockout(
            values, np.ones((2, 3)), tasks=["a", "b"], skills=[*"xyz"], title="", shown=[]
        )
        assert figure.axes[1].images[0].get_clim() == (-0.001, 0.001)
        pixels(figure)


class TestChange:
    def test_many_layers_are_drawn_together_and_the_figure_says_so(self):
        moved = np.linspace(0, 1, 3 * 250).reshape(3, 250)
        figure = draw_change(
            moved, tasks=[*"abc"], layers=[f"l{i}" for i in range(250)], title="t", shown=[]
        )
        drawn = figure.axes[0].images[0].get_array()
        assert drawn.shape == (3, 84)
        np.testing.assert_allclose(drawn[:, 0], moved[:, :3].mean(1))
        assert figure.axes[0].images[0].get_clim() == (0, 1)
        assert "a column is the mean of 3 neighbouring layers of 250" in words(figure)
        assert column_names(figure.axes[0])[0] == "l0"


class TestLayers:
    def test_heads_of_a_layer_stand_side_by_side(self, relative):
        maps = {
            f"layer {i}": {f"head {q}": relative + i + q / 10 for q in range(3)} for i in range(5)
        }
        figure = draw_layers(maps, tasks=[*"abcdefg"], title="t", shown=[])
        drawn = [axes for axes in figure.axes if axes.images][:15]
        for k, axes in enumerate(drawn):
            expected = relative + k // 3 + k % 3 / 10
            np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        boxes = [axes.get_window_extent() for axes in drawn]
        assert len({round(box.y0) for box in boxes[:6]}) == 1  # two layers a line
        assert boxes[6].y0 < boxes[0].y0 - 50
        assert boxes[6].x0 == boxes[0].x0
        assert {"layer 1\nhead 0", "head 2"} <= set(words(figure))
        labelled = [axes for axes in drawn if row_names(axes)]
        assert labelled == [drawn[0], drawn[6], drawn[12]]

    def test_long_layer_names_are_broken(self, relative):
        maps = {f"encoder.{i}.0.SelfAttentionOfSomeKind.query": {"": relative} for i in range(2)}
        figure = draw_layers(maps, tasks=[*"abcdefg"], title="t", shown=[])
        lines = next(w for w in words(figure) if "query" in w).splitlines()
        assert lines[0] == "encoder.0.0."
        assert lines[-1] == "query"
        assert len(lines) == 3

    def test_refuses(self, relative):
        with pytest.raises(ValueError, match=r"map 'h' of layer 'l' has shape \[7, 4\].* 2 tasks"):
            draw_layers({"l": {"h": relative}}, tasks=["a", "b"], title="", shown=[])


class TestWords:
    """No text leaves the page or lies on another one, whatever the names."""

    NAMES = ("$5_and_$6", "W" * 50, "two\nlines", "a" * 40 + "1", "a" * 40 + "2", "x", "résumé")

    def figures(self, n_tasks):
        names = [f"{self.NAMES[i % T]}{i}" for i in range(n_tasks)]
        values = np.random.default_rng(0).uniform(size=(n_tasks, n_tasks))
        values = (values + values.T) / 2
        kinds = [f"A category with many words {i % 11}" for i in range(n_tasks)]
        about = {"tasks": names, "title": "T" * 60, "shown": ["word " * 60, "more"]}
        yield draw_task_matrix(values, **about, categories=kinds)
        about["categories"] = kinds
        skills = [f"skill {k}" for k in range(S)]
        tree = cluster_tasks(values)
        yield draw_hierarchy(tree, 2 * values[:, :S], skills=skills, **about)
        yield draw_change(
            values[:, :S], layers=[f"encoder.{'l' * 40}.{k}" for k in range(S)], **about
        )
        maps = {f"decoder.{i}": {f"head {q}": values[:, :S] for q in range(2)} for i in range(5)}
        yield draw_layers(maps, **about)

    @pytest.mark.parametrize("n_tasks", [S, 30, 110])
    def test_they_fit(self, n_tasks):
        for figure in self.figures(n_tasks):
            pixels(figure)
            page = figure.bbox
            texts = [t for a in figure.axes for t in a.texts if t.get_visible() and t.get_text()]
            boxes = [t.get_window_extent() for t in [*figure.texts, *texts] if t.get_text().strip()]
            for box in boxes:
                assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1
                assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1
            for i, one in enumerate(boxes):
                for other in boxes[:i]:
                    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
                    high = min(one.y1, other.y1) - max(one.y0, other.y0)
                    assert wide < 2 or high < 4, (one, other)


class TestVector:
    def test_every_task_has_its_name_and_every_fork_its_line(self):
        n = 300
        features = np.random.default_rng(0).uniform(size=(n, 3))
        tree = cluster_tasks(1 - np.abs(features[:, None] - features).mean(-1))
        figure = draw_hierarchy(
            tree,
            np.ones((n, S)),
            tasks=[f"task_{i}" for i in range(n)],
            skills=[*"wxyz"],
            title="t",
            shown=[],
        )
        before = pixels(figure)
        forks, heat = figure.axes[:2]
        seen = []

        class Spy(io.BytesIO):
            """Looks at the figure when its first byte is written."""

            def write(self, data):
                if not seen:
                    trees = [c for c in forks.collections if isinstance(c, LineCollection)]
                    shown = [len(c.get_segments()) for c in trees if c.get_visible()]
                    seen.extend([row_names(heat), shown])
                return super().write(data)

        file = Spy()
        save_vector(figure, file)
        assert set(seen[0]) == {f"task_{i}" for i in range(n)}
        assert seen[1] == [n - 1]
        assert b"/ToUnicode" in file.getvalue()  # text, that can be searched and copied
        np.testing.assert_array_equal(pixels(figure), before)

    def test_a_notebook_shows_a_figure(self, relative):
        data = allocation(relative)._repr_png_()
        image = Image.open(io.BytesIO(data))
        assert (image.height, image.width) == pixels(allocation(relative)).shape[:2]


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
