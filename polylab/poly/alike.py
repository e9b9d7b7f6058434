"""One operation for all tensors of one shape, where one for each would mostly be overhead."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["alike", "by_shape"]

Key = TypeVar("Key", bound=Hashable)

MOST_CELLS = 2**20
"""Of a stack: what is computed from it should stay in the processor's cache."""


def by_shape(of: Callable[[Tensor], Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`of` each of `tensors`, where `of` maps stacks `[n, *shape]` to `[n, ...]`.

    A tensor that several names share is taken once.
    """
    distinct = {id(tensor): tensor for tensor in tensors.values()}
    made: dict[int, Tensor] = {}
    for keys in alike({key: (tensor,) for key, tensor in distinct.items()}):
        results = of(torch.stack([distinct[key] for key in keys])).unbind()
        made.update(zip(keys, results, strict=True))
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


def alike(tensors: Mapping[Key, tuple[Tensor, ...]], most: int = MOST_CELLS) -> Iterator[list[Key]]:
    """Keys whose tensors can be stacked, first with first, second with second.

    At most `most` cells a stack, but one key at least.
    """
    groups: dict[object, list[Key]] = {}
    for key, own in tensors.items():
        kind = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in own)
        groups.setdefault(kind, []).append(key)
    for keys in groups.values():
        cells = sum(tensor.numel() for tensor in tensors[keys[0]])
        together = max(1, most // max(1, cells))
        for i in range(0, len(keys), together):
            yield keys[i : i + together]
