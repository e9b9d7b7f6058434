"""Two Triton kernels that mix stacked skills: each number is read once and written once.

A product of a few rows with a few skills is too small for the libraries' kernels for matrices: they
took 4 to 6 % of a training step on an H200. Sums are of float32 precision over float32 skills (the
backward's run as three products of TensorFloat-32 numbers each), as in `polylab.poly.stacks`, whose
formula this is; only the result is rounded, and written in the layout in which the layers read it.
"""

# Triton comes with torch for CUDA, and has no types.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["average_stacked", "average_stacked_backward"]

_BLOCK = 512
_ROWS = 16
_BACKWARD_BLOCK, _BACKWARD_CHUNKS = 64, 16


def average_stacked(
    weights: Tensor,
    index: Tensor,
    banks: Tensor,
    *,
    scale: float,
    strides: tuple[int, ...],
    out: Tensor,
) -> None:
    """`out[l, n, q] = scale * sum_s weights[index[l], n, q, s] banks[l, q, s]`, matrices `[x, y]`.

    Args:
        weights: float32 `[routers, n, q, s]`.
        index: int64 `[l]`: each layer's router.
        banks: float32 `[l, q, s, x, y]`, contiguous.
        scale: Of the result.
        strides: Of out, in elements: of a group of layers, of a layer in its group, of n, of q and
            of x; y is contiguous. Then the number of layers in a group.
        out: Written.
    """
    layers, splits, skills, x, y = banks.shape
    rows = weights.shape[1]
    grid = (triton.cdiv(x * y, _BLOCK), triton.cdiv(rows, _ROWS), layers * splits)
    _average[grid](
        weights.contiguous(), index, banks, out, scale, rows, splits, skills, x * y, y,
        *strides, _ROWS, _BLOCK,
    )  # fmt: skip


def average_stacked_backward(
    grad: Tensor,
    weights: Tensor,
    index: Tensor,
    banks: Tensor,
    *,
    scale: float,
    strides: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Gradients of the layers' weights `[l, n, q, s]` and of the banks, float32.

    Args:
        grad: Of `out`, in its layout.
        weights: As in `average_stacked`.
        index: As there.
        banks: As there.
        scale: As there.
        strides: As there.
    """
    layers, splits, skills, x, y = banks.shape
    rows = weights.shape[1]
    b_grad = torch.empty_like(banks)
    # the smallest sides that a product on tensor cores has
    padded_rows = max(16, triton.next_power_of_2(rows))
    padded_skills = max(16, triton.next_power_of_2(skills))
    block = max(16, min(_BACKWARD_BLOCK, 8192 // max(padded_rows, padded_skills)))
    blocks = triton.cdiv(x * y, block)
    chunks = min(blocks, _BACKWARD_CHUNKS)
    parts = torch.empty(
        chunks, layers, splits, rows, skills, dtype=torch.float32, device=banks.device
    )
    _average_backward[(chunks, layers * splits)](
        grad, weights.contiguous(), index, banks, b_grad, parts, scale,
        rows, splits, skills, x * y, y, layers, triton.cdiv(blocks, chunks), *strides,
        padded_rows, padded_skills, block,
    )  # fmt: skip
    return parts.sum(0).transpose(1, 2), b_grad


@triton.jit
def _average(
    weights, index, banks, out, scale, rows, splits, skills: tl.constexpr, width, y: tl.constexpr,
    of_group, of_member, of_row, of_split, of_x, members,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)  # layer and split
    layer, split = head // splits, head % splits
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    of_weights = weights + ((tl.load(index + layer) * rows + n) * splits + split) * skills
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for s in range(skills):
        w = tl.load(of_weights + s, mask=n < rows, other=0.0)
        bank = tl.load(banks + (head * skills + s) * width + e, mask=e < width, other=0.0)
        total += w[:, None] * bank[None, :]
    place = (layer // members) * of_group + (layer % members) * of_member + split * of_split
    place = place + n[:, None].to(tl.int64) * of_row + (e // y)[None, :] * of_x + (e % y)[None, :]
    mask = (n < rows)[:, None] & (e < width)[None, :]
    tl.store(out + place, (total * scale).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _average_backward(
    grad, weights, index, banks, b_grad, parts, scale,
    rows, splits, skills, width, y: tl.constexpr, layers, blocks: tl.constexpr,
    of_group, of_member, of_row, of_split, of_x, members,
    ROWS: tl.constexpr, SKILLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    layer, split = head // splits, head % splits
    n, s = tl.arange(0, ROWS), tl.arange(0, SKILLS)
    of_weights = weights + ((tl.load(index + layer) * rows + n) * splits + split) * skills
    w = tl.load(
        of_weights[None, :] + s[:, None],
        mask=(n < rows)[None, :] & (s < skills)[:, None], other=0.0,
    )  # s n  # fmt: skip
    place = (layer // members) * of_group + (layer % members) * of_member + split * of_split
    total = tl.zeros((ROWS, SKILLS), dtype=tl.float32)
    first = tl.program_id(0) * blocks
    for block in range(blocks):
        e = (first + block) * BLOCK + tl.arange(0, BLOCK)
        inside = e < width
        where = place + n[:, None].to(tl.int64) * of_row
        where = where + (e // y)[None, :] * of_x + (e % y)[None, :]
        g = tl.load(grad + where, mask=(n < rows)[:, None] & inside[None, :], other=0.0)
        g = g.to(tl.float32) * scale  # n e
        at = (head * skills + s)[:, None] * width + e[None, :]
        mask = (s < skills)[:, None] & inside[None, :]
        bank = tl.load(banks + at, mask=mask, other=0.0)  # s e
        total += tl.dot(g, tl.trans(bank), input_precision="tf32x3")
        tl.store(b_grad + at, tl.dot(w, g, input_precision="tf32x3"), mask=mask)
    at = ((tl.program_id(0) * layers * splits + head) * rows + n)[:, None] * skills + s[None, :]
    tl.store(parts + at, total, mask=(n < rows)[:, None] & (s < skills)[None, :])
