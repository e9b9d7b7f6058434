"""Which examples are evaluated: bounded, seeded, each on one rank; as many batches on each."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from polylab.data.sampling import Key

FILLER = -1  # the row of an example that is there for the number of batches only


class EvaluationBatchSampler(Sampler[list[Key]]):
    """This rank's share of the examples to evaluate: each example on one rank, once.

    `order` lists (index, row) pairs. It is cut into as many batches as all ranks need, of sizes
    that differ by at most one row. Every rank gets the same number of batches: one that would have
    fewer gets a last one that is a filler: the first example under the row `FILLER`, of which
    nothing is to count. One rank has none.
    """

    def __init__(
        self, order: Sequence[Key], *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._order, self._rank, self._world_size = order, rank, world_size
        local_size = max(1, batch_size // world_size)
        n_slices = world_size * -(-len(order) // (world_size * local_size))
        n_own = min(n_slices, len(order))
        slices = _cut(order, n_own)
        slices += [[(order[0][0], FILLER)] for _ in range(n_slices - n_own)]
        self._batches = slices[rank::world_size]

    def sample_evenly(self, n: int, *, batch_size: int) -> list[list[Key]]:
        """This rank's share of `n` of all examples, evenly spaced, in batches of `batch_size`.

        The batches of all ranks are the same for any number of them, of sizes that differ by at
        most one row; a rank that would have fewer gets a last one that is a filler in all rows.
        """
        n = min(n, len(self._order))
        if n < 1:
            return []
        chosen = [self._order[len(self._order) * i // n] for i in range(n)]
        batches = _cut(chosen, -(-n // batch_size))
        filler = [(index, FILLER) for index, _ in batches[0]]
        batches += [filler] * (-len(batches) % self._world_size)
        return batches[self._rank :: self._world_size]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Key]]:
        yield from self._batches


def _cut(keys: Sequence[Key], n: int) -> list[list[Key]]:
    """`n` batches in order, of sizes that differ by at most one row."""
    edges = [len(keys) * i // n for i in range(n + 1)] if n else [0]
    return [list(keys[a:b]) for a, b in itertools.pairwise(edges)]


def choose_examples(size: int, *, limit: int | None, seed: int, name: str) -> list[int]:
    """At most `limit` of `size` positions, sorted; other tasks do not change a task's."""
    if limit is None:
        return list(range(size))
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return sorted(rng.permutation(size)[:limit].tolist())


def evaluation_order(
    sizes: Sequence[int],
    length: Callable[[int], int],
    *,
    names: Sequence[str],
    limit: int | None,
    seed: int,
) -> list[Key]:
    """(index, row) of at most `limit` examples per task, short inputs first.

    Args:
        sizes: Examples of each task; an index counts them all, a row only the chosen ones.
        length: Of the input at an index; asked for the chosen ones.
        names: Of the tasks.
        limit: None is all.
        seed: Of the choice.
    """
    starts = itertools.accumulate(sizes, initial=0)
    chosen = [
        start + position
        for start, size, name in zip(starts, sizes, names, strict=False)
        for position in choose_examples(size, limit=limit, seed=seed, name=name)
    ]
    lengths = [*map(length, chosen)]
    rows = sorted(range(len(chosen)), key=lengths.__getitem__)
    return [(chosen[row], row) for row in rows]
