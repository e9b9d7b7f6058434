"""Bounded, seeded, rank-sharded evaluation."""

import itertools

import pytest

from polylab.data.evaluation import (
    FILLER,
    EvaluationBatchSampler,
    choose_examples,
    evaluation_order,
)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("count", [0, 1, 5, 12, 31])
def test_each_example_is_on_one_rank_once_and_ranks_have_as_many_batches(
    count: int, world_size: int
) -> None:
    order = [(100 + i, i) for i in range(count)]
    samplers = [
        EvaluationBatchSampler(order, batch_size=6, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    ranks = [list(sampler) for sampler in samplers]
    filler = [(100, FILLER)]
    own = [batch for rank in ranks for batch in rank if batch != filler]
    assert sorted(key for batch in own for key in batch) == order
    assert all(0 < len(batch) <= 6 // world_size for batch in own)
    assert {len(batches) for batches in ranks} == {-(-count // (6 // world_size * world_size))}
    assert [*map(len, samplers)] == [*map(len, ranks)]
    if world_size == 1:
        assert filler not in ranks[0]


def test_ranks_work_in_step() -> None:
    order = [(i, i) for i in range(31)]
    samplers = [
        EvaluationBatchSampler(order, batch_size=8, rank=rank, world_size=2) for rank in range(2)
    ]
    assert [len(sampler) for sampler in samplers] == [4, 4]
    assert [[len(batch) for batch in sampler] for sampler in samplers] == [[3, 4, 4, 4], [4] * 4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (12, 4), (40, 7), (1, 3)])
def test_a_sample_is_the_same_on_any_number_of_ranks(
    n: int, batch_size: int, world_size: int
) -> None:
    order = [(100 + i, i) for i in range(31)]
    alone = EvaluationBatchSampler(order, batch_size=8).sample_evenly(n, batch_size=batch_size)
    ranks = [
        EvaluationBatchSampler(order, batch_size=8, rank=rank, world_size=world_size).sample_evenly(
            n, batch_size=batch_size
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    filler = [(index, FILLER) for index, _ in alone[0]]
    together = [b for at in zip(*ranks, strict=True) for b in at]
    assert together == alone + [filler] * (len(together) - len(alone))
    sizes = [*map(len, alone)]
    assert sum(sizes) == min(n, 31)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    gaps = [b[0] - a[0] for a, b in itertools.pairwise([key for b in alone for key in b])]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_sample_of_nothing() -> None:
    assert EvaluationBatchSampler([], batch_size=8).sample_evenly(3, batch_size=2) == []
    assert EvaluationBatchSampler([(4, 0)], batch_size=8).sample_evenly(0, batch_size=2) == []


def test_an_evaluation_repeats() -> None:
    sampler = EvaluationBatchSampler([(4, 0), (2, 1), (9, 2)], batch_size=2)
    assert list(sampler) == list(sampler)


def test_an_evaluation_of_nothing() -> None:
    assert list(EvaluationBatchSampler([], batch_size=2)) == []


def test_a_chosen_subset_is_seeded_per_task() -> None:
    chosen = choose_examples(50, limit=6, seed=0, name="a")
    assert chosen == choose_examples(50, limit=6, seed=0, name="a")
    assert len(set(chosen)) == 6
    assert chosen == sorted(chosen)
    assert chosen != choose_examples(50, limit=6, seed=1, name="a")
    assert chosen != choose_examples(50, limit=6, seed=0, name="b")
    assert set(chosen) < set(choose_examples(50, limit=9, seed=0, name="a"))


def test_without_a_limit_all_are_chosen() -> None:
    assert choose_examples(4, limit=None, seed=0, name="a") == [0, 1, 2, 3]
    assert choose_examples(4, limit=9, seed=0, name="a") == [0, 1, 2, 3]


def test_short_inputs_come_first_and_rows_number_the_chosen() -> None:
    lengths = [5, 3, 4, 9, 1]
    asked = []

    def length(index: int) -> int:
        asked.append(index)
        return lengths[index]

    order = evaluation_order([2, 3], length, names=["a", "b"], limit=None, seed=0)
    assert order == [(4, 4), (1, 1), (2, 2), (0, 0), (3, 3)]
    asked.clear()
    order = evaluation_order([2, 3], length, names=["a", "b"], limit=1, seed=0)
    assert len(asked) == 2
    assert sorted(row for _, row in order) == [0, 1]
    first, second = sorted(order, key=lambda key: key[1])
    assert first[0] in (0, 1)
    assert second[0] in (2, 3, 4)
