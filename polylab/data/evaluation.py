"""Which examples are evaluated: bounded, seeded, each on one rank."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from polylab.data.sampling import Key


class EvaluationBatchSampler(Sampler[list[Key]]):
    """This rank's share of the examples to evaluate: each example on one rank, once.

    `order` lists (index, row) pairs. It is cut into as many batches as all ranks need, of sizes
    that differ by at most one row, so that ranks work in step wherever there are enough rows.
    """

    def __init__(
        self, order: Sequence[Key], *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        local_size = max(1, batch_size // world_size)
        n_slices = world_size * -(-len(order) // (world_size * local_size))
        edges = [len(order) * i // n_slices for i in range(n_slices + 1)] if order else [0]
        slices = [list(order[a:b]) for a, b in itertools.pairwise(edges)]
        self._batches = [batch for batch in slices[rank::world_size] if batch]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Key]]:
        yield from self._batches


def choose_examples(size: int, *, limit: int | None, seed: int, name: str) -> list[int]:
    """At most `limit` of `size` positions, sorted; other tasks do not change a task's."""
    if limit is None:
        return list(range(size))
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return sorted(rng.permutation(size)[:limit].tolist())


def evaluation_order(
    lengths: Sequence[Sequence[int]], *, names: Sequence[str], limit: int | None, seed: int
) -> list[Key]:
    """(index, row) of at most `limit` examples per task, short inputs first.

    `lengths` has the length of every input, task by task; an index counts all examples, a row only
    the chosen ones, both in that order.
    """
    chosen: list[tuple[int, int]] = []  # length, index
    first = 0
    for task_lengths, name in zip(lengths, names, strict=True):
        positions = choose_examples(len(task_lengths), limit=limit, seed=seed, name=name)
        chosen.extend((task_lengths[i], first + i) for i in positions)
        first += len(task_lengths)
    rows = sorted(range(len(chosen)), key=lambda row: chosen[row][0])
    return [(chosen[row][1], row) for row in rows]
