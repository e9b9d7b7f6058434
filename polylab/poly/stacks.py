"""Mix the skills of many layers at once, in stacks of one shape.

The banks are stacked for the product and again for its gradients: a copy of all skills that lived
from the forward to the backward pass would be a quarter of what their optimiser state takes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from polylab.poly.combining import average

__all__ = ["HAS_KERNELS", "Layout", "mix"]

HAS_KERNELS = importlib.util.find_spec("triton") is not None
"""Whether tensors on CUDA devices are mixed by kernels of our own; the formula is the same."""

if TYPE_CHECKING or HAS_KERNELS:
    from polylab.poly.kernels import average_stacked, average_stacked_backward


@dataclass(frozen=True)
class Layout:
    """How the mixed banks of one shape lie in memory.

    Args:
        layers: How many there are.
        members: Layers whose banks are joined to one.
        is_a: Whether they are A's `[splits, skills, block_in, r]`, which lie side by side,
            `[d_in, members * r]`; or B's `[splits, skills, r, block_out]`, which are the blocks of
            a diagonal, `[members * r, members * d_out]`.
        dtype: Of the result.
        scale: Of the result.
    """

    layers: int
    members: int
    is_a: bool
    dtype: torch.dtype
    scale: float = 1.0

    def arrange(self, mixed: Float[Tensor, "l q n x y"]) -> Tensor:
        """`[g, n, q, d, m, r]` of A's, `[g, n, m, r, m, q, d]` of B's."""
        grouped = mixed.unflatten(0, (-1, self.members))  # g m q n x y
        if self.is_a:
            return grouped.permute(0, 3, 2, 4, 1, 5)
        blocks = grouped.permute(0, 3, 4, 2, 5, 1)  # g n x q y m
        if self.members == 1:
            return blocks[:, :, None, :, None, ..., 0]
        g, n, x, q, y, m = blocks.shape
        arranged = blocks.new_zeros(g, n, m, x, m, q, y)
        arranged.diagonal(dim1=2, dim2=4).copy_(blocks)
        return arranged

    def restore(self, arranged: Tensor) -> Float[Tensor, "l q n x y"]:
        """The inverse of `arrange`."""
        if self.is_a:
            return arranged.permute(0, 4, 2, 1, 3, 5).flatten(0, 1)
        return arranged.diagonal(dim1=2, dim2=4).permute(0, 5, 3, 1, 2, 4).flatten(0, 1)

    def empty(self, rows: int, bank: Tensor) -> Tensor:
        """Room for an arranged result, zero where nothing will be written."""
        q, _, x, y = bank.shape
        groups, m = self.layers // self.members, self.members
        shape = (groups, rows, q, x, m, y) if self.is_a else (groups, rows, m, x, m, q, y)
        make = bank.new_empty if self.is_a or m == 1 else bank.new_zeros
        return make(shape, dtype=self.dtype)

    def strides(self, arranged: Tensor) -> tuple[int, ...]:
        """Of a group, a layer in it, n, q and x; and the number of layers in a group."""
        if self.is_a:
            group, n, q, x, member, _ = arranged.stride()
        else:
            group, n, row, x, column, q, _ = arranged.stride()
            member = row + column
        return group, member, n, q, x, self.members

    def factors(self, arranged: Tensor) -> Sequence[Float[Tensor, "batch rows columns"]]:
        """A* or B* of each group."""
        return arranged.flatten(4).flatten(2, 3).unbind()


def mix(
    weights: Float[Tensor, "routers batch splits skills"],
    index: Int64[Tensor, " layers"],
    stacks: Sequence[tuple[Layout, Sequence[Tensor]]],
) -> list[Sequence[Float[Tensor, "batch rows columns"]]]:
    """`scale * sum_s w[n, q, s] bank[q, s]`: A*, or B*, of each group of layers.

    Args:
        weights: Of all routers.
        index: The router of each layer, through all stacks.
        stacks: The banks, by shape, and how they are to lie; all on one device.
    """
    layouts = [layout for layout, _ in stacks]
    banks = [bank for _, own in stacks for bank in own]
    if torch.compiler.is_compiling():
        chosen = weights.index_select(0, index).split([layout.layers for layout in layouts])
        mixed = [
            layout.arrange(_average(own * layout.scale, torch.stack([*found])))
            .to(layout.dtype)
            .contiguous()
            for own, (layout, found) in zip(chosen, stacks, strict=True)
        ]
    else:
        mixed = _Mix.apply(weights, index, layouts, *banks)
    return [layout.factors(own) for layout, own in zip(layouts, mixed, strict=True)]


def _average(weights: Tensor, stacked: Tensor) -> Float[Tensor, "l q n x y"]:
    by_head = weights.to(stacked.dtype).transpose(1, 2)  # l q n s
    mixed = average(by_head.flatten(0, 1), stacked.flatten(0, 1))
    return mixed.unflatten(0, by_head.shape[:2])


def _average_backward(
    grad: Float[Tensor, "l q n x y"], weights: Tensor, stacked: Tensor
) -> tuple[Tensor, Tensor]:
    grad = grad.to(stacked.dtype).flatten(3).flatten(0, 1)  # (l q) n (x y)
    by_head = weights.to(stacked.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (l q) s n
    w_grad = torch.bmm(grad, stacked.flatten(3).flatten(0, 1).transpose(1, 2))
    w_grad = w_grad.unflatten(0, stacked.shape[:2]).transpose(1, 2).to(weights.dtype)
    return w_grad, torch.bmm(by_head, grad).view(stacked.shape)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, index, layouts, *banks):  # type: ignore[override]
        ctx.save_for_backward(weights, index, *banks)
        ctx.layouts = layouts
        ctx.set_materialize_grads(False)
        mixed = []
        for layout, own, stacked in _stacked(layouts, index, banks):
            if _has_kernel(stacked):
                out = layout.empty(weights.shape[1], stacked[0])
                average_stacked(
                    weights, own, stacked, scale=layout.scale, strides=layout.strides(out), out=out
                )
            else:
                chosen = weights.index_select(0, own) * layout.scale
                out = layout.arrange(_average(chosen, stacked))
                out = out.to(layout.dtype).contiguous()
            mixed.append(out)
        return tuple(mixed)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[override]
        weights, index, *banks = ctx.saved_tensors
        w_grads, b_grads = [], []
        for (layout, own, stacked), grad in zip(
            _stacked(ctx.layouts, index, banks), grads, strict=True
        ):
            if grad is None:
                w_grads.append(weights.new_zeros(len(own), *weights.shape[1:]))
                b_grads += [None] * layout.layers
                continue
            if _has_kernel(stacked):
                grad = grad.contiguous()
                w_grad, b_grad = average_stacked_backward(
                    grad, weights, own, stacked, scale=layout.scale, strides=layout.strides(grad)
                )
            else:
                chosen = weights.index_select(0, own)
                grad = layout.restore(grad) * layout.scale
                w_grad, b_grad = _average_backward(grad, chosen, stacked)
            w_grads.append(w_grad)
            b_grads += b_grad.unbind()
        w_grad = None
        if ctx.needs_input_grad[0]:
            w_grad = torch.zeros_like(weights).index_add_(0, index, torch.cat(w_grads))
        if not ctx.needs_input_grad[3]:
            b_grads = [None] * len(banks)
        return w_grad, None, None, *b_grads


def _stacked(layouts: Sequence[Layout], index: Tensor, banks: Sequence[Tensor]) -> Any:
    """Each layout with its routers and its banks, which are let go before the next."""
    start = 0
    for layout in layouts:
        end = start + layout.layers
        yield layout, index[start:end], torch.stack([*banks[start:end]])
        start = end


def _has_kernel(stacked: Tensor) -> bool:
    return HAS_KERNELS and stacked.is_cuda and stacked.dtype == torch.float32
