"""Batches on their way from a worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A tensor travels as a file that both processes map, each an open file and fresh pages; an array
# is copied through the pipe. That took less time at every size tried, up to 250 KiB a tensor.
INLINE_BYTES = 512 * 1024

Collate = Callable[[Sequence[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Sender:
    """A collate function for worker processes: tensors that are not huge leave as arrays."""

    collate: Collate

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """The batch, for `received`."""
        return {key: _inline(value) for key, value in self.collate(items).items()}


def received(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as it was collated."""
    return {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in batch.items()
    }


class Receiver(Iterator[dict[str, Any]]):
    """The batches of a loader whose collate function is a `Sender`."""

    def __init__(self, batches: Iterator[dict[str, Any]]) -> None:
        self._batches = batches

    def __next__(self) -> dict[str, Any]:
        return received(next(self._batches))


def _inline(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) and value.nbytes <= INLINE_BYTES else value
