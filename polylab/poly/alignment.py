"""Put the skills of different layers and heads in one order, so that they can be averaged.

Every layer has a router of its own, and so has every head: skill 2 of one layer has nothing to
do with skill 2 of another. A mean over layers without a matching blurs every pattern away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["agreement", "align_skills", "aligned_mean", "apply_alignment", "match_columns"]

# Comparing every (layer, head) with every other is quadratic in their number: 432 layers x 64
# heads would be 764 million matchings. So many of them, evenly spaced, stand for all.
N_COMPARED = 64
# Below this spread a column is constant, and its correlation with anything is taken as 0.
_FLAT = 1e-12


def align_skills(
    weights: Mapping[str, Float[Tensor, "tasks splits skills"]],
) -> dict[str, Int64[Tensor, "splits skills"]]:
    """Order `perm[q, k]`: which skill of this layer and head is the aligned skill `k`.

    The task columns of each (layer, head) are matched one to one (Hungarian method) with those of
    the reference so that the sum of their Pearson correlations over the tasks is largest. The
    reference is the (layer, head) whose matched sum over all others is largest (the first one in
    layer order on a tie); its own order stays as it is.
    With more than `N_COMPARED` (layer, head) pairs, the reference is chosen among, and by, that
    many evenly spaced ones; all are aligned to it.

    Args:
        weights: Weights or gates of each layer. `splits` may differ between layers.

    Raises:
        ValueError: If there is no layer, or the layers differ in their tasks or skills.
    """
    columns = _unit_columns(weights)  # n s t
    sample = np.unique(np.linspace(0, len(columns) - 1, min(len(columns), N_COMPARED)).astype(int))
    reference = columns[sample[_best_of(columns[sample])]]
    perms = torch.stack([_match(scores) for scores in reference @ columns.transpose(0, 2, 1)])
    sizes = [w.shape[1] for w in weights.values()]
    return dict(zip(weights, perms.split(sizes), strict=True))


def apply_alignment(
    weights: Mapping[str, Float[Tensor, "tasks splits skills"]],
    perms: Mapping[str, Int64[Tensor, "splits skills"]],
) -> dict[str, Float[Tensor, "tasks splits skills"]]:
    """`out[t, q, k] = w[t, q, perm[q, k]]` for each layer of `weights`.

    Raises:
        ValueError: If a layer of `weights` has no order in `perms`.
    """
    missing = [name for name in weights if name not in perms]
    if missing:
        raise ValueError(
            f"no skill order for layer '{missing[0]}'; orders are known for {sorted(perms)}. "
            "Compute them with align_skills on the same layers."
        )
    return {
        name: w.gather(2, perms[name].to(w.device).expand(w.shape[0], -1, -1))
        for name, w in weights.items()
    }


def aligned_mean(
    weights: Mapping[str, Float[Tensor, "tasks splits skills"]],
) -> tuple[Float[Tensor, "tasks skills"], float]:
    """Mean over layers and heads after `align_skills`, and their `agreement` (a number <= 1).

    Raises:
        ValueError: As `align_skills`.
    """
    aligned = apply_alignment(weights, align_skills(weights))
    mean = torch.cat([w.float().cpu() for w in aligned.values()], dim=1).mean(1)
    return mean, agreement(aligned)


def agreement(aligned: Mapping[str, Float[Tensor, "tasks splits skills"]]) -> float:
    """How alike the (layer, head) pairs are: mean correlation of equal columns over all pairs.

    `mean over u != v and k of corr(w_u[:, k], w_v[:, k])`: 1 where all are equal up to scale,
    near 0 where they have nothing in common, NaN for a single (layer, head). Matching alone lifts
    it above 0: with few tasks also unrelated layers agree a little.

    Raises:
        ValueError: As `align_skills`.
    """
    columns = _unit_columns(aligned)
    n = len(columns)
    if n < 2:
        return float("nan")
    own = (columns**2).sum((0, 2))  # 1 per (layer, head), 0 where the column is constant
    both = (columns.sum(0) ** 2).sum(1)
    return float(((both - own) / (n * (n - 1))).mean())


def match_columns(scores: np.ndarray) -> list[tuple[int, int]]:
    """Pairs `(row, column)` with the largest sum of `scores`; rectangular matrices leave a rest."""
    rows, cols = linear_sum_assignment(scores, maximize=True)
    return list(zip(rows.tolist(), cols.tolist(), strict=True))


def _match(scores: np.ndarray) -> Int64[Tensor, " skills"]:
    return torch.from_numpy(linear_sum_assignment(scores, maximize=True)[1]).long()


def _best_of(columns: np.ndarray) -> int:
    """Index of the unit whose matched correlation with all others is largest."""
    totals = np.zeros(len(columns))
    for i, one in enumerate(columns):
        scores = one @ columns[:i].transpose(0, 2, 1)
        pairs = [linear_sum_assignment(own, maximize=True)[1] for own in scores]
        if pairs:
            matched = np.take_along_axis(scores, np.array(pairs)[..., None], axis=2).sum((1, 2))
            totals[:i] += matched
            totals[i] += matched.sum()
    return int(np.argmax(np.round(totals, 9)))  # rounding: the first wins a tie up to noise


def _unit_columns(weights: Mapping[str, Tensor]) -> np.ndarray:
    """Centred task columns of length one, `[layers * heads, skills, tasks]`."""
    check_layers(weights.items())
    flat = torch.cat([w.detach().double().cpu() for w in weights.values()], dim=1)  # t n s
    columns = flat.permute(1, 2, 0).numpy()
    columns = columns - columns.mean(-1, keepdims=True)
    length = np.linalg.norm(columns, axis=-1, keepdims=True)
    return np.where(length > _FLAT, columns / np.maximum(length, _FLAT), 0.0)


def check_layers(layers: Iterable[tuple[str, Tensor]]) -> None:
    """All layers are `[tasks, splits, skills]` with the same tasks and skills.

    Raises:
        ValueError: If there is none, one has other axes, or they differ in tasks or skills.
    """
    first: tuple[str, Sequence[int]] | None = None
    for name, w in layers:
        if w.dim() != 3 or 0 in w.shape:
            raise ValueError(
                f"layer '{name}' has weights of shape {list(w.shape)}; "
                "they must be [tasks, splits, skills] and not empty."
            )
        first = first or (name, w.shape)
        if (w.shape[0], w.shape[2]) != (first[1][0], first[1][2]):
            raise ValueError(
                f"layer '{name}' has shape {list(w.shape)} and layer '{first[0]}' "
                f"{list(first[1])}; tasks (first) and skills (last) must be equal. "
                "Compare groups of equal layers one at a time."
            )
    if first is None:
        raise ValueError("no layer given; at least one [tasks, splits, skills] tensor is needed.")
