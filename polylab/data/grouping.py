"""Batches of examples that are alike in length, so that little of a batch is padding."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Int32, Int64
from numpy import ndarray

Lengths = Int32[ndarray, "rows sides"]
"""Tokens of every row: of input and target where these are padded apart, else of both together."""
Rows = Int64[ndarray, " rows"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class LengthSource(Protocol):
    """Knows how many tokens an example has."""

    runs_beside: bool
    """Whether `measure` is worth a thread."""

    def measure(self, indices: Sequence[int], /) -> Any:
        """Find out what is not known yet, without changing anything."""
        ...

    def lengths(self, indices: Sequence[int], measured: Any, /) -> Lengths:
        """The lengths of the same indices, after what `measure` found was taken up."""
        ...

    def fingerprint(self) -> int:
        """A number that changes with the lengths."""
        ...


@dataclass(frozen=True)
class Grouping:
    """Orders an epoch so that a batch holds rows of like lengths, one window after another.

    A window holds the rows that it held before, so the mix of tasks in it stays as sampled; it is
    at least `window` batches long, or the epoch. Lengths are found window by window, the next one's
    in a thread while one is used.

    Args:
        source: Of the lengths.
        window: In batches.
    """

    source: LengthSource
    window: int

    @cached_property
    def fingerprint(self) -> int:
        """The source's."""
        return self.source.fingerprint()

    def windows(
        self, rows: Rows, *, batch_size: int, step: int, key: Sequence[int]
    ) -> Iterator[tuple[int, Rows]]:
        """The first step and the ordered rows of every window, from that with `step` on.

        Args:
            rows: Of the epoch, a whole number of batches.
            batch_size: Rows of a batch.
            step: Where to go on.
            key: Seeds the order of the batches.
        """
        edges = window_edges(len(rows) // batch_size, self.window)
        spans = [(first, end) for first, end in pairwise(edges) if end > step]
        parts = [rows[first * batch_size : end * batch_size] for first, end in spans]
        found = ahead(
            lambda part: self.source.measure(part.tolist()), parts, beside=self.source.runs_beside
        )
        for (first, _), part, measured in zip(spans, parts, found, strict=True):
            batches = alike(self.source.lengths(part.tolist(), measured), batch_size=batch_size)
            np.random.default_rng([*key, first]).shuffle(batches)
            yield first, part[np.concatenate(batches)]


def window_edges(steps: int, window: int) -> list[int]:
    """Edges of windows that are alike and of at least `window` steps (or all steps)."""
    number = max(1, steps // window)
    return [steps * i // number for i in range(number + 1)]


def alike(lengths: Lengths, *, batch_size: int) -> list[Int64[ndarray, " batch"]]:
    """Positions of the rows in batches of `batch_size` (one takes the rest), little padded.

    Each batch pays its longest input and its longest target for every row. All rows are sorted by
    either side and cut in two where the halves would pay least; then each half, and so on. (Sorting
    by one side alone leaves the other as it comes: three to five times the padding.)
    """
    batches: list[Int64[ndarray, " batch"]] = []
    ahead_of = [np.arange(len(lengths))]
    while ahead_of:
        rows = ahead_of.pop()
        if len(rows) <= batch_size:
            batches.append(rows)
        else:
            ahead_of.extend(_halves(rows, lengths[rows].astype(np.int64), batch_size=batch_size))
    return batches


def _halves(
    rows: Rows, lengths: Int64[ndarray, "rows sides"], *, batch_size: int
) -> tuple[Rows, Rows]:
    cuts = np.arange(batch_size, len(rows), batch_size)
    found: list[tuple[int, Rows, int]] = []
    for side in range(lengths.shape[1]):
        order = np.lexsort((*lengths.T, lengths[:, side]))  # the last key counts first
        ordered = lengths[order]
        before = np.maximum.accumulate(ordered)[cuts - 1].sum(axis=1)
        after = np.maximum.accumulate(ordered[::-1])[::-1][cuts].sum(axis=1)
        costs = before * cuts + after * (len(rows) - cuts)
        best = int(costs.argmin())
        found.append((int(costs[best]), order, int(cuts[best])))
    _, order, cut = min(found, key=lambda half: half[0])
    return rows[order[:cut]], rows[order[cut:]]


def ahead(function: Callable[[_In], _Out], items: Iterable[_In], *, beside: bool) -> Iterator[_Out]:
    """`map`, with the next result being computed in a thread while one is used if `beside`."""
    if not beside:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="polylab-lengths")
    try:
        futures: deque[Future[_Out]] = deque()
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > 1:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
