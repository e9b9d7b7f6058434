"""What figures are of: what is reduced, and that its numbers are those of the statistics."""

import numpy as np
import pytest
import torch

from polylab.callbacks import subject as subjects
from polylab.callbacks.allocations import AllocationSource
from polylab.callbacks.routers import Routers
from polylab.callbacks.seen import Allocations
from polylab.callbacks.subject import Subject
from polylab.callbacks.wording import layer_names, notes, over
from polylab.poly.alignment import aligned_mean
from polylab.poly.statistics import task_similarity
from tests.callbacks.tiny import TASKS

T = len(TASKS)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def subject_of(build):
    """`subject_of(**poly)`: of a model whose routers are drawn at random, and its allocations."""

    def make(**poly):
        model = build(**poly).network["inner"]
        torch.manual_seed(7)
        for name, parameter in model.named_parameters():
            if "poly_router" in name:
                torch.nn.init.normal_(parameter, std=2)
        seen = AllocationSource.of(model).read()
        return Subject.of(seen, Routers.of(model), tasks=[*TASKS]), seen

    return make


def planted(n_layers, *, n_tasks=6, n_splits=2, n_skills=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        f"block.{i}.q": torch.rand(n_tasks, n_splits, n_skills, generator=draw).softmax(-1)
        for i in range(n_layers)
    }


def plain(weights, **more):
    tasks = [f"task {i}" for i in range(len(next(iter(weights.values()))))]
    seen = Allocations(weights, {}, [*range(len(tasks))])
    return Subject.of(seen, Routers({name: name for name in weights}), tasks=tasks, **more)


class TestPoly:
    def test_numbers_are_those_of_the_statistics(self, subject_of):
        subject, seen = subject_of(n_splits=2)
        found = subject.aligned()
        mean, agreement = aligned_mean(seen.weights)
        close(found.relative, mean * 4)
        assert found.skills == ["skill 0", "skill 1", "skill 2", "skill 3"]
        assert f"agreement {agreement:.2f}" in found.words
        assert f"{len(seen.weights)} layers x 2 heads" in found.words
        similarity, words = subject.similarity()
        close(similarity, task_similarity(seen.weights))
        assert words == f"{len(seen.weights)} layers x 2 heads"
        assert {n: float(e.mean()) for n, e in subject.entropy.items()} == pytest.approx(
            seen.layer_entropy()
        )
        assert notes(subject) == []

    def test_usage_is_sorted_within_each_layer(self, subject_of):
        usage = subject_of()[0].usage()
        assert (np.diff(usage) <= 0).all()
        close(usage.mean(1), 1)

    def test_one_task_cannot_be_aligned(self):
        assert plain(planted(3, n_tasks=1)).aligned().words == (
            "normalised weight x 3, mean of 3 layers x 2 heads: with one task their skills cannot "
            "be aligned"
        )


class TestPrivateSkills:
    def test_shared_skills_and_a_column_of_the_own_ones(self, subject_of):
        subject, seen = subject_of(poly_type="c-poly", n_private=2)
        assert (subject.n_shared, subject.n_private, subject.n_usable) == (4, 2, 6)
        found = subject.aligned()
        assert found.skills == ["skill 0", "skill 1", "skill 2", "skill 3", "private"]
        # w sums to 1: the shared ones once, the private ones as a mean of two
        close(found.relative @ [1, 1, 1, 1, 2], 6)
        own = [w[:, :, 4:].sum((1, 2)) for w in seen.weights.values()]
        close(found.relative[:, 4] * 2 / 6, torch.stack(own).mean(0))
        (line,) = notes(subject)
        assert line == (
            "a task may use 4 shared skills and its 2 own ones ('private' is their mean)"
        )
        assert subject.usage().shape == (len(seen.weights), 5)

    def test_own_skills_are_never_in_common(self, subject_of):
        subject, seen = subject_of(poly_type="c-poly", n_private=2, n_splits=2)
        close(subject.similarity()[0], task_similarity(seen.weights))

    def test_private(self, subject_of):
        subject, _ = subject_of(poly_type="private", n_splits=2)
        assert (subject.n_shared, subject.n_usable, subject.is_trivial) == (0, 1, True)
        np.testing.assert_array_equal(subject.aligned().relative, np.ones((T, 1)))
        np.testing.assert_array_equal(subject.similarity()[0], np.eye(T))
        assert notes(subject) == [
            "by construction every task has a skill of its own, and uses no other"
        ]


