"""How well maps of weights rank the cells of true matrices, once their columns are paired."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

__all__ = ["Truths", "paired_auroc", "unit_columns"]

_CELLS = 2**20  # of an intermediate result
_LARGEST_TABLE = 2**22  # of one map: tasks x skills x skills


class Truths(NamedTuple):
    """True matrices `[n, tasks, true_skills]`, and their columns centred and of length 1."""

    columns: np.ndarray
    unit: np.ndarray

    @staticmethod
    def of(columns: np.ndarray) -> Truths:
        return Truths(columns, unit_columns(columns))


def paired_auroc(maps: np.ndarray, truths: Truths) -> np.ndarray:
    """`[maps, n]`: of each map `[tasks, skills]` for each of the true matrices.

    Columns are paired one to one with the largest sum of Pearson correlations, then all cells of
    the paired columns are one ranking, where ties count half. A true skill that gets none is paired
    with a constant `1 / skills`.
    """
    n_maps, n_tasks, n_skills = maps.shape
    n, _, n_true = truths.columns.shape
    # of many matrices, how cells compare is counted once for all; of one, or of too many skills to
    # compare each with each, the cells of every pairing are ranked
    is_table = n > 1 and n_tasks * (n_skills + 1) ** 2 <= _LARGEST_TABLE
    cells = n_tasks * (n_skills + 1) ** 2 if is_table else n * n_tasks * n_true
    of = _sums_by_table if is_table else _sums_by_pairing
    together = max(1, _CELLS // cells)
    sums = [
        of(part, _pair(part, truths), truths.columns)
        for part in (maps[i : i + together] for i in range(0, n_maps, together))
    ]
    positive = truths.columns.sum((1, 2))
    negative = n_tasks * n_true - positive
    return (np.concatenate(sums) - positive * (positive + 1) / 2) / (positive * negative)


def unit_columns(columns: np.ndarray) -> np.ndarray:
    """Products of such columns are correlations over the tasks; 0 where one is constant."""
    centred = columns - columns.mean(-2, keepdims=True)
    length = np.linalg.norm(centred, axis=-2, keepdims=True)
    return np.where(length > 1e-12, centred / np.maximum(length, 1e-12), 0.0)


def _pair(maps: np.ndarray, truths: Truths) -> np.ndarray:
    """`[maps, n, true_skills]`: the skill of each true one, `skills` where there are too few."""
    n_maps, n_tasks, n_skills = maps.shape
    n, _, n_true = truths.columns.shape
    flat = truths.unit.transpose(1, 0, 2).reshape(n_tasks, -1)
    scores = unit_columns(maps).transpose(0, 2, 1) @ flat
    scores = scores.reshape(n_maps, n_skills, n, n_true).transpose(0, 2, 1, 3)
    partners = np.full((n_maps, n, n_true), n_skills)
    for place in np.ndindex(n_maps, n):
        rows, cols = linear_sum_assignment(scores[place], maximize=True)
        partners[place][cols] = rows
    return partners


def _with_constant(maps: np.ndarray) -> np.ndarray:
    constant = np.full((*maps.shape[:2], 1), 1 / maps.shape[2])
    return np.concatenate([maps, constant], axis=2)


def _sums_by_pairing(maps: np.ndarray, partners: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`[maps, n]`: sum of the ranks of the cells that are true."""
    paired = np.take_along_axis(_with_constant(maps)[:, None], partners[:, :, None], axis=3)
    ranks = rankdata(paired.reshape(*paired.shape[:2], -1), axis=-1).reshape(paired.shape)
    return (ranks * columns).sum((2, 3))


def _sums_by_table(maps: np.ndarray, partners: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The same, by how many cells of each column are below each cell: a rank is a sum of these."""
    n, n_tasks, n_true = columns.shape
    below = _below(_with_constant(maps))  # maps tasks skills+1 skills+1
    n_maps, _, n_all, _ = below.shape
    flat = columns.transpose(0, 2, 1).reshape(n * n_true, n_tasks)
    sums = (flat @ below.reshape(n_maps, n_tasks, -1)).reshape(n_maps, n, n_true, n_all, n_all)
    own = np.take_along_axis(sums, partners[..., None, None], axis=3)[..., 0, :]
    times = (partners[..., None] == np.arange(n_all)).sum(2)  # how often each column is ranked
    return (own.sum(2) * times).sum(-1) + columns.sum((1, 2)) / 2


def _below(maps: np.ndarray) -> np.ndarray:
    """`[maps, tasks, skills, skills]`: of the cells of column j so many are below cell (t, i).

    Equal ones count half, the cell itself too.
    """
    n_maps, n_tasks, n_skills = maps.shape
    flat = maps.reshape(n_maps, -1)
    order = np.argsort(flat, axis=1)
    values = np.take_along_axis(flat, order, axis=1)
    here = (order % n_skills)[..., None] == np.arange(n_skills)
    until = np.zeros((n_maps, flat.shape[1] + 1, n_skills), dtype=np.int32)
    np.cumsum(here, axis=1, out=until[:, 1:])
    first, end = _ties(values)
    each = np.arange(n_maps)[:, None]
    found = np.empty(until[:, 1:].shape)
    found[each, order] = (until[each, first] + until[each, end]) / 2
    return found.reshape(n_maps, n_tasks, n_skills, n_skills)


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each place in sorted rows: where its equals begin, and where they end (one after)."""
    n = values.shape[1]
    changes = values[:, 1:] != values[:, :-1]
    first = np.zeros(values.shape, dtype=int)
    first[:, 1:] = np.where(changes, np.arange(1, n), 0)
    end = np.full(values.shape, n)
    end[:, :-1] = np.where(changes, np.arange(1, n), n)
    return (
        np.maximum.accumulate(first, axis=1),
        np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1],
    )
