"""The routing statistics of single heads: one number for each layer and head.

`weights` are the normalised mixing weights `w`, `gates` the sigmoids `z` before normalisation,
both `{layer: [rows, splits, skills]}`; rows are tasks, or examples. `polylab.poly.statistics` has
their means, and where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from polylab.poly.alignment import check_layers

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
    return _each(weights, lambda w: normalised_entropy(w).mean(0))


def z_entropy_by_head(gates: Layers) -> Heads:
    """`mean_{t,s} -[z log2 z + (1-z) log2(1-z)]`: 1 = every gate at one half, 0 = all on or off.

    Raises:
        ValueError: As `entropy_by_head`, or if a gate is outside 0 to 1.
    """
    for name, z in gates.items():
        low, high = float(z.min()), float(z.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"gates of layer '{name}' lie in {low:.3g} to {high:.3g}; they must lie in 0 to 1. "
                "Give sigmoid(logits), not logits."
            )

    def bits(z: Tensor) -> Tensor:
        return (torch.special.entr(z) + torch.special.entr(1 - z)).mean((0, 2)) / math.log(2)

    return _each(gates, bits)


def density_by_head(gates: Layers) -> Heads:
    """`mean(round(z))`, the share of gates above one half.

    Raises:
        ValueError: As `entropy_by_head`.
    """
    return _each(gates, lambda z: (z > 0.5).double().mean((0, 2)))


def usage_by_head(gates: Layers) -> dict[str, Float[Tensor, "splits skills"]]:
    """`p_s = sum_t z_ts / sum_ts z`; rows sum to 1. Without gates the weights take their place.

    Raises:
        ValueError: As `entropy_by_head`.
    """
    usage = _each(gates, lambda z: z.sum(0))
    return {name: u / u.sum(-1, keepdim=True).clamp_min(1e-300) for name, u in usage.items()}


def usage_entropy_by_head(usage: Mapping[str, Float[Tensor, "splits skills"]]) -> Heads:
    """`H(p) / log S` of `usage_by_head`: 1 = all skills used alike, 0 = one does everything."""
    return {name: normalised_entropy(p) for name, p in usage.items()}


def effective_skills_by_head(usage: Mapping[str, Float[Tensor, "splits skills"]]) -> Heads:
    """`exp(H(p))` of `usage_by_head`, from 1 to S: the number of skills that are really used."""
    return {name: nats(p).exp() for name, p in usage.items()}


def information_by_head(weights: Layers) -> Heads:
    """`H(mean_x w_x) - mean_x H(w_x)` in nats, over the rows `x`; at most `log S`.

    Raises:
        ValueError: As `entropy_by_head`.
    """
    return _each(weights, lambda w: nats(w.mean(0)) - nats(w).mean(0))


def nats(p: Float[Tensor, "*axes skills"]) -> Float[Tensor, "*axes"]:
    """The entropy `H(p)`."""
    return torch.special.entr(p).sum(-1)


def normalised_entropy(p: Float[Tensor, "*axes skills"]) -> Float[Tensor, "*axes"]:
    """`H(p) / log S`; 1 with a single skill, of which there is only the uniform allocation."""
    n_skills = p.shape[-1]
    return nats(p) / math.log(n_skills) if n_skills > 1 else torch.ones_like(p[..., 0])


def _each(layers: Layers, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`of` each layer in double precision; layers that share a router's tensor share the work."""
    check_layers(layers.items())
    made: dict[int, Tensor] = {}
    for layer in layers.values():
        if id(layer) not in made:
            made[id(layer)] = of(layer.detach().double().cpu())
    return {name: made[id(layer)] for name, layer in layers.items()}
