"""Does the routing find the skills that the tasks were made of?

Where the true binary tasks x skills matrix `M` is known, the learned weights are compared with it.
A task may own several skills, so no partition score fits. The learned skills have no names: their
columns are first matched with those of `M`. Matching alone finds some likeness in pure noise, so
every score comes with a baseline: the same procedure on `M` with its tasks permuted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from torch import Tensor

from polylab.poly.alike import by_shape
from polylab.poly.matching import Truths, paired_auroc, unit_columns
from polylab.poly.statistics import aligned_mean, task_similarity

__all__ = ["match_to_truth", "recovery", "unidentifiable_skills"]

_Weights = Mapping[str, Float[Tensor, "tasks splits skills"]]


def recovery(
    weights: _Weights,
    truth: Bool[Tensor, "rows true_skills"],
    *,
    names: Sequence[str] | None = None,
    n_permutations: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC of the weights against the true matrix, after matching; 1 = recovered, see baseline.

    Of one (layer, head): columns of `w` and `M` are paired one to one with the largest sum of
    Pearson correlations, then all cells of the paired columns are one ranking (ties count half).
    With fewer skills than true ones the columns left over count as constant 1/S: they gain nothing.
    A layer's score is the mean over its heads. Columns of `M` that are equal count once, constant
    ones not at all (see `unidentifiable_skills`).

    Args:
        weights: Normalised weights.
        truth: `M[t, k]`: task `t` needs skill `k`; rows in the order of the weights' tasks.
        names: Of the true skills; default `"0"`, `"1"`, ...
        n_permutations: Of the tasks, for the baselines; 0 leaves the baselines out. The time grows
            as permutations x layers x heads.
        seed: Of the permutations.

    Returns:
        `aligned` (of the aligned mean over layers and heads), `mean` (over layers), `best` (layer,
        named by `best_layer`), `similarity` (Spearman correlation, over task pairs, of
        `task_similarity` with that of the row-normalised `M`; needs no matching; NaN if one of
        them is constant). `*_baseline`: mean of the same over the permutations. `n_permutations`,
        `unidentifiable` (groups of names).

    Raises:
        ValueError: If the tasks differ in number, `names` does not fit, or no column of `M` varies.
    """
    names = _check(weights, truth, names)
    m = truth.cpu().numpy().astype(bool)
    rng = np.random.default_rng(seed)
    orders = np.stack(
        [np.arange(len(m)), *(rng.permutation(len(m)) for _ in range(n_permutations))]
    )
    columns = _distinct_columns(truth).T[
        orders
    ]  # permutations tasks true_skills, the true one first
    truths = Truths.of(columns)
    by_layer = _by_layer(weights, truths)
    scores = {
        "aligned": paired_auroc(_map_of(aligned_mean(weights)[0])[None], truths)[0],
        "mean": by_layer.mean(0),
        "best": by_layer.max(0),
        "similarity": _similarities(weights, m, orders),
    }
    result: dict[str, Any] = {key: float(values[0]) for key, values in scores.items()}
    result["best_layer"] = [*weights][int(by_layer[:, 0].argmax())]
    if n_permutations:
        result |= {f"{key}_baseline": float(values[1:].mean()) for key, values in scores.items()}
    result["n_permutations"] = n_permutations
    result["unidentifiable"] = unidentifiable_skills(truth, names)
    return result


def unidentifiable_skills(
    truth: Bool[Tensor, "tasks true_skills"], names: Sequence[str] | None = None
) -> list[list[str]]:
    """Groups of true skills that no routing of these tasks can tell apart.

    Skills that only occur together form one group (their columns of `M` are equal); one that all
    tasks need, or none, is a group of its own: nothing varies with it.

    Raises:
        ValueError: If `names` are not as many as the columns.
    """
    names = _check_names(truth, names)
    groups: dict[bytes, list[str]] = {}
    columns = truth.T.cpu().numpy()
    for name, column in zip(names, columns, strict=True):
        groups.setdefault(column.tobytes(), []).append(name)
    constant = {c.tobytes() for c in columns if c.all() or not c.any()}
    return [group for key, group in groups.items() if len(group) > 1 or key in constant]


