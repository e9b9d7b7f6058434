"""Rows of many tables in one operation, whose cost does not grow with the tables' length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["rows_of", "side_by_side"]


def rows_of(
    tables: Sequence[Float[Tensor, "tasks gates"]], ids: Int64[Tensor, "*batch"]
) -> Float[Tensor, "tables *batch gates"]:
    """`tables[t][ids]` for every table: alike in shape, dtype and device.

    Tables that lie side by side in memory are read where they are; others are copied first.
    """
    if torch.compiler.is_compiling():
        return torch.stack([*tables])[:, ids]
    return _Rows.apply(ids, *tables)  # type: ignore[return-value]


def side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """One view `[tensors, ...]` of tensors that follow each other in one storage, else None."""
    first = tensors[0]
    if type(first) not in (Tensor, nn.Parameter) or not first.is_contiguous():
        return None
    numel, shape, dtype = first.numel(), first.shape, first.dtype
    start, step = first.data_ptr(), numel * first.element_size()
    expected = range(start, start + step * len(tensors), step) if step else ()
    if [tensor.data_ptr() for tensor in tensors] != [*expected]:
        return None
    if any(t.shape != shape or t.dtype != dtype or not t.is_contiguous() for t in tensors):
        return None
    end = first.storage_offset() * first.element_size() + step * len(tensors)
    if first.untyped_storage().nbytes() < end:
        return None  # neighbours by chance, in storages of their own
    return first.as_strided((len(tensors), *shape), (numel, *first.stride()))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, *tables: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(ids)
        ctx.shape = (len(tables), *tables[0].shape)
        table = side_by_side(tables)
        table = torch.stack(tables) if table is None else table
        return table.index_select(1, ids.flatten()).view(len(table), *ids.shape, table.shape[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        rows = ids.flatten()
        grad = grad.reshape(ctx.shape[0], len(rows), ctx.shape[2])
        total = grad.new_zeros(ctx.shape)
        # Ids repeat: of the two operations each device has one that adds in a fixed order.
        if total.is_cuda:
            torch.ops.aten.index_put_(total, [None, rows], grad, accumulate=True)
        else:
            total.index_add_(1, rows, grad)
        return None, *total.unbind()  # neighbours again, for an optimiser that looks
