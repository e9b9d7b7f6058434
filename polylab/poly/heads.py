"""The routing statistics of single heads: one number for each layer and head.

`weights` are the normalised mixing weights `w`, `gates` the sigmoids `z` before normalisation,
both `{layer: [rows, splits, skills]}`; rows are tasks, or examples. `polylab.poly.statistics` has
their means, and where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from polylab.poly.alignment import check_layers
from polylab.poly.alike import by_shape

__all__ = [
    "density_by_head",
    "effective_skills_by_head",
    "entropy_by_head",
    "information_by_head",
    "nats",
    "normalised_entropy",
    "usage_by_head",
    "usage_entropy_by_head",
    "z_entropy_by_head",
]

Layers = Mapping[str, Float[Tensor, "rows splits skills"]]
Heads = dict[str, Float[Tensor, " splits"]]


def entropy_by_head(weights: Layers) -> Heads:
    """Mean over the rows of `H(w) / log S`: 1 = uniform (also with a single skill), 0 = one skill.

    Raises:
        ValueError: If there is no layer, or the layers differ in their rows or skills.
    """
    return _each(weights, lambda w: normalised_entropy(w).mean(1))


def z_entropy_by_head(gates: Layers) -> Heads:
    """`mean_{t,s} -[z log2 z + (1-z) log2(1-z)]`: 1 = every gate at one half, 0 = all on or off.

    Raises:
        ValueError: As `entropy_by_head`, or if a gate is outside 0 to 1.
    """

    def bits(z: Tensor) -> Tensor:
        if not ((z >= 0) & (z <= 1)).all():
            _refuse_logits(gates)
        return (torch.special.entr(z) + torch.special.entr(1 - z)).mean((1, 3)) / math.log(2)

    return _each(gates, bits)


def _refuse_logits(gates: Layers) -> NoReturn:
    bounds = {name: (float(z.min()), float(z.max())) for name, z in gates.items()}
    name, (low, high) = next(
        (name, (low, high)) for name, (low, high) in bounds.items() if not 0 <= low <= high <= 1
    )
    raise ValueError(
        f"gates of layer '{name}' lie in {low:.3g} to {high:.3g}; they must lie in 0 to 1. "
        "Give sigmoid(logits), not logits."
    )


def density_by_head(gates: Layers) -> Heads:
    """`mean(round(z))`, the share of gates above one half.

    Raises:
        ValueError: As `entropy_by_head`.
    """
    return _each(gates, lambda z: (z > 0.5).double().mean((1, 3)))


def usage_by_head(gates: Layers) -> dict[str, Float[Tensor, "splits skills"]]:
    """`p_s = sum_t z_ts / sum_ts z`; rows sum to 1. Without gates the weights take their place.

    Raises:
        ValueError: As `entropy_by_head`.
    """

    def shares(z: Tensor) -> Tensor:
        total = z.sum(1)
        return total / total.sum(-1, keepdim=True).clamp_min(1e-300)

    return _each(gates, shares)


def usage_entropy_by_head(usage: Mapping[str, Float[Tensor, "splits skills"]]) -> Heads:
    """`H(p) / log S` of `usage_by_head`: 1 = all skills used alike, 0 = one does everything."""
    return by_shape(normalised_entropy, usage)


def effective_skills_by_head(usage: Mapping[str, Float[Tensor, "splits skills"]]) -> Heads:
    """`exp(H(p))` of `usage_by_head`, from 1 to S: the number of skills that are really used."""
    return by_shape(lambda p: nats(p).exp(), usage)


def information_by_head(weights: Layers) -> Heads:
    """`H(mean_x w_x) - mean_x H(w_x)` in nats, over the rows `x`; at most `log S`.

    Raises:
        ValueError: As `entropy_by_head`.
    """
    return _each(weights, lambda w: nats(w.mean(1)) - nats(w).mean(1))


def nats(p: Float[Tensor, "*axes skills"]) -> Float[Tensor, "*axes"]:
    """The entropy `H(p)`."""
    return torch.special.entr(p).sum(-1)


def normalised_entropy(p: Float[Tensor, "*axes skills"]) -> Float[Tensor, "*axes"]:
    """`H(p) / log S`; 1 with a single skill, of which there is only the uniform allocation."""
    n_skills = p.shape[-1]
    return nats(p) / math.log(n_skills) if n_skills > 1 else torch.ones_like(p[..., 0])


def _each(layers: Layers, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`of` stacks of layers in double precision, on the CPU."""
    check_layers(layers.items())
    return by_shape(lambda stack: of(stack.detach().cpu().double()), layers)
