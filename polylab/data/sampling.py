"""Which examples a training batch holds: temperature mixing, ranks, exact continuation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Float, Int64
from numpy import ndarray
from torch.utils.data import Sampler

from polylab.data.grouping import Grouping
from polylab.data.plan import MixturePlan

Key = tuple[int, int]
"""(index of the example, row in the global batch)."""


class MixtureBatchSampler(Sampler[list[Key]]):
    """One rank's share of the global training batches, resumable at any batch.

    A global batch is cut into `accumulate * world_size` equal slices: micro-batch by micro-batch,
    rank by rank. So the rows of an optimiser step do not depend on the number of ranks. The
    state is the same on every rank.

    Args:
        sizes: Training examples per task.
        batch_size: Rows of the global batch: all ranks and accumulation together.
        seed: Of the order.
        temperature: Of the mixing by size.
        probabilities: Of the tasks, in place of those by size.
        steps_per_epoch: Optimiser steps per epoch; by default as many as hold all examples once.
        rank: This process.
        world_size: Number of processes.
        accumulate: Micro-batches per optimiser step.
        reshuffle: False repeats epoch 0 for ever (to overfit some batches).
        grouping: Puts rows of like lengths into a batch; without it they come as drawn.
        tasks_per_batch: Distinct tasks in a global batch (`TaskBatches`); None is as drawn.

    Raises:
        ValueError: If a size is below 1, `batch_size` cannot be cut into equal slices,
            `steps_per_epoch` is below 1, or `tasks_per_batch` is not possible, or not with
            `grouping`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        temperature: float = 1.0,
        probabilities: Float[ndarray, " tasks"] | None = None,
        steps_per_epoch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        reshuffle: bool = True,
        grouping: Grouping | None = None,
        tasks_per_batch: int | None = None,
    ) -> None:
        self.local_size = slice_size(batch_size, world_size=world_size, accumulate=accumulate)
        check_counts(steps_per_epoch=steps_per_epoch, tasks_per_batch=tasks_per_batch)
        check_either(tasks_per_batch, grouping and grouping.window)
        self.sizes = list(sizes)
        self.batch_size = batch_size
        self.temperature, self.probabilities = temperature, probabilities
        self.seed = seed
        self.steps = steps_per_epoch or -(-sum(self.sizes) // batch_size)
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.reshuffle = reshuffle
        self.grouping = grouping
        self.tasks_per_batch = tasks_per_batch
        self.epoch = -1
        self.position = 0
        self._resumes = False
        self._plan = self._planned()

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        # Loaders may call iter() without consuming it: an epoch begins with the first next().
        if not (self._resumes and self.epoch >= 0 and self.position < len(self)):
            self.epoch += 1
            self.position = 0
        self._resumes = False
        for first, rows in self._windows(self.epoch if self.reshuffle else 0):
            start = first * self.accumulate
            end = start + len(rows) // self.batch_size * self.accumulate
            for position in range(max(start, self.position), end):
                self.position = position + 1
                yield self._slice(rows, position - start)

    def state_dict(self) -> dict[str, Any]:
        """Where to go on, and what the order depends on; plain numbers only."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "rows": self.position * self.world_size * self.local_size,
            **self._fixed(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, also with another number of ranks, and with its seed.

        Raises:
            ValueError: If the data, batch size, temperature or epoch length are others, or the
                rows seen are no whole number of batches here.
        """
        changed = [
            f"{key} was {_short(state.get(key))} and is {_short(value)}"
            for key, value in self._fixed().items()
            if state.get(key) != value  # states of older versions lack what was not there
        ]
        if changed:
            raise ValueError(
                f"cannot resume: {', '.join(changed)} · an exact resume needs the same data "
                "settings · restore them, or start a new run with init_from=."
            )
        position, rest = divmod(state["rows"], self.world_size * self.local_size)
        if rest:
            raise ValueError(
                f"cannot resume after {state['rows']} rows of the epoch with {self.world_size} "
                f"ranks of {self.local_size} rows · the rows must be a multiple of "
                f"{self.world_size * self.local_size} · use the number of ranks of the first run."
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], position
        self._plan = self._planned()
        self._resumes = True

    def _fixed(self) -> dict[str, Any]:
        return {
            "sizes": list(self.sizes),
            "batch_size": self.batch_size,
            "temperature": self.temperature,
            "probabilities": None if self.probabilities is None else self.probabilities.tolist(),
            "steps_per_epoch": self.steps,
            "group_by_length": self.grouping and self.grouping.window,
            "token_lengths": self.grouping and self.grouping.fingerprint,
            "tasks_per_batch": self.tasks_per_batch,
        }

    def _windows(self, epoch: int) -> Iterator[tuple[int, Int64[ndarray, " rows"]]]:
        # the first step and the rows of every part of the epoch that is not over
        rows = self._plan.rows(epoch)
        if self.grouping is None:
            return iter([(0, rows)])
        return self.grouping.windows(
            rows,
            batch_size=self.batch_size,
            step=self.position // self.accumulate,
            key=(self.seed, epoch, 3),
        )

    def _planned(self) -> MixturePlan:
        return MixturePlan(
            self.sizes,
            n_rows=self.steps * self.batch_size,
            temperature=self.temperature,
            probabilities=self.probabilities,
            tasks_per_batch=self.tasks_per_batch,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def _slice(self, rows: Int64[ndarray, " rows"], position: int) -> list[Key]:
        step, micro = divmod(position, self.accumulate)
        first = (micro * self.world_size + self.rank) * self.local_size
        begin = step * self.batch_size + first
        chosen = rows[begin : begin + self.local_size].tolist()
        return [(index, first + offset) for offset, index in enumerate(chosen)]


def check_counts(**counts: int | None) -> None:
    """Accept None or positive numbers.

    Raises:
        ValueError: If one is below 1.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(
                f"data.{name}={count} · it must be at least 1, or null for the default · raise it."
            )


def check_either(tasks_per_batch: int | None, group_by_length: int | None) -> None:
    """Accept one of the two ways to fill batches.

    Raises:
        ValueError: If both are asked for.
    """
    if tasks_per_batch is not None and group_by_length is not None:
        raise ValueError(
            f"data.tasks_per_batch={tasks_per_batch} with data.group_by_length={group_by_length} · "
            "batches are filled by task or by length · set one of them to null."
        )


def slice_size(batch_size: int, *, world_size: int, accumulate: int) -> int:
    """Rows per rank and micro-batch of a global batch.

    Raises:
        ValueError: If `batch_size` is not a positive multiple of `world_size * accumulate`.
    """
    slices = world_size * accumulate
    if batch_size < 1 or batch_size % slices:
        nearest = [size for size in (batch_size // slices * slices,) if size > 0]
        nearest.append((max(batch_size, 0) // slices + 1) * slices)
        raise ValueError(
            f"data.batch_size={batch_size} is the global batch · it must be a multiple of "
            f"{world_size} ranks x trainer.accumulate_grad_batches={accumulate} = {slices} · "
            f"use {' or '.join(map(str, nearest))}."
        )
    return batch_size // slices


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    if all(isinstance(item, int) for item in value):
        return f"{len(value)} tasks of {sum(value)} examples"
    return f"{', '.join(f'{item:.3g}' for item in value[:4])}, ..."
