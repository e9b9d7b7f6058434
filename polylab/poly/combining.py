"""Combining rules: how a bank of skills and the weights of an example become one update.

A rule turns them into a pair of factors A*, B* for each group of rows, and the update of a layer is
`scale * (x A*) B*`. Head q owns block q of the input and block q of the output.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["AverageFactors", "Combine", "Factors", "SumProducts", "add_update", "average"]

BankA = Float[Tensor, "splits skills block_in rank"]
BankB = Float[Tensor, "splits skills rank block_out"]
_Weights = Float[Tensor, "groups splits skills"]
Factors = tuple[Float[Tensor, "groups_a d_in k"], Float[Tensor, "groups k d_out"]]
"""A* may have one group for all: then the groups differ in B* only."""


class Combine(ABC):
    """How weighted skills become factors.

    A class of your own is named in the configuration, `combine: {_target_: my_lab.Mine, ...}`, and
    built from the other keys. What it returns as factors can be exported to plain LoRA exactly.
    """

    @abstractmethod
    def factors(self, weights: _Weights, bank_a: BankA, bank_b: BankB) -> Factors:
        """A* and B* of each group of rows, in the banks' precision."""

    @abstractmethod
    def per_token(
        self,
        x: Float[Tensor, "tokens d_in"],
        weights: Float[Tensor, "tokens splits skills"],
        *,
        banks: tuple[BankA, BankB],
    ) -> Float[Tensor, "tokens d_out"]:
        """`(x A*) B*` where every token has weights of its own.

        Each token passes through all skills: a pair of factors for each would not fit in memory.
        """

    def pick(self, weights: _Weights, bank_a: BankA, bank_b: BankB) -> Factors:
        """`factors` for one-hot weights: index the skill of each head, multiply nothing."""
        n_splits, n_skills = bank_a.shape[:2]
        splits = torch.arange(n_splits, device=weights.device)
        rows = (weights.argmax(-1) + n_skills * splits).flatten()  # n q
        # index_select: the backward of bank[splits, chosen] adds element by element on the CPU
        a = bank_a.flatten(0, 1).index_select(0, rows).unflatten(0, (-1, n_splits))  # n q d r
        b = bank_b.flatten(0, 1).index_select(0, rows).unflatten(0, (-1, n_splits))  # n q r d
        return a.flatten(1, 2), b.transpose(1, 2).flatten(2)


class AverageFactors(Combine):
    """`A* = concat_q sum_s w[q, s] A[q, s]`, `B*` likewise: rank r, quadratic in w.

    What all released code computes (Polytropon, https://arxiv.org/abs/2202.13914; MHR,
    https://arxiv.org/abs/2211.03831).
    """

    def factors(self, weights: _Weights, bank_a: BankA, bank_b: BankB) -> Factors:
        """See `Combine`."""
        by_split = weights.to(bank_a.dtype).transpose(0, 1)  # q n s
        a, b = average(by_split, bank_a), average(by_split, bank_b)  # q n d r, q n r d
        return a.transpose(0, 1).flatten(1, 2), b.permute(1, 2, 0, 3).flatten(2)

    def per_token(
        self,
        x: Float[Tensor, "tokens d_in"],
        weights: Float[Tensor, "tokens splits skills"],
        *,
        banks: tuple[BankA, BankB],
    ) -> Float[Tensor, "tokens d_out"]:
        """See `Combine`."""
        bank_a, bank_b = banks
        blocks = x.unflatten(-1, (bank_a.shape[0], -1))  # n q d
        hidden = torch.einsum("nqd,qsdr->nqsr", blocks, bank_a)
        hidden = torch.einsum("nqs,nqsr->nr", weights, hidden)
        spread = torch.einsum("nqs,nr->nqsr", weights, hidden)
        return torch.einsum("nqsr,qsrd->nqd", spread, bank_b).flatten(1)


def average(
    weights: Float[Tensor, "heads groups skills"], banks: Float[Tensor, "heads skills x y"]
) -> Float[Tensor, "heads groups x y"]:
    """`sum_s w[h, n, s] bank[h, s]` of each head."""
    return torch.bmm(weights, banks.flatten(2)).unflatten(2, banks.shape[2:])


class SumProducts(Combine):
    """`sum_s w[q, s] (x A_s) B[q, s]` in block q of the output: rank S * r, linear in w.

    Eq. 3 of https://arxiv.org/abs/2202.13914 read literally: a mixture of the skills' functions.
    `A_s` is the skill's whole A, of all input blocks; the heads differ in the output only.
    """

    def factors(self, weights: _Weights, bank_a: BankA, bank_b: BankB) -> Factors:
        """See `Combine`: one A* for all groups, the skills side by side."""
        a = bank_a.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # d_in (s r)
        weighted = torch.einsum("nqs,qsrd->nsrqd", weights.to(bank_b.dtype), bank_b)
        return a[None], weighted.flatten(3).flatten(1, 2)

    def per_token(
        self,
        x: Float[Tensor, "tokens d_in"],
        weights: Float[Tensor, "tokens splits skills"],
        *,
        banks: tuple[BankA, BankB],
    ) -> Float[Tensor, "tokens d_out"]:
        """See `Combine`."""
        bank_a, bank_b = banks
        blocks = x.unflatten(-1, (bank_a.shape[0], -1))  # n q d
        hidden = torch.einsum("nqd,qsdr->nsr", blocks, bank_a)
        spread = torch.einsum("nqs,nsr->nqsr", weights, hidden)
        return torch.einsum("nqsr,qsrd->nqd", spread, bank_b).flatten(1)

    def pick(self, weights: _Weights, bank_a: BankA, bank_b: BankB) -> Factors:
        """See `Combine`; where heads may choose apart, each needs its skill's whole A."""
        n_splits = len(bank_a)
        if n_splits == 1:
            return super().pick(weights, bank_a, bank_b)
        chosen = weights.argmax(-1)  # n q
        whole = bank_a.transpose(0, 1).flatten(1, 2)  # s d_in r
        a = whole[chosen].transpose(1, 2).flatten(2)  # n d_in (q r)
        b = bank_b[torch.arange(n_splits, device=chosen.device), chosen]  # n q r d
        own_block = torch.eye(n_splits, dtype=b.dtype, device=b.device)
        return a, torch.einsum("nqrd,qp->nqrpd", b, own_block).flatten(3).flatten(1, 2)


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
    groups, d_in = b.shape[0], a.shape[1]
    n_rows = x.numel() // d_in
    if not n_rows:
        return y  # an empty batch
    if not groups or n_rows % groups:
        raise ValueError(
            f"{n_rows} rows of a layer's input cannot be split among task_ids of length {groups}: "
            "the layer must see the same number of rows for every example."
        )
    grouped = (groups, n_rows // groups)
    a = a.to(x.dtype)
    if a.shape[0] == groups:
        hidden = torch.bmm(x.reshape(*grouped, d_in), a)
    else:
        hidden = (x.reshape(n_rows, d_in) @ a[0]).unflatten(0, grouped)
    b = b.to(hidden.dtype)
    # The fused form scales before it rounds: the same to the last bit for powers of two only, and
    # PEFT, whose numbers these are, rounds first.
    if y.dtype == hidden.dtype and math.frexp(scale)[0] == 0.5:
        grouped_y = y.reshape(*grouped, y.shape[-1])
        return torch.baddbmm(grouped_y, hidden, b, alpha=scale).reshape(y.shape)
    return y + (torch.bmm(hidden, b) / (1 / scale)).to(y.dtype).reshape(y.shape)
