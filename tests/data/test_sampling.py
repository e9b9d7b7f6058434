"""Mixing, order, ranks and continuation of training batches."""

import copy
import math
from collections import Counter

import numpy as np
import pytest

from polylab.data.mixing import mixing_probabilities
from polylab.data.plan import MixturePlan
from polylab.data.sampling import MixtureBatchSampler, slice_size

SIZES = [29, 11, 5]


def _task_of(index: int) -> int:
    return int(np.searchsorted(np.cumsum(SIZES), index, side="right"))


def _indices(sampler: MixtureBatchSampler) -> list[int]:
    return [index for batch in sampler for index, _ in batch]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.8, 0.2]), (2.0, [2 / 3, 1 / 3]), (math.inf, [0.5, 0.5]), (0.5, [16 / 17, 1 / 17])],
)
def test_probabilities(temperature: float, expected: list[float]) -> None:
    assert mixing_probabilities([40, 10], temperature=temperature) == pytest.approx(expected)


def test_extreme_sizes_and_temperatures_are_finite() -> None:
    probabilities = mixing_probabilities([10**15, 1], temperature=0.01)
    assert probabilities.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.temperature={temperature} · .* above 0"):
        mixing_probabilities([3], temperature=temperature)


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_sizes_must_be_positive(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"task sizes \[{', '.join(map(str, sizes))}\]"):
        mixing_probabilities(sizes, temperature=1.0)


def test_an_epoch_of_temperature_one_is_one_pass() -> None:
    plan = MixturePlan(SIZES, n_rows=45, temperature=1.0, seed=0)
    for epoch in range(3):
        assert sorted(plan.rows(epoch).tolist()) == list(range(45))
    assert plan.rows(0).tolist() != plan.rows(1).tolist()


def test_counts_are_the_expectation_rounded() -> None:
    plan = MixturePlan(SIZES, n_rows=7, temperature=2.0, seed=3)
    expected = mixing_probabilities(SIZES, temperature=2.0) * 7
    counts = np.array([plan.counts(epoch) for epoch in range(2000)])
    assert (counts.sum(axis=1) == 7).all()
    assert (np.abs(counts - expected) < 1).all()
    assert counts.mean(axis=0) == pytest.approx(expected, abs=0.05)


def test_a_rare_task_is_drawn_in_the_long_run() -> None:
    plan = MixturePlan([1_000_000, 1], n_rows=8, temperature=4.0, seed=0)
    rare = sum(int(plan.counts(epoch)[1]) for epoch in range(400))
    assert rare == pytest.approx(400 * 8 / (1 + 10**1.5), rel=0.15)


@pytest.mark.parametrize("per_batch", [None, 1, 2])
def test_nothing_repeats_before_a_task_is_exhausted_across_epochs(per_batch: int | None) -> None:
    plan = MixturePlan(
        SIZES,
        n_rows=9,
        temperature=math.inf,
        seed=1,
        tasks_per_batch=per_batch,
        batch_size=3,
    )
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for epoch in range(20):
        for index in sorted(plan.rows(epoch).tolist()):
            seen[_task_of(index)].append(index)
    for task, size in enumerate(SIZES):
        counts = Counter(seen[task])
        assert len(counts) == size
        assert max(counts.values()) - min(counts.values()) <= 1


def test_passes_over_a_small_task_differ_in_order() -> None:
    plan = MixturePlan([5], n_rows=5, temperature=1.0, seed=0)
    assert len({tuple(plan._stream(0, 5 * i, 5).tolist()) for i in range(900)}) > 100
    plan = MixturePlan([6000], n_rows=5, temperature=1.0, seed=0)
    assert plan._stream(0, 0, 6000).tolist() != plan._stream(0, 6000, 6000).tolist()


def test_a_stream_can_be_read_from_anywhere() -> None:
    plan = MixturePlan([3, 7000], n_rows=5, temperature=1.0, seed=0)
    for task, length in ((0, 9000), (1, 15_000)):
        whole = plan._stream(task, 0, length)
        for start in (0, 1, 4094, 4095, 4096, 6999, 7000, 8990):
            assert plan._stream(task, start, 10).tolist() == whole[start : start + 10].tolist()


def test_another_seed_is_another_order() -> None:
    rows = [
        MixturePlan(SIZES, n_rows=45, temperature=1.0, seed=seed).rows(0).tolist()
        for seed in (0, 1)
    ]
    assert rows[0] != rows[1]


def test_the_default_epoch_holds_all_examples() -> None:
    sampler = MixtureBatchSampler(SIZES, batch_size=6, seed=0)
    assert len(sampler) == 8
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [6] * 8
    assert len({index for batch in batches for index, _ in batch}) == 45
    assert [row for _, row in batches[3]] == [0, 1, 2, 3, 4, 5]


def test_steps_per_epoch() -> None:
    sampler = MixtureBatchSampler(SIZES, batch_size=6, seed=0, steps_per_epoch=3, accumulate=2)
    assert len(sampler) == 6
    assert len(list(sampler)) == 6


