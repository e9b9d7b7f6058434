"""Two Triton kernels that mix stacked skills: each number is read once and written once.

A product of a few rows with a few skills is too small for the libraries' kernels for matrices: they
took 4 to 6 % of a training step on an H200. Sums run in float32 over float32 skills, as in
`polylab.poly.stacks`, whose formula this is; only the result is rounded, and written in the layout
in which the layers read it.
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


def average_stacked(
    weights: Tensor, banks: Tensor, *, strides: tuple[int, ...], out: Tensor
) -> None:
    """`out[l, n, q] = sum_s weights[l, n, q, s] banks[l, q, s]`, each a matrix `[x, y]`.

    Args:
        weights: float32 `[l, n, q, s]`.
        banks: float32 `[l, q, s, x, y]`, contiguous.
        strides: Of out, in elements: of a group of layers, of a layer in its group, of n, of q and
            of x; y is contiguous. Then the number of layers in a group.
        out: Written.
    """
    layers, rows, splits, skills = weights.shape
    width, y = banks.shape[3] * banks.shape[4], banks.shape[4]
    grid = (triton.cdiv(width, _BLOCK), triton.cdiv(rows, _ROWS), layers * splits)
    _average[grid](
        weights.contiguous(), banks, out, rows, splits, skills, width, y, *strides, _ROWS, _BLOCK
    )


def average_stacked_backward(
    grad: Tensor, weights: Tensor, banks: Tensor, *, strides: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights and of the banks, float32.

    Args:
        grad: Of `out`, in its layout.
        weights: As in `average_stacked`.
        banks: As there.
        strides: As there.
    """
    layers, rows, splits, skills = weights.shape
    width, y = banks.shape[3] * banks.shape[4], banks.shape[4]
    b_grad = torch.empty_like(banks)
    padded_rows = max(16, triton.next_power_of_2(rows))
    padded_skills = max(16, triton.next_power_of_2(skills))
    block = max(16, min(256, 8192 // max(padded_rows, padded_skills)))
    chunks = min(triton.cdiv(width, block), 32)
    blocks = triton.cdiv(triton.cdiv(width, block), chunks)
    parts = torch.empty(
        chunks, layers, splits, rows, skills, dtype=torch.float32, device=banks.device
    )
    _average_backward[(chunks, layers * splits)](
        grad, weights.contiguous(), banks, b_grad, parts,
        rows, splits, skills, width, y, layers, blocks, *strides,
        padded_rows, padded_skills, block,
    )  # fmt: skip
    return parts.sum(0).transpose(1, 2), b_grad


@triton.jit
def _average(
    weights, banks, out, rows, splits, skills: tl.constexpr, width, y,
    of_group, of_member, of_row, of_split, of_x, members,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(2).to(tl.int64)  # layer and split
    layer, split = head // splits, head % splits
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for s in range(skills):
        w = tl.load(
            weights + ((layer * rows + n) * splits + split) * skills + s, mask=n < rows, other=0.0
        )
        bank = tl.load(banks + (head * skills + s) * width + e, mask=e < width, other=0.0)
        total += w[:, None] * bank[None, :]
    place = (layer // members) * of_group + (layer % members) * of_member + split * of_split
    place = place + n[:, None].to(tl.int64) * of_row + (e // y)[None, :] * of_x + (e % y)[None, :]
    mask = (n < rows)[:, None] & (e < width)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _average_backward(
    grad, weights, banks, b_grad, parts, rows, splits, skills, width, y, layers,
    blocks: tl.constexpr,
    of_group, of_member, of_row, of_split, of_x, members,
    ROWS: tl.constexpr, SKILLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    layer, split = head // splits, head % splits
    n, s = tl.arange(0, ROWS), tl.arange(0, SKILLS)
    w = tl.load(
        weights + ((layer * rows + n)[None, :] * splits + split) * skills + s[:, None],
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
        g = g.to(tl.float32)  # n e
        at = (head * skills + s)[:, None] * width + e[None, :]
        mask = (s < skills)[:, None] & inside[None, :]
        bank = tl.load(banks + at, mask=mask, other=0.0)  # s e
        total += tl.dot(g, tl.trans(bank), input_precision="ieee")
        tl.store(b_grad + at, tl.dot(w, g, input_precision="ieee"), mask=mask)
    at = ((tl.program_id(0) * layers * splits + head) * rows + n)[:, None] * skills + s[None, :]
    tl.store(parts + at, total, mask=(n < rows)[:, None] & (s < skills)[None, :])