class TestGivenAllocations:
    @pytest.mark.parametrize(
        ("poly", "words"),
        [
            ({"poly_type": "shared"}, "one skill, shared by all tasks: there is nothing to choose"),
            ({"poly_type": "uniform"}, "uniform by construction: no task prefers a skill"),
            (
                {"poly_type": "custom", "n_skills": 2, "allocation": [[1, i] for i in range(T)]},
                "this allocation was given, not learned",
            ),
        ],
    )
    def test_they_are_the_same_in_all_layers_and_heads(self, subject_of, poly, words):
        subject, seen = subject_of(n_splits=2, **poly)
        assert notes(subject) == [words]
        assert len(subject.units) == 1
        assert over(subject, subject.weights) == f"the one router of {len(seen.weights)} layers"
        mean, _ = aligned_mean(seen.weights)
        close(subject.aligned().relative, mean * seen.n_skills)


class TestSharedRouters:
    def test_each_is_shown_once(self, subject_of):
        subject, seen = subject_of(granularity="stack")
        assert len(subject.weights) == 2
        assert len(seen.weights) == 5
        assert over(subject, subject.weights) == "2 routers of 5 layers"
        assert [*layer_names(subject).values()] == ["encoder.0.layer (2)", "decoder.0.layer (3)"]
        # layers count, as in routing=drop:SKILL and in the logged similarity
        close(subject.similarity()[0], task_similarity(seen.weights))

    def test_one_router_of_all(self, subject_of):
        subject, _ = subject_of(granularity="model")
        assert [*layer_names(subject).values()] == ["all layers (5)"]
        assert "agreement" not in subject.aligned().words

    def test_numbers_of_skills_are_those_of_all_layers(self):
        """The reference is chosen among all layers, of which most share the second router."""
        first, second = (planted(1, seed=seed)["block.0.q"][:, :1] for seed in (1, 2))
        weights = {"a": first, **{f"b{i}": second for i in range(4)}}
        seen = Allocations(weights, {}, [*range(6)])
        routers = Routers({"a": "a", **{f"b{i}": "b0" for i in range(4)}})
        subject = Subject.of(seen, routers, tasks=[*"uvwxyz"])
        expected = aligned_mean(weights)[0]
        # the columns of the many stay in their own order in both
        ours = subject.aligned().relative / 3
        close(ours * 2 - second[:, 0].numpy(), (expected * 5).numpy() - 4 *
                                   second[:, 0].numpy())  # fmt: skip


class TestVeryLarge:
    def test_evenly_spaced_pairs_stand_for_all(self, monkeypatch):
        weights = planted(50)
        full = plain(weights)
        whole, words = full.similarity()
        assert words == "50 layers x 2 heads"
        monkeypatch.setattr(subjects, "_COMPARISONS", 40 * 36 * 3)
        some, words = full.similarity()
        assert words == "40 of 100 (layer, head) pairs, evenly spaced"
        assert 0 < np.abs(some - whole).max() < 0.05
        monkeypatch.setattr(subjects, "_ALIGNED_CELLS", 1)
        sampled = full.aligned()
        assert "aligned mean of 64 of 100 (layer, head) pairs, evenly spaced" in sampled.words
        expected = {}
        for i in np.linspace(0, 99, 64).astype(int):
            layer = [*weights][i // 2]
            expected.setdefault(layer, []).append(weights[layer][:, i % 2])
        expected = {name: torch.stack(heads, 1) for name, heads in expected.items()}
        close(sampled.relative, aligned_mean(expected)[0] * 3)


def test_given_order_is_by_category_and_then_by_name():
    tasks = ["b 10", "b 2", "z", "a", "c"]
    seen = Allocations({"q": torch.full((5, 1, 2), 0.5)}, {}, [*range(5)])
    categories = {"b 10": ("words", "other"), "b 2": ("words",), "z": ("sums",), "c": ()}
    subject = Subject.of(seen, Routers({"q": "q"}), tasks=tasks, categories=categories)
    assert [tasks[i] for i in subject.given_order()] == ["z", "b 2", "b 10", "a", "c"]
    assert subject.categories == ["words", "words", "sums", None, None]


def test_layers_that_were_not_seen_are_left_out():
    weights = planted(3)
    routers = Routers(
        {"first": "first", "block.0.q": "first", "block.1.q": "first", "block.2.q": "block.2.q"}
    )
    seen = Allocations(weights, {}, [*range(6)])
    subject = Subject.of(seen, routers, tasks=[*"uvwxyz"])
    assert subject.of_layers == {
        "block.0.q": "block.0.q", "block.1.q": "block.0.q", "block.2.q": "block.2.q"
    }  # fmt: skip


def test_one_layer_and_one_head():
    subject = plain(planted(3))
    one = subject.only(layer="block.1.q", split=1)
    assert one.aligned().words == "normalised weight x 3, layer block.1.q"
    close(one.aligned().relative, subject.weights["block.1.q"][:, 1] * 3)
    assert one.entropy["block.1.q"].shape == (1,)
    assert subject.only(split=0).units == [(f"block.{i}.q", 0) for i in range(3)]
