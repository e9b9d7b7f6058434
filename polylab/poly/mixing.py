"""The maths of a layer: mix a bank of skills into one pair of factors, and apply it.

`A*[n] = concat_q sum_s w[n, q, s] A[q, s]` along d_in, `B*` likewise along d_out, and the update is
`scale * (x A*) B*`: head q owns block q of the input and block q of the output.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Factors", "add_update", "mix", "pick", "update_per_token"]

_BankA = Float[Tensor, "splits skills block_in rank"]
_BankB = Float[Tensor, "splits skills rank block_out"]
Factors = tuple[Float[Tensor, "groups d_in rank"], Float[Tensor, "groups rank d_out"]]


def mix(weights: Float[Tensor, "groups splits skills"], bank_a: _BankA, bank_b: _BankB) -> Factors:
    """Mix the skills in the banks' own precision, whatever autocast says."""
    device = bank_a.device.type
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return _mix(weights, bank_a, bank_b)
    return _mix(weights, bank_a, bank_b)


def _mix(weights: Tensor, bank_a: Tensor, bank_b: Tensor) -> Factors:
    by_split = weights.to(bank_a.dtype).transpose(0, 1)  # q n s
    a = torch.bmm(by_split, bank_a.flatten(2)).unflatten(2, bank_a.shape[2:])  # q n d r
    b = torch.bmm(by_split, bank_b.flatten(2)).unflatten(2, bank_b.shape[2:])  # q n r d
    return a.transpose(0, 1).flatten(1, 2), b.permute(1, 2, 0, 3).flatten(2)


def pick(weights: Float[Tensor, "groups splits skills"], bank_a: _BankA, bank_b: _BankB) -> Factors:
    """`mix` for one-hot weights: index the skill of each head, multiply nothing."""
    n_splits, n_skills = bank_a.shape[:2]
    splits = torch.arange(n_splits, device=weights.device)
    rows = (weights.argmax(-1) + n_skills * splits).flatten()  # n q
    # index_select: the backward of bank[splits, chosen] adds element by element on the CPU
    a = bank_a.flatten(0, 1).index_select(0, rows).unflatten(0, (-1, n_splits))  # n q d r
    b = bank_b.flatten(0, 1).index_select(0, rows).unflatten(0, (-1, n_splits))  # n q r d
    return a.flatten(1, 2), b.transpose(1, 2).flatten(2)


def add_update(
    y: Float[Tensor, "*rows d_out"],
    x: Float[Tensor, "*rows d_in"],
    *,
    factors: Factors,
    scale: float,
) -> Float[Tensor, "*rows d_out"]:
    """`y + scale * (x A*) B*`, out of place; group n owns the n-th equal run of x's rows.

    Only the small factors are cast; x never is.

    Raises:
        ValueError: If the rows of x do not divide into the groups.
    """
    a, b = factors
    groups, d_in, _ = a.shape
    n_rows = x.numel() // d_in
    if not n_rows:
        return y  # an empty batch
    if not groups or n_rows % groups:
        raise ValueError(
            f"{n_rows} rows of a layer's input cannot be split among task_ids of length {groups}: "
            "the layer must see the same number of rows for every example."
        )
    grouped = (groups, n_rows // groups)
    hidden = torch.bmm(x.reshape(*grouped, d_in), a.to(x.dtype))
    b = b.to(hidden.dtype)
    # The fused form scales before it rounds: the same to the last bit for powers of two only, and
    # PEFT, whose numbers these are, rounds first.
    if y.dtype == hidden.dtype and math.frexp(scale)[0] == 0.5:
        grouped_y = y.reshape(*grouped, y.shape[-1])
        return torch.baddbmm(grouped_y, hidden, b, alpha=scale).reshape(y.shape)
    return y + (torch.bmm(hidden, b) / (1 / scale)).to(y.dtype).reshape(y.shape)


def update_per_token(
    x: Float[Tensor, "tokens d_in"],
    weights: Float[Tensor, "tokens splits skills"],
    *,
    banks: tuple[_BankA, _BankB],
) -> Float[Tensor, "tokens d_out"]:
    """`(x A*) B*` with weights of its own for every token.

    Each token passes through all skills (groups of one token each would cost as much memory as a
    pair of factors per token).
    """
    bank_a, bank_b = (bank.to(x.dtype) for bank in banks)
    weights = weights.to(x.dtype)
    blocks = x.unflatten(-1, (bank_a.shape[0], -1))  # n q d
    hidden = torch.einsum("nqd,qsdr->nqsr", blocks, bank_a)
    hidden = torch.einsum("nqs,nqsr->nr", weights, hidden)
    spread = torch.einsum("nqs,nr->nqsr", weights, hidden)
    return torch.einsum("nqsr,qsrd->nqd", spread, bank_b).flatten(1)
