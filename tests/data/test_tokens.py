"""The cache of token ids."""

import numpy as np
import pytest

from polylab.data.tokens import Pair, TokenCache


def _pair(index: int, n_input: int = 3, n_target: int = 2) -> Pair:
    ids = np.arange(n_input + n_target, dtype=np.int32) + 100 * index
    return ids[:n_input], ids[n_input:]


def _found(cache: TokenCache, index: int) -> list[list[int]] | None:
    pair = cache.get(index)
    return None if pair is None else [ids.tolist() for ids in pair]


def _ids(index: int) -> list[list[int]]:
    return [ids.tolist() for ids in _pair(index)]


def test_what_was_put_is_there() -> None:
    cache = TokenCache(5000)
    assert cache.get(7) is None
    for index in range(5000):  # the buffer grows several times
        cache.put(index, _pair(index))
    assert all(_found(cache, index) == _ids(index) for index in range(5000))
    assert cache.lengths[7].tolist() == [3, 2]


@pytest.mark.parametrize("max_tokens", [10, 13, 14, 15, 25])
def test_the_oldest_are_forgotten(max_tokens: int) -> None:
    cache = TokenCache(40, max_tokens=max_tokens)
    for index in range(40):
        cache.put(index, _pair(index))
        kept = [i for i in range(40) if cache.get(i) is not None]
        held = cache.holds(range(40), ids=True)
        assert held.tolist() == [i in kept for i in range(40)]
        assert kept == list(range(index + 1))[-len(kept) :]
        assert min(index + 1, max_tokens // 5 - 1) <= len(kept) <= max_tokens // 5
        assert all(_found(cache, i) == _ids(i) for i in kept)
    assert cache._buffer.size <= max_tokens
    assert cache.holds(range(40), ids=False).all()


def test_lengths_alone() -> None:
    cache = TokenCache(4)
    cache.put_lengths([1, 3], np.array([[5, 6], [7, 8]], dtype=np.int32))
    assert cache.lengths.tolist() == [[0, 0], [5, 6], [0, 0], [7, 8]]
    assert cache.holds([1, 2, 3], ids=False).tolist() == [True, False, True]
    assert not cache.holds([1, 2, 3], ids=True).any()
    assert cache.get(1) is None


def test_an_example_that_is_larger_than_the_buffer() -> None:
    cache = TokenCache(2, max_tokens=6)
    cache.put(0, _pair(0))
    cache.put(1, _pair(1, n_input=5))
    assert cache.get(1) is None
    assert cache.lengths[1].tolist() == [5, 2]
    assert _found(cache, 0) == _ids(0)


def test_ids_are_copies() -> None:
    cache = TokenCache(3, max_tokens=5)
    cache.put(0, _pair(0))
    pair = cache.get(0)
    cache.put(1, _pair(1))
    assert pair is not None
    assert [ids.tolist() for ids in pair] == _ids(0)
