"""The exchanges between ranks that neither Lightning nor torchmetrics does for us."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, distributed

T = TypeVar("T")


def gather_objects(item: T) -> list[T]:
    """`item` of every rank, in rank order, on every rank; `[item]` without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [item]
    items: list[T] = [item] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items


def gather_tensors(tensor: Tensor) -> Tensor:
    """The rows of every rank, in rank order, on every rank; as many come from each."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    rows = tensor.new_zeros(distributed.get_world_size(), *tensor.shape)
    rows[distributed.get_rank()] = tensor
    distributed.all_reduce(rows)  # what gathers tensors is being renamed in torch 2.13
    return rows.flatten(0, 1)
