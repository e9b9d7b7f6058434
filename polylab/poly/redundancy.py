"""Skills that a routing does without: dead ones, which no task uses, and duplicates.

Skills are compared within a layer and a head only: those of different layers act on different
inputs, and have nothing in common but their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polylab.poly.alignment import check_layers
from polylab.poly.alike import by_shape

__all__ = ["DEAD_BELOW", "DUPLICATE_ABOVE", "dead_skills", "duplicate_skills", "update_cosines"]

DEAD_BELOW = 0.1
DUPLICATE_ABOVE = 0.95


def dead_skills(
    weights: Mapping[str, Float[Tensor, "tasks splits skills"]], *, below: float = DEAD_BELOW
) -> dict[str, Bool[Tensor, "splits skills"]]:
    """Skills to which no task gives more than `below` of an even share: `max_t w_ts * S < below`.

    Weights count, not gates: a layer's update is mixed by them, and where all gates of a task are
    small its weights are not. A skill under the bound moves the mixed factors of any task by less
    than `below / S` of its own size, so a layer without it computes nearly the same. The bound is
    on the largest weight, not on the mean: a skill that a single one of many tasks lives by is not
    dead. With one skill there is no dead one.

    Raises:
        ValueError: If there is no layer, or the layers differ in their tasks or skills.
    """
    check_layers(weights.items())
    return by_shape(lambda w: w.amax(1) * w.shape[-1] < below, weights)


@torch.no_grad()
def duplicate_skills(
    a: Float[Tensor, "*layers splits skills d_in r"],
    b: Float[Tensor, "*layers splits skills r d_out"],
    *,
    above: float = DUPLICATE_ABOVE,
) -> Bool[Tensor, "*layers splits skills"]:
    """Skills whose update `A_s B_s` has a cosine over `above` with that of an earlier skill.

    So of each group of look-alikes the first is none, and the number is that of the skills one
    could merge into others by adding up their weights. Opposite updates are no duplicates: weights
    are not negative, so two skills on one axis reach both of its sides. Cosines of the products,
    since `(A R, R^-1 B)` is the same update for every invertible R; skills without an update, as
    all of a fresh adapter (`B = 0`), are alike in nothing. With several heads `A_s B_s` is the
    block of the update that the head has to itself.
    """
    alike = update_cosines(a, b) > above
    return alike.tril(diagonal=-1).any(-1)


@torch.no_grad()
def update_cosines(
    a: Float[Tensor, "*layers splits skills d_in r"],
    b: Float[Tensor, "*layers splits skills r d_out"],
) -> Float[Tensor, "*layers splits skills skills"]:
    """Cosines of the updates `A_s B_s` of the skills of each head; 0 where one is zero.

    `<A_s B_s, A_u B_u> = sum_ij (A_s^T A_u)_ij (B_s B_u^T)_ij`: two Gram matrices of `skills * r`
    rows, so that no `d_in x d_out` matrix is ever made.
    """
    skills, rank = a.shape[-3], a.shape[-1]
    dtype = torch.promote_types(a.dtype, torch.float32)
    rows_a = a.detach().to(dtype).transpose(-2, -1).flatten(-3, -2)
    rows_b = b.detach().to(dtype).flatten(-3, -2)
    both = (rows_a @ rows_a.mT) * (rows_b @ rows_b.mT)
    inner = both.unflatten(-1, (skills, rank)).unflatten(-3, (skills, rank)).sum((-3, -1))
    length = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    is_zero = length <= length.amax(-1, keepdim=True) * 1e-6
    scale = torch.where(is_zero, torch.zeros_like(length), 1 / length)
    return inner * scale[..., :, None] * scale[..., None, :]
