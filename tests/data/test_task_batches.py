"""Batches of exactly k tasks: the mix stays what it is without them."""

from collections import Counter
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from polylab.data import DataModule, Example, TaskCollection, TaskData
from polylab.data.mixing import Mixing
from polylab.data.plan import MixturePlan
from polylab.data.sampling import MixtureBatchSampler
from polylab.data.task_batches import TaskBatches, inclusion_probabilities

MIX = np.array([0.5, 0.3, 0.1, 0.06, 0.04])


def _drawn(batches: TaskBatches, *, steps: int, epochs: int) -> np.ndarray:
    """How often each task is drawn in each epoch."""
    n = len(batches.inclusion)
    return np.array(
        [
            np.bincount(batches.tasks(steps, np.random.default_rng(e)).ravel(), minlength=n)
            for e in range(epochs)
        ]
    )


@pytest.mark.parametrize(
    ("mix", "k", "wanted"),
    [
        (MIX, 1, MIX),
        (MIX, 2, [1.0, 0.6, 0.2, 0.12, 0.08]),
        (MIX, 3, [1.0, 1.0, 0.5, 0.3, 0.2]),
        ([0.7, 0.29, 0.01], 2, [1.0, 29 / 30, 1 / 30]),
        ([0.6, 0.36, 0.03, 0.01], 3, [1.0, 1.0, 0.75, 0.25]),  # the second by the first's excess
        ([0.25] * 4, 4, [1.0] * 4),
        ([0.25] * 4, 3, [0.75] * 4),
    ],
)
def test_inclusion_probabilities(mix: list[float], k: int, wanted: list[float]) -> None:
    assert inclusion_probabilities(mix, k) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("mix", "k", "size"),
    [
        (MIX, 1, 7),
        (MIX, 2, 7),
        (MIX, 3, 7),
        ([0.6, 0.36, 0.03, 0.01], 3, 26),
        ([0.4, *[0.1] * 4, *[0.05] * 4], 4, 11),
    ],
)
def test_shares_are_those_of_the_mix(mix: list[float], k: int, size: int) -> None:
    """The mean over many epochs lies within 4 standard errors of the expectation, for each task."""
    steps, epochs = 5, 4000
    batches = TaskBatches(np.array(mix), per_batch=k, batch_size=size)
    drawn = _drawn(batches, steps=steps, epochs=epochs)
    assert (drawn.sum(axis=1) == steps * size).all()
    errors = drawn.mean(axis=0) - np.array(mix) * steps * size
    assert (np.abs(errors) < 4 * drawn.std(axis=0) / epochs**0.5 + 1e-9).all()


@pytest.mark.parametrize("place", [(0, slice(7)), (4, slice(7)), (slice(5), 0), (slice(5), 6)])
def test_shares_are_the_same_anywhere(place: tuple[int | slice, int | slice]) -> None:
    """In the first and the last batch of an epoch, and the first and the last row of batches."""
    batches = TaskBatches(MIX, per_batch=2, batch_size=7)
    drawn = np.array(
        [
            np.bincount(batches.tasks(5, np.random.default_rng(e))[place].ravel(), minlength=5)
            for e in range(4000)
        ]
    )
    errors = drawn.mean(axis=0) - MIX * drawn.sum(axis=1).mean()
    assert (np.abs(errors) < 4 * drawn.std(axis=0) / 4000**0.5).all()


@pytest.mark.parametrize(
    ("mix", "k", "size"),
    [
        (MIX, 1, 7),
        (MIX, 2, 7),
        (MIX, 3, 8),
        (MIX, 5, 40),
        (np.full(8, 1 / 8), 3, 5),
        (np.full(4, 1 / 4), 3, 5),
        (np.array([0.4, *[0.1] * 4, *[0.05] * 4]), 4, 11),
    ],
)
def test_every_batch_has_exactly_k_tasks(mix: np.ndarray, k: int, size: int) -> None:
    batches = TaskBatches(mix, per_batch=k, batch_size=size)
    for steps, seed in product((1, 3, 11), range(40)):
        for row in batches.tasks(steps, np.random.default_rng(seed)).tolist():
            assert len(row) == size
            assert len(set(row)) == k


def test_an_epoch_has_the_expected_batches_of_each_task() -> None:
    batches = TaskBatches(MIX, per_batch=2, batch_size=8)
    for seed in range(50):
        drawn = batches.tasks(30, np.random.default_rng(seed))
        held = [sum(task in row for row in drawn.tolist()) for task in range(5)]
        assert held[0] == 30
        assert (np.abs(np.array(held) - 30 * batches.inclusion) < 1).all()
        assert abs(np.count_nonzero(drawn == 0) - 30 * 8 * 0.5) < 1


def test_rows_are_equal_but_for_rounding() -> None:
    """Tasks that take turns have B p / pi rows: here (8 - 4) / 2 = 2, and 7 / 2 = 3.5."""
    drawn = TaskBatches(MIX, per_batch=3, batch_size=10).tasks(40, np.random.default_rng(0))
    assert {Counter(row)[0] for row in drawn.tolist()} == {5}
    assert {Counter(row)[1] for row in drawn.tolist()} == {3}
    assert {n for row in drawn.tolist() for t, n in Counter(row).items() if t > 1} == {2}
    drawn = TaskBatches(np.full(9, 1 / 9), per_batch=2, batch_size=7).tasks(
        40, np.random.default_rng(0)
    )
    assert {n for row in drawn.tolist() for n in Counter(row).values()} == {3, 4}


