"""The examples of a training batch side by side in fewer rows, with less padding between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from polylab.data.collate import IGNORED, check_task_ids, pad, whole
from polylab.data.dataset import EncodedExample

__all__ = ["PackingCollator", "pack"]

_LEAST_WIDTH = 128  # tokens; the attention between so few costs little
_MOST = 8  # examples in a row


class PackingCollator:
    """Packs a batch into rows that are as wide as its longest example, or 128 tokens.

    Wider rows would be filled better, but attention costs time and memory by their width; so a
    packed batch needs no more of both than a padded one. The targets of an encoder-decoder model
    have rows of their own, to which the same applies. A row holds at most 8 examples, as layers
    multiply its tokens with the factors of all of them.

    A row keeps the examples whole: `input_ids`, `attention_mask` and `labels` are `[rows, seq]`;
    `task_ids` and `rows` are `[examples]`, row by row, and `packed_lengths` has the tokens of the
    examples of every row. For an encoder-decoder model `decoder_packed_lengths` has those of the
    targets, in rows of another width than the inputs: layers tell the two apart by it.

    Args:
        pad_id: Fills `input_ids`.
        n_tasks: Valid ids are below it.
        is_encoder_decoder: False puts input and target in one row, with the loss on the target.
    """

    def __init__(self, *, pad_id: int, n_tasks: int, is_encoder_decoder: bool) -> None:
        self._pad_id = pad_id
        self._n_tasks = n_tasks
        self._is_encoder_decoder = is_encoder_decoder

    def __call__(self, items: Sequence[EncodedExample]) -> dict[str, Any]:
        """One batch.

        Raises:
            ValueError: If a task id is not in [0, n_tasks).
        """
        rows = pack([self._sizes(item) for item in items])
        packed = [[items[i] for i in row] for row in rows]
        inputs = [[item.input_ids for item in row] for row in packed]
        labels = [[item.target_ids for item in row] for row in packed]
        if not self._is_encoder_decoder:
            wholes = [[whole(item) for item in row] for row in packed]
            inputs, labels = ([[w[side] for w in row] for row in wholes] for side in (0, 1))
        joined = [np.concatenate(row) for row in inputs]
        batch: dict[str, Any] = {
            "input_ids": pad(joined, self._pad_id),
            "attention_mask": pad([np.ones_like(ids) for ids in joined], 0),
            "labels": pad([np.concatenate(row) for row in labels], IGNORED),
            "packed_lengths": [[*map(len, row)] for row in inputs],
        }
        if self._is_encoder_decoder:
            batch["decoder_packed_lengths"] = [[*map(len, row)] for row in labels]
            if batch["labels"].shape == batch["input_ids"].shape:
                batch["labels"] = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)
        order = [item for row in packed for item in row]
        batch["task_ids"] = check_task_ids([item.task_id for item in order], self._n_tasks)
        batch["rows"] = torch.tensor([item.row for item in order], dtype=torch.int64)
        return batch

    def _sizes(self, item: EncodedExample) -> tuple[int, ...]:
        sizes = len(item.input_ids), len(item.target_ids)
        return sizes if self._is_encoder_decoder else (sum(sizes),)


def pack(sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Examples in rows: first fit decreasing, in all dimensions at once.

    D. S. Johnson, "Near-optimal bin packing algorithms", 1973: in one dimension, and but for the
    limit of examples in a row, at most a few more than 11/9 of the fewest rows.

    Args:
        sizes: Of each example, in each dimension (tokens of the input, and of the target).

    Returns:
        The examples of each row, by their position in `sizes`.
    """
    capacity = np.maximum(np.max(np.array(sizes), axis=0), _LEAST_WIDTH)
    share = np.max(np.array(sizes) / capacity, axis=1)
    rows: list[list[int]] = []
    room = np.zeros((0, len(capacity)), dtype=np.int64)
    for example in np.argsort(-share, kind="stable").tolist():
        has_place = np.array([len(row) < _MOST for row in rows], dtype=bool)
        fits = (room >= sizes[example]).all(axis=1) & has_place
        if fits.any():
            row = int(fits.argmax())
        else:
            row = len(rows)
            rows.append([])
            room = np.concatenate([room, capacity[None]])
        rows[row].append(example)
        room[row] -= sizes[example]
    return rows
