"""Mix the skills of many layers of one shape at once.

The banks are stacked for the product and again for its gradients: a copy of all skills that lived
from the forward to the backward pass would be a quarter of what their optimiser state takes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
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
    """How the mixed banks lie in memory.

    Args:
        members: Layers whose A*'s lie side by side.
        is_a: Whether the banks are A's `[splits, skills, block_in, r]`, which are joined to
            `[d_in, members * r]`; or B's `[splits, skills, r, block_out]`, to `[r, d_out]`.
        dtype: Of the result.
    """

    members: int
    is_a: bool
    dtype: torch.dtype

    def arrange(self, mixed: Float[Tensor, "l q n x y"]) -> Tensor:
        """`[g, n, q, d, m, r]` of A's, `[l, n, r, q, d]` of B's."""
        if self.is_a:
            return mixed.unflatten(0, (-1, self.members)).permute(0, 3, 2, 4, 1, 5)
        return mixed.permute(0, 2, 3, 1, 4)

    def restore(self, arranged: Tensor) -> Float[Tensor, "l q n x y"]:
        """The inverse of `arrange`."""
        if self.is_a:
            return arranged.permute(0, 4, 2, 1, 3, 5).flatten(0, 1)
        return arranged.permute(0, 3, 1, 2, 4)

    def empty(self, weights: Tensor, bank: Tensor) -> Tensor:
        """Room for an arranged result."""
        (layers, n), (q, _, x, y) = weights.shape[:2], bank.shape
        shape = (
            (layers // self.members, n, q, x, self.members, y)
            if self.is_a
            else (layers, n, x, q, y)
        )
        return bank.new_empty(shape, dtype=self.dtype)

    def strides(self, arranged: Tensor) -> tuple[int, ...]:
        """Of a group, a layer in it, n, q and x; and the number of layers in a group."""
        if self.is_a:
            group, n, q, x, member, _ = arranged.stride()
            return group, member, n, q, x, self.members
        group, n, x, q, _ = arranged.stride()
        return group, 0, n, q, x, 1


def mix(
    weights: Float[Tensor, "layers batch splits skills"], banks: Sequence[Tensor], layout: Layout
) -> Sequence[Float[Tensor, "batch rows columns"]]:
    """`sum_s w[l, n, q, s] bank[l, q, s]`: A* of each group of layers, or B* of each layer."""
    if torch.compiler.is_compiling():
        mixed = layout.arrange(_average(weights, torch.stack([*banks]))).to(layout.dtype)
        mixed = mixed.contiguous()
    else:
        mixed = _Mix.apply(weights, layout, *banks)
    if layout.is_a:
        return mixed.flatten(4).flatten(2, 3).unbind()
    return mixed.flatten(3).unbind()


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
    def forward(ctx, weights, layout, *banks):  # type: ignore[override]
        ctx.save_for_backward(weights, *banks)
        ctx.layout = layout
        stacked = torch.stack(banks)
        if not _has_kernel(stacked):
            mixed = layout.arrange(_average(weights, stacked))
            return mixed.to(layout.dtype).contiguous()
        out = layout.empty(weights, banks[0])
        average_stacked(weights, stacked, strides=layout.strides(out), out=out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        weights, *banks = ctx.saved_tensors
        layout, stacked = ctx.layout, torch.stack(banks)
        if _has_kernel(stacked):
            grad = grad.contiguous()
            w_grad, b_grad = average_stacked_backward(
                grad, weights, stacked, strides=layout.strides(grad)
            )
        else:
            w_grad, b_grad = _average_backward(layout.restore(grad), weights, stacked)
        b_grads = b_grad.unbind() if ctx.needs_input_grad[2] else [None] * len(banks)
        return (w_grad if ctx.needs_input_grad[0] else None, None, *b_grads)


def _has_kernel(stacked: Tensor) -> bool:
    return HAS_KERNELS and stacked.is_cuda and stacked.dtype == torch.float32
