"""Rows of a task: how many, which ones, under which name."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from polylab.data.sources.columns import Roles
from polylab.data.sources.tables import Piece


@dataclass(frozen=True)
class Rows:
    """Rows of one task and split, in a table with these roles."""

    piece: Piece
    roles: Roles


def safe_names(names: Mapping[str, str]) -> dict[str, str]:
    """The names without characters that paths and metrics give a meaning (then `_`), by task.

    Raises:
        ValueError: If two tasks would have the same name.
    """
    found = {task: re.sub(r'[\s/\\:*?"<>|\x00-\x1f]', "_", name) for task, name in names.items()}
    owners: dict[str, str] = {}
    for task, name in found.items():
        other = owners.setdefault(name, task)
        if other != task:
            raise ValueError(
                f"the tasks {names[other]!r} and {names[task]!r} would both be named {name!r} · "
                "names must differ in more than the characters that no name may have · rename one."
            )
    return found


def choose(count: int, total: int, task: str) -> list[int]:
    """`count` of `total` positions, ascending, always the same for a task."""
    return sorted(random.Random(f"cap {task}").sample(range(total), min(count, total)))


def capped(rows: Sequence[Rows], count: int, task: str) -> list[Rows]:
    """`count` of the rows in all, chosen as by `choose`."""
    pieces = [located(its.piece) for its in rows]
    ends = [*accumulate(map(len, pieces), initial=0)]
    chosen = np.array(choose(count, ends[-1], task), dtype=np.int64)
    cuts = np.split(chosen, np.searchsorted(chosen, ends[1:-1])) if rows else []
    return [
        Rows(piece.take(cut - start), its.roles)
        for its, piece, cut, start in zip(rows, pieces, cuts, ends, strict=False)
    ]


def located(piece: Piece) -> Piece:
    """The same rows, with positions."""
    return piece if piece.positions is not None else piece.table.pieces(())[()]


def ignored_columns(rows: Rows) -> list[str]:
    """Columns that have no role."""
    used = set(rows.roles.names.values())
    return [column for column in rows.piece.table.columns if column not in used]
