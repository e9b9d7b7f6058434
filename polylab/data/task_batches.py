"""Batches of exactly k tasks each, without changing how often a task is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray

_EXACT = 1e-9  # what rounding errors stay below


class TaskBatches:
    """Which task every row of an epoch is of, where every batch holds exactly `per_batch` tasks.

    A task of probability `p` has `p * batch_size` rows in the mean batch, as without the bound. It
    is in a batch with the inclusion probability `pi = min(1, c * p)`, where `c` makes these sum to
    the number of tasks (sampling with probability proportional to size; Särndal, Swensson, Wretman
    1992, section 3.6.2), and then has `p * batch_size / pi` rows, rounded up or down at random. So
    the frequent tasks are in every batch with as many rows as they ought to have, and the others
    take turns and have equal rows.

    Over an epoch the number of a task's batches is the expectation rounded up or down at random.

    Args:
        probabilities: Of the tasks.
        per_batch: Distinct tasks in a batch; as many as there are, if that is fewer.
        batch_size: Rows of a batch.

    Raises:
        ValueError: If a batch has fewer rows, or the tasks' probabilities are so unlike that no
            batches of so many tasks have them on average.
    """

    def __init__(
        self, probabilities: Float[ndarray, " tasks"], *, per_batch: int, batch_size: int
    ) -> None:
        if per_batch > batch_size:
            raise ValueError(
                f"data.tasks_per_batch={per_batch} · a batch of data.batch_size={batch_size} rows "
                f"holds {batch_size} tasks at most · lower the one or raise the other."
            )
        self.per_batch = min(per_batch, len(probabilities))
        self.batch_size = batch_size
        # every task needs a whole row where it is, so that it is in p * batch_size batches at most
        most = np.minimum(1.0, probabilities * batch_size).sum()
        if most < self.per_batch - _EXACT:
            raise ValueError(
                f"data.tasks_per_batch={per_batch} · with more than {most:.3g} tasks in the mean "
                f"batch of data.batch_size={batch_size} rows, rare tasks would be drawn more often "
                f"than their share · use at most {int(most + _EXACT)}, a larger batch, or a more "
                "even mix (data.temperature, data.cap)."
            )
        self.inclusion = inclusion_probabilities(probabilities, self.per_batch)
        self._always = np.flatnonzero(self.inclusion == 1)
        self._others = np.flatnonzero(self.inclusion < 1)
        self._turns = self.per_batch - len(self._always)  # places of the others in a batch
        rows = probabilities[self._always] * batch_size
        shared = (batch_size - rows.sum()) / max(1, self._turns)
        self._rows = np.concatenate([rows, np.full(self._turns, shared)])

    def tasks(self, steps: int, rng: np.random.Generator) -> Int64[ndarray, "steps batch_size"]:
        """The task of every row of `steps` batches, which `rng` draws."""
        always = np.broadcast_to(self._always, (steps, len(self._always)))
        chosen = np.concatenate([always, self._taken_in_turns(steps, rng)], axis=1)
        rows = self._whole_rows(steps, rng)
        drawn = np.repeat(chosen.ravel(), rows.ravel()).reshape(steps, self.batch_size)
        return rng.permuted(drawn, axis=1)

    def _whole_rows(self, steps: int, rng: np.random.Generator) -> Int64[ndarray, "steps places"]:
        # Each place has one row; the rest is rounded so that every batch is full. The shifts of
        # the batches are spread evenly: a place's rows of the epoch are the expectation, rounded.
        spare = self.batch_size - self.per_batch
        edges = np.minimum(np.cumsum(np.maximum(self._rows - 1, 0)), spare)
        edges[-1] = spare
        shifts = (rng.permutation(steps) + rng.random()) / steps
        ends = np.minimum(np.floor(edges + shifts[:, None]).astype(np.int64), spare)
        return 1 + np.diff(ends, prepend=0, axis=1)

    def _taken_in_turns(
        self, steps: int, rng: np.random.Generator
    ) -> Int64[ndarray, "steps places"]:
        edges = np.cumsum(self.inclusion[self._others]) * steps
        edges[-1:] = self._turns * steps
        ends = np.floor(edges + rng.random()).astype(np.int64)
        batches = np.diff(np.minimum(ends, self._turns * steps), prepend=0)  # of each task
        # one task after another, down one column after another: none is twice in a batch
        columns = np.repeat(self._others, batches).reshape(self._turns, steps)
        chosen = rng.permutation(columns.T)
        if self._turns > 1:
            for _ in range(2 * steps.bit_length()):  # until any tasks may have met
                _trade(chosen, rng)
        return chosen


def _trade(chosen: Int64[ndarray, "steps places"], rng: np.random.Generator) -> None:
    """Let pairs of batches deal their tasks anew, at random; what both hold stays in both.

    Every task keeps its number of batches, and every batch its number of tasks ("curveball";
    Strona et al. 2014, https://doi.org/10.1038/ncomms5114).
    """
    steps, places = chosen.shape
    pairs = rng.permutation(steps)[: steps // 2 * 2].reshape(2, -1)
    pool = np.sort(np.concatenate([chosen[pairs[0]], chosen[pairs[1]]], axis=1), axis=1)
    twice = pool[:, 1:] == pool[:, :-1]
    keys = rng.random(pool.shape)
    keys[:, :-1][twice] = -1  # to the first of the pair
    keys[:, 1:][twice] = 2  # to the second
    pool = np.take_along_axis(pool, np.argsort(keys, axis=1), axis=1)
    chosen[pairs[0]], chosen[pairs[1]] = pool[:, :places], pool[:, places:]


def inclusion_probabilities(probabilities: Any, per_batch: int) -> Float[ndarray, " tasks"]:
    """`min(1, c * p)` with the `c` that makes them sum to `per_batch`."""
    p = np.asarray(probabilities, dtype=np.float64)
    always = np.zeros(len(p), dtype=bool)
    while True:
        turns = per_batch - int(always.sum())
        if turns == 0:
            return always.astype(np.float64)
        found = np.where(always, 1.0, turns * p / p[~always].sum())
        more = (found > 1 - _EXACT) & ~always
        if not more.any():
            return found
        always |= more