@pytest.mark.parametrize("per_batch", [None, 1, 2])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 3), (2, 1), (3, 2), (4, 3)])
def test_a_global_batch_does_not_depend_on_its_slices(
    world_size: int, accumulate: int, per_batch: int | None
) -> None:
    whole = list(MixtureBatchSampler(SIZES, batch_size=12, seed=5, tasks_per_batch=per_batch))
    ranks = [
        list(
            MixtureBatchSampler(
                SIZES,
                batch_size=12,
                seed=5,
                rank=rank,
                world_size=world_size,
                accumulate=accumulate,
                tasks_per_batch=per_batch,
            )
        )
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        micro = [
            key
            for position in range(step * accumulate, (step + 1) * accumulate)
            for rank in ranks
            for key in rank[position]
        ]
        assert micro == batch


def test_epochs_are_reshuffled_unless_told_otherwise() -> None:
    sampler = MixtureBatchSampler(SIZES, batch_size=9, seed=0)
    assert _indices(sampler) != _indices(sampler)
    sampler = MixtureBatchSampler(SIZES, batch_size=9, seed=0, reshuffle=False)
    assert _indices(sampler) == _indices(sampler)


def test_an_iterator_that_is_not_consumed_begins_no_epoch() -> None:
    sampler, other = (MixtureBatchSampler(SIZES, batch_size=9, seed=0) for _ in range(2))
    iter(sampler)
    assert list(sampler) == list(other)


def test_an_epoch_that_was_left_early_is_over() -> None:
    sampler, other = (MixtureBatchSampler(SIZES, batch_size=9, seed=0) for _ in range(2))
    batches = iter(sampler)
    next(batches)
    list(other)
    assert list(sampler) == list(other)


@pytest.mark.parametrize("per_batch", [None, 1, 2])
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_continuation(stop: int, per_batch: int | None) -> None:
    whole = MixtureBatchSampler(SIZES, batch_size=9, seed=0, tasks_per_batch=per_batch)
    _, second, third = list(whole), list(whole), list(whole)
    interrupted = MixtureBatchSampler(SIZES, batch_size=9, seed=0, tasks_per_batch=per_batch)
    list(interrupted)
    batches = iter(interrupted)
    seen = [next(batches) for _ in range(stop)]
    resumed = MixtureBatchSampler(SIZES, batch_size=9, seed=77, tasks_per_batch=per_batch)
    resumed.load_state_dict(copy.deepcopy(interrupted.state_dict()))
    if stop < len(whole):
        seen.extend(resumed)
    assert seen == second
    assert list(resumed) == third


def test_a_resumed_epoch_that_was_left_early_is_over() -> None:
    whole = MixtureBatchSampler(SIZES, batch_size=9, seed=0)
    first, second = list(whole), list(whole)
    interrupted = MixtureBatchSampler(SIZES, batch_size=9, seed=0)
    next(iter(interrupted))
    resumed = MixtureBatchSampler(SIZES, batch_size=9, seed=0)
    resumed.load_state_dict(interrupted.state_dict())
    assert next(iter(resumed)) == first[1]
    assert list(resumed) == second


def test_continuation_from_a_fresh_state() -> None:
    sampler, other = (MixtureBatchSampler(SIZES, batch_size=9, seed=0) for _ in range(2))
    sampler.load_state_dict(other.state_dict())
    assert list(sampler) == list(other)


def test_continuation_with_other_ranks() -> None:
    pair = [
        MixtureBatchSampler(SIZES, batch_size=8, seed=0, rank=rank, world_size=2)
        for rank in range(2)
    ]
    iterators = [iter(sampler) for sampler in pair]
    for _ in range(3):
        for batches in iterators:
            next(batches)
    assert pair[0].state_dict() == pair[1].state_dict()
    single = MixtureBatchSampler(SIZES, batch_size=8, seed=0)
    expected = list(single)[3:]
    single.load_state_dict(pair[1].state_dict())
    assert list(single) == expected


def test_continuation_in_the_middle_of_another_batch() -> None:
    sampler = MixtureBatchSampler(SIZES, batch_size=8, seed=0, accumulate=2)
    next(iter(sampler))
    with pytest.raises(ValueError, match="after 4 rows of the epoch with 1 ranks of 8 rows"):
        MixtureBatchSampler(SIZES, batch_size=8, seed=0).load_state_dict(sampler.state_dict())


def test_continuation_with_other_data() -> None:
    state = MixtureBatchSampler(SIZES, batch_size=8, seed=0).state_dict()
    other = MixtureBatchSampler([29, 11], batch_size=4, seed=0, temperature=2.0)
    with pytest.raises(
        ValueError, match="sizes was 3 tasks of 45 examples and is 2 tasks of 40 ex"
    ):
        other.load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"batch_size was 8 and is 4, temperature was 1.0 and is 2"
    ):
        other.load_state_dict(state)


def test_a_state_from_before_tasks_per_batch_is_of_batches_as_drawn() -> None:
    state = MixtureBatchSampler(SIZES, batch_size=8, seed=0).state_dict()
    del state["tasks_per_batch"]
    MixtureBatchSampler(SIZES, batch_size=8, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="tasks_per_batch was None and is 2"):
        MixtureBatchSampler(SIZES, batch_size=8, seed=0, tasks_per_batch=2).load_state_dict(state)


def test_steps_per_epoch_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"data\.steps_per_epoch=0 · it must be at least 1"):
        MixtureBatchSampler(SIZES, batch_size=8, seed=0, steps_per_epoch=0)


@pytest.mark.parametrize(
    ("batch_size", "advice"), [(50, "use 48 or 54"), (5, r"use 6\."), (0, r"use 6\.")]
)
def test_a_global_batch_must_divide(batch_size: int, advice: str) -> None:
    with pytest.raises(
        ValueError, match=rf"data\.batch_size={batch_size} .* 3 ranks x .*=2 = 6 · {advice}"
    ):
        slice_size(batch_size, world_size=3, accumulate=2)
    assert slice_size(54, world_size=3, accumulate=2) == 9
