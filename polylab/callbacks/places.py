"""Rows and columns of a picture, near to where they stood in the one before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from polylab.callbacks.subject import Subject
from polylab.poly.recovery import match_to_truth
from polylab.poly.statistics import match_columns

__all__ = ["Places", "column_order", "first_order"]


@dataclass(frozen=True)
class Places:
    """Where the rows and columns of a picture stood, for the next one.

    Args:
        rows: Task ids from top to bottom.
        relative: `[rows, columns]` as they stood.
    """

    rows: list[int]
    relative: np.ndarray


def first_order(subject: Subject, before: Places | None) -> list[int]:
    """Where rows stand before the hierarchy has its say: as in the last picture, or as given."""
    given = subject.given_order()
    if before is None:
        return given
    rank = {task: row for row, task in enumerate(before.rows)}
    return sorted(given, key=lambda i: rank.get(subject.task_ids[i], len(rank)))


def column_order(subject: Subject, relative: np.ndarray, before: Places | None) -> list[int]:
    """Shared skills where they belong; the private column stays last."""
    shared = relative[:, : subject.n_shared]
    first: list[int] = []
    if subject.truth is not None and subject.n_shared:
        matched = match_to_truth(torch.from_numpy(shared), torch.from_numpy(subject.truth.matrix))
        first = [k for k in matched if k is not None]
    elif before is not None and before.relative.shape[1] == relative.shape[1]:
        row = {task: i for i, task in enumerate(before.rows)}
        both = [i for i, task in enumerate(subject.task_ids) if task in row]
        there = before.relative[[row[subject.task_ids[i]] for i in both]]
        scores = there[:, : subject.n_shared].T @ shared[both]
        # the closest in squares: sum over |before - now|^2 is least
        first = [k for _, k in sorted(match_columns(scores))]
    return [*first, *(k for k in range(relative.shape[1]) if k not in first)]