def test_any_tasks_meet_in_an_epoch() -> None:
    """8 tasks in batches of 3: each of the 28 pairs about as often as the others."""
    batches = TaskBatches(np.full(8, 1 / 8), per_batch=3, batch_size=3)
    met = Counter(
        pair
        for row in batches.tasks(1024, np.random.default_rng(3)).tolist()
        for pair in combinations(sorted(row), 2)
    )
    expected = 1024 * 3 / 28
    found = [met[pair] for pair in combinations(range(8), 2)]
    assert sum((n - expected) ** 2 / expected for n in found) < 55.5  # chi-square, 27, p = 0.001


def test_a_very_rare_task_is_drawn_as_often_as_it_should() -> None:
    mix = np.array([1_000_000, 1]) / 1_000_001
    batches = TaskBatches(mix, per_batch=1, batch_size=8)
    shifts = [batches.tasks(50_000, np.random.default_rng(e)) for e in range(100)]
    rare = [int(np.count_nonzero(drawn)) for drawn in shifts]
    assert set(rare) == {0, 8}  # batches of its own
    expected = 100 * 50_000 / 1_000_001
    assert abs(sum(rare) / 8 - expected) < 4 * expected**0.5


def test_more_tasks_than_there_are_is_all_of_them() -> None:
    drawn = TaskBatches(np.full(3, 1 / 3), per_batch=5, batch_size=7)
    assert all(len(set(row)) == 3 for row in drawn.tasks(9, np.random.default_rng(0)).tolist())


@pytest.mark.parametrize(
    ("mix", "k", "size", "says"),
    [
        (MIX, 9, 8, r"data\.tasks_per_batch=9 · a batch of data\.batch_size=8 rows holds 8 tasks"),
        ([0.7, 0.29, 0.01], 3, 8, r"batch=3 · with more than 2\.08 tasks in the mean .* most 2,"),
        ([1 - 1e-6, 1e-6], 2, 64, r"batch=2 · with more than 1 tasks in .*batch_size=64.* most 1,"),
        ([1.0, 0.0], 2, 64, r"batch=2 · with more than 1 tasks .* use at most 1,"),
    ],
)
def test_batches_that_cannot_be(mix: list[float], k: int, size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TaskBatches(np.array(mix), per_batch=k, batch_size=size)
    TaskBatches(np.array(mix), per_batch=1, batch_size=size)


def test_the_bounds_are_those_of_the_formula() -> None:
    """The rows are 5.6, 2.32, 0.08: two tasks and 0.08 fit; in 100 rows a third fits exactly."""
    TaskBatches(np.array([0.7, 0.29, 0.01]), per_batch=3, batch_size=100)
    with pytest.raises(ValueError, match=r"more than 2\.99 tasks"):
        TaskBatches(np.array([0.7, 0.29, 0.01]), per_batch=3, batch_size=99)


def test_a_plan_draws_the_examples_of_its_tasks() -> None:
    plan = MixturePlan([29, 11, 5], n_rows=48, seed=0, tasks_per_batch=2, batch_size=6)
    for epoch in range(4):
        rows = plan.rows(epoch)
        tasks = np.searchsorted([29, 40, 45], rows, side="right")
        assert np.bincount(tasks, minlength=3).tolist() == plan.counts(epoch).tolist()
        assert {len(set(batch)) for batch in tasks.reshape(8, 6).tolist()} == {2}
    assert plan.rows(0).tolist() != plan.rows(1).tolist()


def test_a_plan_does_not_depend_on_what_was_asked_of_it() -> None:
    given: dict[str, Any] = {"n_rows": 48, "seed": 0, "tasks_per_batch": 2, "batch_size": 6}
    plan = MixturePlan([29, 11, 5], **given)
    before = [plan.rows(epoch).tolist() for epoch in range(3)]
    assert MixturePlan([29, 11, 5], **given).rows(2).tolist() == before[2]
    other = MixturePlan([29, 11, 5], **{**given, "seed": 1})
    assert other.rows(0).tolist() != before[0]


@pytest.mark.parametrize("k", [1, 2])
def test_batches_of_a_data_module(byt5: Any, k: int) -> None:
    """Shares of sources, a cap and a weight; what is drawn adds up to them."""
    sizes = {"a": 300, "b": 100, "c": 10, "d": 40}
    sources = {"a": "x", "b": "y", "c": "x", "d": "y"}
    tasks = TaskCollection(
        [
            TaskData(name, [Example(f"{name} {i}", "t") for i in range(n)], source=sources[name])
            for name, n in sizes.items()
        ],
        shares={"x": 3.0, "y": 1.0},
    )
    module = DataModule(
        lambda: tasks,
        byt5,
        is_encoder_decoder=True,
        batch_size=30,
        steps_per_epoch=20,
        cap=100,
        weights={"c": 5.0},
        tasks_per_batch=k,
    )
    batches = [batch["task_ids"].tolist() for batch in module.train_dataloader()]
    assert {len(set(batch)) for batch in batches} == {k}
    seen = np.bincount(np.concatenate(batches), minlength=4)
    expected = Mixing(cap=100, weights={"c": 5.0}).probabilities(tasks) * 600
    assert seen == pytest.approx(expected, abs=30)  # up to a batch


def test_both_ways_to_fill_a_batch_are_refused(byt5: Any) -> None:
    with pytest.raises(ValueError, match=r"tasks_per_batch=2 with data\.group_by_length=50 · "):
        DataModule(
            lambda: TaskCollection([]),
            byt5,
            is_encoder_decoder=True,
            tasks_per_batch=2,
            group_by_length=50,
        )
    with pytest.raises(ValueError, match=r"data\.tasks_per_batch=0 · it must be at least 1"):
        MixtureBatchSampler([3, 4], batch_size=2, seed=0, tasks_per_batch=0)
