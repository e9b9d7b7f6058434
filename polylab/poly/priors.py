"""Priors on the allocation: terms that are added to the training loss.

A prior sees one router at a time. Rows are all tasks for a router by task id (without noise), and
the examples, or attended tokens, of the batch for a router by input.
"""

# ruff: noqa: ARG002 (a prior need not read all that it is shown)
from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["PRIORS", "Entropy", "IndianBuffet", "LoadBalance", "MutualInformation", "Prior"]

_Rows = Float[Tensor, "rows splits skills"]
_Shares = Float[Tensor, " rows"]


class Prior(ABC):
    """A penalty on the allocation of one router; the loss gets its mean over routers.

    A class of your own is named in the configuration, `priors: {any_name: {_target_: my_lab.Mine,
    weight: 0.1, ...}}`, and built from the other keys.
    """

    needs_gates: bool = False
    """True: works on sigmoid gates, which only routers by task with learned logits have."""

    @abstractmethod
    def __call__(self, weights: _Rows, gates: _Rows | None, shares: _Shares) -> Float[Tensor, ""]:
        """The penalty.

        Args:
            weights: Normalised over the skills.
            gates: `sigmoid(Z)` of the same rows; None for a router without them.
            shares: Of the rows in a mean over them, of sum 1: equal, but 0 for padding.
        """


class IndianBuffet(Prior):
    """`-log P(Z)` under the Indian buffet process: a few popular skills, a long tail.

    On binarised gates (z > 1/2, straight-through), with m_k tasks in column k and K_h columns of
    history h: `sum_h log K_h! - sum_{m_k > 0} [log (T - m_k)! + log (m_k - 1)!]`, over T tasks,
    per head. Constants of the paper's -log P that have no gradient are left out, so the value is
    not -log P. No gradient at all where no gate is open. https://arxiv.org/abs/2202.13914
    (its authors saw no benefit on CrossFit, and a small one on BabyAI).
    """

    needs_gates = True

    def __call__(self, weights: _Rows, gates: _Rows | None, shares: _Shares) -> Float[Tensor, ""]:
        """See `Prior`."""
        assert gates is not None
        hard, soft = (gates > 0.5).to(gates.dtype), gates.sum(0)
        n_tasks, counts = len(gates), hard.sum(0).long()  # q s
        others = (counts - 1).clamp(min=0)
        steps = torch.arange(1, n_tasks + 1, dtype=gates.dtype, device=gates.device)
        log_factorial = _prefix_sums(steps.log())
        harmonic = _prefix_sums(1 / steps)
        value = log_factorial[n_tasks - counts] + log_factorial[others]
        # its derivative by the count; through a float sum of gates the count 1 might miss its bin
        slope = harmonic[others] - harmonic[n_tasks - counts]
        terms = torch.where(counts > 0, value + slope * (soft - soft.detach()), 0.0)
        return (_log_multiplicities(hard) - terms.sum(-1)).mean()


class Entropy(Prior):
    """Mean `H(w) / log S` over rows and heads: pushes each row towards few skills.

    The sparsity that https://arxiv.org/abs/2202.13914 measures, as a penalty [ours].
    """

    def __call__(self, weights: _Rows, gates: _Rows | None, shares: _Shares) -> Float[Tensor, ""]:
        """See `Prior`."""
        return _mean(_entropy(weights), shares).mean() / math.log(weights.shape[-1])


class LoadBalance(Prior):
    """`S * sum_s f_s P_s`: 1 where all skills are used alike, up to S where one takes all.

    f_s is the share of rows whose largest weight is skill s, P_s the skill's mean weight, per head.
    https://arxiv.org/abs/2101.03961, Eq. 4.
    """

    def __call__(self, weights: _Rows, gates: _Rows | None, shares: _Shares) -> Float[Tensor, ""]:
        """See `Prior`."""
        best = weights.argmax(-1, keepdim=True)
        chosen = _mean(torch.zeros_like(weights).scatter(-1, best, 1.0), shares)  # q s
        return (chosen * _mean(weights, shares)).sum(-1).mean() * weights.shape[-1]


class MutualInformation(Prior):
    """`-(H(mean_x w_x) - mean_x H(w_x))` in nats: rows that are sure, and differ.

    The negative information between row and skill: https://arxiv.org/abs/2212.08066.
    """

    def __call__(self, weights: _Rows, gates: _Rows | None, shares: _Shares) -> Float[Tensor, ""]:
        """See `Prior`."""
        return (_mean(_entropy(weights), shares) - _entropy(_mean(weights, shares))).mean()


PRIORS: dict[str, type[Prior]] = {
    "ibp": IndianBuffet,
    "entropy": Entropy,
    "load_balance": LoadBalance,
    "mutual_information": MutualInformation,
}


def _prefix_sums(values: Float[Tensor, " n"]) -> Float[Tensor, " n_and_one"]:
    """Sums of the first 0, 1, ..., n values."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _mean(values: Float[Tensor, " rows *axes"], shares: _Shares) -> Float[Tensor, "*axes"]:
    return torch.tensordot(shares.to(values.dtype), values, dims=1)


def _entropy(weights: Float[Tensor, "*rows skills"]) -> Float[Tensor, "*rows"]:
    # xlogy has an infinite gradient at 0, which top-k weights reach
    return -(weights * weights.clamp(min=1e-12).log()).sum(-1)


def _log_multiplicities(hard: _Rows) -> Float[Tensor, " splits"]:
    """`sum_h log K_h!` of each head, without waiting for the device: a constant of the gradient.

    A column that has k - 1 equal ones before it adds log k.
    """
    columns = hard.permute(1, 2, 0)  # q s t
    equal = (columns[:, :, None] == columns[:, None]).all(-1)  # q s s
    filled = (columns.sum(-1) > 0)[:, :, None] & equal
    return filled.tril().sum(-1).clamp(min=1).to(hard.dtype).log().sum(-1)
