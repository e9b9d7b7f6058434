"""The one exchange between ranks that neither Lightning nor torchmetrics does for us."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def gather_objects(item: T) -> list[T]:
    """`item` of every rank, in rank order, on every rank; `[item]` without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [item]
    items: list[T] = [item] * distributed.get_world_size()
    distributed.all_gather_object(items, item)
    return items
