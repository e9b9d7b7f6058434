"""A fixed set of validation examples, the first of every task, kept for later questions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polylab.training.distributed import gather_objects

__all__ = ["ProbeSet"]

# what a transformers model computes its loss from
_INPUTS = (
    *("input_ids", "attention_mask", "token_type_ids", "labels", "task_ids", "prompt_mask"),
    *("decoder_input_ids", "decoder_attention_mask"),
)
Rows = dict[str, Tensor]


def refusal(batch: Any) -> str | None:
    """Why the loss of single tasks cannot be computed from a batch of this form, in words."""
    if not isinstance(batch, Mapping):
        return f"batches are {type(batch).__name__}s, not mappings with input_ids and labels"
    missing = [name for name in ("input_ids", "labels", "task_ids") if name not in batch]
    if missing:
        return f"batches have no {', '.join(missing)}"
    if "packed_lengths" in batch or batch["task_ids"].ndim != 1:
        return "the rows of packed batches hold several tasks"
    return None


@dataclass
class _Piece:
    """Rows of one task out of one batch: padded alike, so that they can be run together."""

    place: tuple[int, int, int]  # loader, batch, rank
    rows: Rows


@dataclass
class ProbeSet:
    """The first `per_task` examples of each of the `tasks`, as their batches held them.

    Filled by `add` during one validation, then closed by `gather`, on all ranks together; from then
    on it is the same on every rank and does not change.
    """

    tasks: Collection[int]
    per_task: int
    _pieces: dict[int, list[_Piece]] = field(default_factory=dict)
    is_closed: bool = False
    refused: str | None = None
    """Why there can be no probe set, in words; on one rank before `gather`, on all after it."""

    def add(self, batch: Any, *, place: tuple[int, int, int]) -> None:
        """Take what is still missing; `place` orders the batches."""
        self.refused = self.refused or refusal(batch)
        if self.refused or "filler" in batch:
            return
        ids = batch["task_ids"].tolist()
        taken: dict[int, list[int]] = {}
        for row, task in enumerate(ids):
            if task in self.tasks:
                known = sum(len(p.rows["labels"]) for p in self._pieces.get(task, ()))
                if known + len(taken.get(task, ())) < self.per_task:
                    taken.setdefault(task, []).append(row)
        with torch.inference_mode(False):  # tensors of a validation cannot go into a backward
            for task, rows in taken.items():
                own = {
                    name: batch[name][rows].cpu().clone()
                    for name in _INPUTS
                    if isinstance(batch.get(name), Tensor) and len(batch[name]) == len(ids)
                }
                self._pieces.setdefault(task, []).append(_Piece(place, own))

    def gather(self) -> None:
        """Put together what all ranks have seen; the first ones stay."""
        found: dict[int, list[_Piece]] = {}
        for part, refused in gather_objects((self._pieces, self.refused)):
            self.refused = self.refused or refused
            for task, pieces in part.items():
                found.setdefault(task, []).extend(pieces)
        self._pieces = {
            task: _first(sorted(found[task], key=lambda piece: piece.place), self.per_task)
            for task in sorted(found)
        }
        if len(self._pieces) < 2:
            n = len(self._pieces)
            self.refused = self.refused or f"{n} task had validation examples, a pair needs 2"
        self.is_closed = True

    @property
    def seen(self) -> list[int]:
        """The tasks that have an example."""
        return [*self._pieces]

    def rows(self, task: int) -> list[Rows]:
        """Inputs of the model, piece by piece."""
        return [piece.rows for piece in self._pieces[task]]


def _first(pieces: list[_Piece], most: int) -> list[_Piece]:
    kept = []
    for piece in pieces:
        room = most - sum(len(p.rows["labels"]) for p in kept)
        if room > 0:
            kept.append(_Piece(piece.place, {n: t[:room] for n, t in piece.rows.items()}))
    return kept
