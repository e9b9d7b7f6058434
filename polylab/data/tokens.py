"""What was tokenised: the latest ids and the lengths of all, in memory; or everything, in files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray

from polylab.data.encoding import Pair

MAX_TOKENS = 2**24  # 64 MiB in each process


class TokenCache:
    """Keeps the ids of inputs and targets by index, the oldest forgotten first.

    One buffer holds all ids: it grows to `max_tokens` and is then written over from its start.

    Args:
        size: Indices are below it.
        max_tokens: Ids to hold.
    """

    def __init__(self, size: int, *, max_tokens: int = MAX_TOKENS) -> None:
        self.lengths: Int32[ndarray, "examples 2"] = np.zeros((size, 2), dtype=np.int32)
        self._starts = np.full(size, -1, dtype=np.int64)
        self._buffer = np.empty(0, dtype=np.int32)
        self._max_tokens = max_tokens
        self._written = 0  # never falls: position p is at p % max_tokens of the buffer

    def put(self, index: int, pair: Pair) -> None:
        """Keep the ids of `index`, unless they are more than the whole buffer holds."""
        lengths = len(pair[0]), len(pair[1])
        self.lengths[index] = lengths
        needed = sum(lengths)
        if needed > self._max_tokens:
            return
        begin = self._written % self._max_tokens
        if begin + needed > self._max_tokens:  # no pair is cut in two
            self._written += self._max_tokens - begin
            begin = 0
        self._grow(begin + needed)
        np.concatenate(pair, out=self._buffer[begin : begin + needed])
        self._starts[index] = self._written
        self._written += needed

    def get(self, index: int) -> Pair | None:
        """A copy of the ids of `index`, or None if they are not here (any more)."""
        start = self._starts[index]
        if start < self._oldest:
            return None
        begin = start % self._max_tokens
        n_input, n_target = self.lengths[index].tolist()
        both = self._buffer[begin : begin + n_input + n_target].copy()
        return both[:n_input], both[n_input:]

    def put_lengths(self, indices: Sequence[int], lengths: Int32[ndarray, "texts 2"]) -> None:
        """Keep the lengths alone."""
        self.lengths[indices] = lengths

    def holds(self, indices: Sequence[int], *, ids: bool) -> Bool[ndarray, " texts"]:
        """Whether the lengths, or the ids too, of each are known."""
        if ids:
            return self._starts[indices] >= self._oldest
        return self.lengths[indices, 1] > 0  # a target has its end at least

    @property
    def _oldest(self) -> int:
        return max(0, self._written - self._max_tokens)

    def _grow(self, size: int) -> None:
        if size > len(self._buffer):
            larger = np.empty(min(max(2 * size, 4096), self._max_tokens), dtype=np.int32)
            larger[: len(self._buffer)] = self._buffer
            self._buffer = larger


class StoredTokens:
    """The ids of all inputs and targets in files that are mapped: a `TokenCache` that is full.

    Pickled, it is the name of its folder, so that worker processes map the files too.

    Args:
        folder: Which `write` has filled.

    Raises:
        ValueError: If the files do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.lengths: Int32[ndarray, "examples 2"] = np.load(
                folder / _LENGTHS, mmap_mode="r", allow_pickle=False
            )
            self._ends = np.load(folder / _ENDS, mmap_mode="r", allow_pickle=False)
            self._ids = np.memmap(folder / _IDS, dtype=np.int32, mode="r")
            if len(self._ends) != len(self.lengths) or len(self._ids) != self._ends[-1]:
                raise ValueError("the files are not of one length")
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: cannot be read ({error}) · remove this folder.") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredTokens, (self._folder,)

    @staticmethod
    def write(folder: Path, chunks: Iterable[Sequence[Pair]]) -> None:
        """Fill a folder with the ids of all examples in their order."""
        lengths = []
        with (folder / _IDS).open("wb") as file:
            for pairs in chunks:
                lengths.append(np.array([(len(x), len(y)) for x, y in pairs], np.int32))
                file.write(np.concatenate([ids for pair in pairs for ids in pair]).tobytes())
        found = np.concatenate(lengths)
        np.save(folder / _LENGTHS, found)
        np.save(folder / _ENDS, np.cumsum(found.sum(axis=1, dtype=np.int64)))

    def put(self, index: int, pair: Pair) -> None:
        """Nothing: it is there."""

    def get(self, index: int) -> Pair:
        """A copy of the ids of `index`."""
        n_input, n_target = self.lengths[index].tolist()
        end = int(self._ends[index])
        both = np.array(self._ids[end - n_input - n_target : end])
        return both[:n_input], both[n_input:]

    def put_lengths(self, indices: Sequence[int], lengths: Int32[ndarray, "texts 2"]) -> None:
        """Nothing: they are there."""

    def holds(self, indices: Sequence[int], *, ids: bool) -> Bool[ndarray, " texts"]:  # noqa: ARG002
        """True of each."""
        return np.ones(len(indices), dtype=bool)


_IDS, _LENGTHS, _ENDS = "ids.int32", "lengths.npy", "ends.npy"