def match_to_truth(
    mean: Float[Tensor, "tasks skills"], truth: Bool[Tensor, "tasks true_skills"]
) -> list[int | None]:
    """Which skill (column of `mean`) stands for each true skill; None where there are too few.

    Of equal columns of `truth` each gets a skill of its own while there are enough.
    """
    scores = unit_columns(_map_of(mean)).T @ unit_columns(truth.double().cpu().numpy())
    rows, cols = linear_sum_assignment(scores, maximize=True)
    found = dict(zip(cols.tolist(), rows.tolist(), strict=True))
    return [found.get(k) for k in range(truth.shape[1])]


def _map_of(w: Float[Tensor, "tasks skills"]) -> np.ndarray:
    return w.detach().double().cpu().numpy()


def _by_layer(weights: _Weights, truths: Truths) -> np.ndarray:
    """`[layers, n]`: means over the heads."""

    def of(stack: Tensor) -> Tensor:
        maps = stack.transpose(1, 2).flatten(0, 1).double().cpu().numpy()  # heads tasks skills
        scores = paired_auroc(maps, truths).reshape(stack.shape[0], stack.shape[2], -1)
        return torch.from_numpy(scores.mean(1))

    layers = {name: w.detach() for name, w in weights.items()}
    return torch.stack([*by_shape(of, layers).values()]).numpy()


def _similarities(weights: _Weights, m: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Spearman correlations; to permute the tasks of `M` permutes the ranks of its similarity."""
    pairs = np.triu_indices(len(m), k=1)
    learned = rankdata(task_similarity(weights).numpy().round(9)[pairs])
    true = _true_ranks(m.tobytes(), m.shape)
    if np.ptp(learned) == 0 or np.ptp(true[pairs]) == 0:
        return np.full(len(orders), np.nan)
    x, centre = learned - learned.mean(), true[pairs].mean()
    length = np.linalg.norm(x) * np.linalg.norm(true[pairs] - centre)
    return np.array([x @ (true[np.ix_(order, order)][pairs] - centre) for order in orders]) / length


@lru_cache(maxsize=1)  # a training asks for the same again and again
def _true_ranks(cells: bytes, shape: tuple[int, int]) -> np.ndarray:
    """`[tasks, tasks]`: ranks of the pairs of tasks by the similarity of their true skills."""
    m = np.frombuffer(cells, dtype=bool).reshape(shape)
    rows = m / np.maximum(m.sum(1, keepdims=True), 1)
    alike = task_similarity({"truth": torch.from_numpy(rows)[:, None]}).numpy().round(9)
    pairs = np.triu_indices(len(m), k=1)
    ranks = np.zeros(alike.shape)
    ranks[pairs] = rankdata(alike[pairs])
    ranks += ranks.T
    ranks.flags.writeable = False
    return ranks


def _distinct_columns(truth: Tensor) -> np.ndarray:
    """The columns that vary, each once, in their first order: `[distinct, tasks]`."""
    distinct = {c.tobytes(): c for c in truth.T.cpu().numpy() if c.any() and not c.all()}
    return np.stack(list(distinct.values())).astype(float)


def _check(weights: _Weights, truth: Tensor, names: Sequence[str] | None) -> list[str]:
    n_tasks = next(iter(weights.values())).shape[0]
    if truth.shape[0] != n_tasks:
        raise ValueError(
            f"the true matrix has {truth.shape[0]} tasks, the weights have {n_tasks}; "
            "give both with one row per task in the same order."
        )
    if not ((truth.any(0)) & ~(truth.all(0))).any():
        raise ValueError(
            f"no column of the true matrix {list(truth.shape)} varies over the tasks; "
            "recovery needs a skill that some tasks have and others have not."
        )
    return _check_names(truth, names)


def _check_names(truth: Tensor, names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [str(k) for k in range(truth.shape[1])]
    if len(names) != truth.shape[1]:
        raise ValueError(
            f"{len(names)} skill names for {truth.shape[1]} columns of the true matrix; "
            "give one name per column."
        )
    return list(names)
