"""Batches of like lengths: what is in a window, what follows from the seed, what is padded."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest

from polylab.data.grouping import Grouping, ahead, alike, window_edges
from polylab.data.sampling import MixtureBatchSampler

SIZES = [290, 110, 50]


class _Lengths:
    """Lengths that follow from the index; notes what it is asked for."""

    def __init__(self, *, sides: int = 2, seed: int = 0, runs_beside: bool = False) -> None:
        self.runs_beside = runs_beside
        rng = np.random.default_rng(seed)
        self.known = rng.lognormal(3, 1, size=(sum(SIZES), sides)).astype(np.int32) + 1
        self.asked: list[int] = []

    def measure(self, indices: Sequence[int]) -> int:
        self.asked.append(len(indices))
        return len(indices)

    def lengths(self, indices: Sequence[int], measured: int) -> Any:
        assert measured == len(indices)
        return self.known[indices]

    def fingerprint(self) -> int:
        return int(self.known.sum())


def _sampler(window: int | None = 6, **changes: Any) -> MixtureBatchSampler:
    lengths = changes.pop("lengths", None) or _Lengths()
    arguments = {"batch_size": 8, "seed": 3, "temperature": 2.0, **changes}
    return MixtureBatchSampler(
        SIZES, **arguments, grouping=None if window is None else Grouping(lengths, window)
    )


def _indices(batches: Sequence[list[tuple[int, int]]]) -> list[list[int]]:
    return [[index for index, _ in batch] for batch in batches]


def _padding(lengths: Any, batches: Sequence[Sequence[int]]) -> float:
    paid = sum(len(batch) * int(lengths[batch].max(axis=0).sum()) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / paid


@pytest.mark.parametrize("window", [2, 6, 7, 1000])
def test_a_window_holds_what_it_held(window: int) -> None:
    drawn, grouped = (_indices(list(_sampler(w))) for w in (None, window))
    assert drawn != grouped
    assert {len(batch) for batch in grouped} == {8}
    edges = window_edges(len(drawn), window)
    assert (edges[0], edges[-1]) == (0, 57)
    for first, end in pairwise(edges):
        assert min(window, 57) <= end - first < 2 * min(window, 57)
        before, after = (chain.from_iterable(b[first:end]) for b in (drawn, grouped))
        assert Counter(before) == Counter(after)


def test_windows_are_alike() -> None:
    assert window_edges(587, 500) == [0, 587]
    assert window_edges(1100, 500) == [0, 550, 1100]
    assert window_edges(3, 500) == [0, 3]
    assert window_edges(5, 2) == [0, 2, 5]


@pytest.fixture(params=[1, 2])
def many(request: pytest.FixtureRequest) -> Any:
    """7,200 rows of log-normal lengths on one or two sides."""
    rng = np.random.default_rng(1)
    return rng.lognormal(3, 0.7, size=(7200, request.param)).astype(np.int32) + 1


def test_little_is_padded(many: Any) -> None:
    drawn = [*np.arange(7200).reshape(-1, 18)]
    grouped = alike(many, batch_size=18)
    assert sorted(np.concatenate(grouped)) == list(range(7200))
    assert {len(batch) for batch in grouped} == {18}
    assert _padding(many, drawn) > 0.6
    assert _padding(many, grouped) < (0.02 if many.shape[1] == 1 else 0.1)


def test_one_side_is_sorted(many: Any) -> None:
    """Nothing beats the sorted order where only one length counts."""
    lengths = many[:, :1]
    in_order = [*np.argsort(lengths[:, 0]).reshape(-1, 18)]
    assert _padding(lengths, alike(lengths, batch_size=18)) == _padding(lengths, in_order)


def test_both_sides_count() -> None:
    """Sorted by the input alone, targets come as they were drawn."""
    lengths = np.random.default_rng(1).lognormal(3, 0.7, size=(7200, 2)).astype(np.int32) + 1
    by_input = [*np.lexsort((lengths[:, 1], lengths[:, 0])).reshape(-1, 18)]
    assert _padding(lengths, alike(lengths, batch_size=18)) < _padding(lengths, by_input) / 3


def test_one_batch_takes_the_rest(many: Any) -> None:
    batches = alike(many[:35], batch_size=8)
    assert sorted(map(len, batches)) == [3, 8, 8, 8, 8]
    assert alike(many[:3], batch_size=8)[0].tolist() == [0, 1, 2]


def test_like_lengths_in_any_order_of_batches() -> None:
    """Short and long batches come mixed: their order follows from the seed and the epoch."""
    lengths = _Lengths()
    orders = [
        _indices(list(_sampler(1000, seed=seed, lengths=lengths, temperature=1.0)))
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    means = [lengths.known[batch].sum(axis=1).mean() for batch in orders[0]]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4
    sampler = _sampler(lengths=lengths)
    assert _indices(list(sampler)) != _indices(list(sampler))
    sampler = _sampler(lengths=lengths, reshuffle=False)
    assert _indices(list(sampler)) == _indices(list(sampler))


def test_no_two_windows_are_shuffled_alike() -> None:
    lengths = _Lengths()
    lengths.known[:] = 5
    rows = np.arange(96)
    orders = [
        tuple((part - 48 * (first > 0)).tolist())
        for key in ((0, 0), (0, 1), (1, 0))
        for first, part in Grouping(lengths, 6).windows(rows, batch_size=8, step=0, key=key)
    ]
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(48)) for order in orders)


@pytest.mark.parametrize("runs_beside", [False, True])
@pytest.mark.parametrize("stop", [1, 6, 13, 56, 57])
def test_continuation(stop: int, runs_beside: bool) -> None:
    whole = _sampler()
    _, second, third = list(whole), list(whole), list(whole)
    assert len(second) == 57
    interrupted = _sampler()
    list(interrupted)
    batches = iter(interrupted)
    seen = [next(batches) for _ in range(stop)]
    resumed = _sampler(seed=9, lengths=_Lengths(runs_beside=runs_beside))
    resumed.load_state_dict(interrupted.state_dict())
    if stop < 57:
        seen.extend(resumed)
    assert seen == second
    assert list(resumed) == third


def test_a_continuation_measures_no_window_that_is_over() -> None:
    lengths = _Lengths()
    sampler = _sampler(6)
    batches = iter(sampler)
    for _ in range(20):
        next(batches)
    resumed = _sampler(6, lengths=lengths)
    resumed.load_state_dict(sampler.state_dict())
    next(iter(resumed))
    assert lengths.asked == [8 * 6]
    list(resumed)
    assert sum(lengths.asked) == 8 * 6 + 8 * 57


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_a_global_batch_does_not_depend_on_its_slices(world_size: int, accumulate: int) -> None:
    whole = list(_sampler())
    ranks = [
        list(_sampler(rank=rank, world_size=world_size, accumulate=accumulate))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        micro = range(step * accumulate, (step + 1) * accumulate)
        assert [key for position in micro for rank in ranks for key in rank[position]] == batch


def test_continuation_with_other_ranks() -> None:
    pair = [_sampler(rank=rank, world_size=2) for rank in range(2)]
    for sampler in pair:
        batches = iter(sampler)
        for _ in range(9):
            next(batches)
    assert pair[0].state_dict() == pair[1].state_dict()
    single = _sampler()
    expected = list(single)[9:]
    single.load_state_dict(pair[1].state_dict())
    assert list(single) == expected


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [
        ((6, 0), (7, 0), "group_by_length was 6 and is 7 "),
        ((6, 0), (None, 0), r"group_by_length was 6 and is None, token_lengths was \d+ and is No"),
        ((6, 0), (6, 1), r"token_lengths was \d+ and is \d+ · an exact resume needs the same data"),
    ],
)
def test_continuation_with_other_groups(saved: Any, now: Any, message: str) -> None:
    first, second = (_sampler(w, lengths=_Lengths(seed=seed)) for w, seed in (saved, now))
    with pytest.raises(ValueError, match=f"cannot resume: {message}"):
        second.load_state_dict(first.state_dict())


def test_a_state_from_before_there_were_groups() -> None:
    sampler = _sampler(None)
    next(iter(sampler))
    state = sampler.state_dict()
    old = {k: v for k, v in state.items() if k not in ("group_by_length", "token_lengths")}
    resumed = _sampler(None)
    resumed.load_state_dict(old)
    assert resumed.state_dict() == state
    with pytest.raises(ValueError, match="group_by_length was None and is 6"):
        _sampler(6).load_state_dict(old)


def test_ahead_is_one_ahead() -> None:
    begun, release = threading.Event(), threading.Event()

    def double(number: int) -> int:
        if number == 2:
            begun.set()
            assert release.wait(10)
        return 2 * number

    results = ahead(double, range(1, 5), beside=True)
    assert next(results) == 2
    assert begun.wait(10)  # the second is in work while we have the first
    release.set()
    assert list(results) == [4, 6, 8]
    assert list(ahead(double, [1, 3], beside=False)) == [2, 6]


def test_ahead_shows_errors_and_stops_when_left() -> None:
    def divide(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        list(ahead(divide, [1, 0], beside=True))

    asked: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            asked.append(item)
            yield item

    results = ahead(divide, (i + 1 for i in items()), beside=True)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert asked == [0, 1]
