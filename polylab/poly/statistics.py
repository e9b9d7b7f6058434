"""Numbers that describe a routing: how sharp, how sparse, how even, how alike over tasks.

`weights` are the normalised mixing weights `w`, `gates` the sigmoids `z` before normalisation,
both `{layer: [tasks, splits, skills]}`. Every number is taken per head, averaged over the heads of
a layer, then over the layers: each layer counts once. Rows may also be examples (input routing).
Papers: Polytropon https://arxiv.org/abs/2202.13914, multi-head https://arxiv.org/abs/2211.03831.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from polylab.poly.alignment import agreement as alignment_agreement
from polylab.poly.alignment import (
    align_skills,
    aligned_mean,
    apply_alignment,
    check_layers,
    match_columns,
)
from polylab.poly.alike import alike, by_shape
from polylab.poly.heads import (
    density_by_head,
    effective_skills_by_head,
    entropy_by_head,
    information_by_head,
    usage_by_head,
    usage_entropy_by_head,
    z_entropy_by_head,
)

__all__ = [
    "align_skills",
    "aligned_mean",
    "alignment_agreement",
    "allocation_change",
    "apply_alignment",
    "density",
    "discreteness",
    "effective_skills",
    "entropy",
    "layer_entropy",
    "match_columns",
    "mean_over_heads",
    "mean_over_layers",
    "overall",
    "routing_mutual_information",
    "skill_usage",
    "task_features",
    "task_similarity",
    "usage_entropy",
    "z_entropy_bits",
]

MOST_COMPARED = 2**29
"""Differences of two weights that `task_similarity` takes, at most."""

_ROWS = 200  # that are compared at once

_Layers = Mapping[str, Float[Tensor, "rows splits skills"]]


def layer_entropy(weights: _Layers) -> dict[str, float]:
    """Mean over rows and heads of `H(w) / log S` for each layer: 1 = uniform, 0 = one skill.

    With a single skill there is only the uniform allocation: 1.

    Raises:
        ValueError: If there is no layer, or the layers differ in their rows or skills.
    """
    return mean_over_heads(entropy_by_head(weights))


def entropy(weights: _Layers) -> float:
    """Mean of `layer_entropy` over the layers (logged as `routing/entropy`).

    Raises:
        ValueError: As `layer_entropy`.
    """
    return mean_over_layers(layer_entropy(weights))


def z_entropy_bits(gates: _Layers) -> float:
    """`mean_{t,s} -[z log2 z + (1-z) log2(1-z)]`: 1 = every gate at one half, 0 = all on or off.

    This is Eq. 8 of https://arxiv.org/abs/2202.13914 as printed, which the paper calls
    discreteness; its prose and its Figure 5 fit `discreteness`, one minus it.

    Raises:
        ValueError: As `layer_entropy`, or if a gate is outside 0 to 1.
    """
    return overall(z_entropy_by_head(gates))


def discreteness(gates: _Layers) -> float:
    """`1 - z_entropy_bits`: 0 = every gate at one half, 1 = all on or off.

    Raises:
        ValueError: As `z_entropy_bits`.
    """
    return 1 - z_entropy_bits(gates)


def density(gates: _Layers) -> float:
    """`mean(round(z))`, the share of gates above one half (Poly calls it sparsity).

    Raises:
        ValueError: As `layer_entropy`.
    """
    return overall(density_by_head(gates))


def skill_usage(gates: _Layers) -> dict[str, Float[Tensor, "splits skills"]]:
    """`p_s = sum_t z_ts / sum_ts z` for each layer and head; rows sum to 1.

    Without gates (input routing) the weights take their place.

    Raises:
        ValueError: As `layer_entropy`.
    """
    return usage_by_head(gates)


def usage_entropy(gates: _Layers) -> float:
    """`H(p) / log S` of `skill_usage`: 1 = all skills used alike, 0 = one skill does everything.

    Raises:
        ValueError: As `layer_entropy`.
    """
    return overall(usage_entropy_by_head(usage_by_head(gates)))


def effective_skills(gates: _Layers) -> float:
    """`exp(H(p))` of `skill_usage`, from 1 to S: the number of skills that are really used.

    Raises:
        ValueError: As `layer_entropy`.
    """
    return overall(effective_skills_by_head(usage_by_head(gates)))


def routing_mutual_information(weights: _Layers) -> float:
    """`H(mean_x w_x) - mean_x H(w_x)` in nats, over the rows `x`; 0 = every row routes alike.

    At most `log S`. Rows are examples for an input router; for a task router they are tasks.

    Raises:
        ValueError: As `layer_entropy`.
    """
    return overall(information_by_head(weights))


def task_features(weights: _Layers) -> Float[Tensor, "rows features"]:
    """Each task's weights of all layers and heads in one row, `features = sum over layers of Q*S`.

    Comparing whole rows needs no matching of skills: every layer is compared with itself.

    Raises:
        ValueError: As `layer_entropy`.
    """
    check_layers(weights.items())
    return torch.cat([w.double().cpu().flatten(1) for w in weights.values()], dim=1)


def task_similarity(weights: _Layers) -> Float[Tensor, "rows rows"]:
    """Share of mixing weight that two tasks have in common, from 0 to 1 (1 = routed alike).

    `1 - mean over layers and heads of 1/2 sum_s |w_ts - w_us|`: one minus the total variation.
    It needs no matching of skills, and one minus it is the distance of the task hierarchy. Its time
    grows as tasks squared x features: where that is more than `MOST_COMPARED` (1,600 tasks: 209
    features), evenly spaced layers stand for all.

    Raises:
        ValueError: As `layer_entropy`.
    """
    weights = _some_layers(weights)
    features = task_features(weights)
    heads = sum(w.shape[1] for w in weights.values())
    return 1 - _distances(features) / (2 * heads)


def _distances(features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows rows"]:
    """Sums of absolute differences; those of a pair in one of its two orders, which are equal."""
    found = features.new_empty(len(features), len(features))
    for i in range(0, len(features), _ROWS):
        block = torch.cdist(features[i : i + _ROWS], features[i:], p=1)
        found[i : i + _ROWS, i:] = block
        found[i:, i : i + _ROWS] = block.T
    return found


def _some_layers(weights: _Layers) -> _Layers:
    check_layers(weights.items())
    largest = max(w.numel() * w.shape[0] for w in weights.values())
    most = max(1, MOST_COMPARED // largest)
    if len(weights) <= most:
        return weights
    names = [*weights]
    kept = torch.linspace(0, len(names) - 1, most).round().long().tolist()
    return {names[i]: weights[names[i]] for i in kept}


def allocation_change(now: _Layers, before: _Layers) -> float:
    """Share of mixing weight that moved between two moments, from 0 to 1 (0 = nothing moved).

    `mean over rows, heads, layers of 1/2 sum_s |w_ts - w'_ts|`. The same run only: skills of
    different runs have to be aligned first.

    Raises:
        ValueError: If the layers or their shapes differ.
    """
    shapes = [{name: tuple(w.shape) for name, w in side.items()} for side in (now, before)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"cannot compare {shapes[0]} with {shapes[1]}; layers and shapes differ.")
    check_layers(now.items())
    means: dict[str, float] = {}
    for names in alike({name: (now[name], before[name]) for name in now}):
        one, other = (
            torch.stack([side[name] for name in names]).cpu().double() for side in (now, before)
        )
        moved = (one - other).abs_().sum(-1).mean((1, 2)) / 2
        means.update(zip(names, moved.tolist(), strict=True))
    return mean_over_layers(means)


def overall(heads: Mapping[str, Float[Tensor, " splits"]]) -> float:
    """Mean over the heads of each layer, then over the layers."""
    return mean_over_layers(mean_over_heads(heads))


def mean_over_heads(heads: Mapping[str, Float[Tensor, " splits"]]) -> dict[str, float]:
    """A number of each head to one of each layer."""
    means = by_shape(lambda values: values.mean(1), heads)
    return dict(zip(means, torch.stack([*means.values()]).tolist(), strict=True))


def mean_over_layers(values: Mapping[str, float]) -> float:
    """Plain mean: each layer counts once, whatever its number of heads."""
    return sum(values.values()) / len(values)
