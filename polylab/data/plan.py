"""The order of training rows over the epochs: which task each is of, and which example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray

from polylab.data.mixing import mixing_probabilities
from polylab.data.task_batches import TaskBatches

_BLOCK = 4096  # small tasks are shuffled this many draws at a time


class MixturePlan:
    """The order of the global training batches, a pure function of the arguments and the epoch.

    Per epoch each task is drawn `p_t * n_rows` times, rounded up or down at random so that the
    expectation is exact; `TaskBatches` say how, where a batch holds so many tasks. Within a task
    nothing repeats before all its examples were drawn, across epochs too.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        n_rows: int,
        seed: int,
        temperature: float = 1.0,
        probabilities: Float[ndarray, " tasks"] | None = None,
        tasks_per_batch: int | None = None,
        batch_size: int = 1,
    ) -> None:
        by_size = mixing_probabilities(sizes, temperature=temperature)
        self.sizes = list(sizes)
        self.n_rows = n_rows
        self.seed = seed
        mix = by_size if probabilities is None else probabilities
        self._edges = np.cumsum(mix)
        self._edges[-1] = 1.0
        self._offsets = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._batches = (
            None
            if tasks_per_batch is None
            else TaskBatches(mix, per_batch=tasks_per_batch, batch_size=batch_size)
        )
        self._drawn = [np.zeros(len(self.sizes), dtype=np.int64)]  # before each epoch so far

    def counts(self, epoch: int) -> Int64[ndarray, " tasks"]:
        """How often each task is drawn in `epoch`; the sum is `n_rows`."""
        if self._batches:
            return np.bincount(self._tasks(epoch, self._batches), minlength=len(self.sizes))
        shift = self._rng(epoch, 0).random()
        ends = np.floor(self._edges * self.n_rows + shift).astype(np.int64)
        return np.diff(np.minimum(ends, self.n_rows), prepend=0)  # the sum may round up

    def rows(self, epoch: int) -> Int64[ndarray, " rows"]:
        """The example of every row of the epoch, as an index into the concatenated tasks."""
        while len(self._drawn) <= epoch:
            self._drawn.append(self._drawn[-1] + self.counts(len(self._drawn) - 1))
        if not self._batches:
            by_task = self._examples(epoch, self.counts(epoch))
            return self._rng(epoch, 1).permutation(by_task)
        tasks = self._tasks(epoch, self._batches)
        rows = np.empty_like(tasks)
        counts = np.bincount(tasks, minlength=len(self.sizes))
        rows[np.argsort(tasks, kind="stable")] = self._examples(epoch, counts)
        return rows

    def _tasks(self, epoch: int, batches: TaskBatches) -> Int64[ndarray, " rows"]:
        return batches.tasks(self.n_rows // batches.batch_size, self._rng(epoch, 0)).ravel()

    def _examples(self, epoch: int, counts: Int64[ndarray, " tasks"]) -> Int64[ndarray, " rows"]:
        # the epoch's examples, task by task
        drawn = self._drawn[epoch]
        return np.concatenate(
            [
                self._offsets[task] + self._stream(task, int(drawn[task]), int(counts[task]))
                for task in np.flatnonzero(counts).tolist()
            ]
        )

    def _stream(self, task: int, start: int, length: int) -> Int64[ndarray, " length"]:
        # The endless stream of a task: one permutation of its examples after another.
        size = self.sizes[task]
        passes = max(1, _BLOCK // size)
        first, last = start // (size * passes), (start + length - 1) // (size * passes)
        blocks = [self._block(task, block, passes) for block in range(first, last + 1)]
        begin = start - first * size * passes
        return np.concatenate(blocks)[begin : begin + length]

    def _block(self, task: int, block: int, passes: int) -> Int64[ndarray, " length"]:
        tiled = np.tile(np.arange(self.sizes[task], dtype=np.int64), (passes, 1))
        return self._rng(block, 2, task).permuted(tiled, axis=1).ravel()

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])
