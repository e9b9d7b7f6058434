"""Encoded examples into padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from polylab.data.dataset import EncodedExample
from polylab.data.encoding import Tokens, masked
from polylab.data.evaluation import FILLER
from polylab.data.labels import LabelSets

IGNORED = -100


class Collator:
    """Pads a batch and tags each row with its task.

    Always: `input_ids`, `attention_mask`, `labels` (-100 where nothing is predicted), `task_ids`
    and `rows`. Evaluation batches also hold the texts, `inputs` and `references`, for a
    decoder-only model `prompt_ids` and `prompt_attention_mask`, padded on the left to generate, and
    if some examples have options `ranked`: a row for each option, with the `texts` that have these
    token ids, their example's position in the batch, `rows`, and what replaces the batch's own
    `labels` (and of a decoder-only model `input_ids` and `attention_mask`). A batch of fillers (see
    `EvaluationBatchSampler`), and no other, has `filler`, which is True.

    Args:
        pad_id: Fills `input_ids`.
        n_tasks: Valid ids are below it.
        is_encoder_decoder: False puts input and target in one row, with the loss on the target.
        evaluation: Whether to add what only evaluation needs.
        label_sets: Of classification, whose `labels` are `[batch, 1]`: a class of the row's task.
    """

    def __init__(
        self,
        *,
        pad_id: int,
        n_tasks: int,
        is_encoder_decoder: bool,
        evaluation: bool = False,
        label_sets: LabelSets | None = None,
    ) -> None:
        self._pad_id = pad_id
        self._n_tasks = n_tasks
        self._is_encoder_decoder = is_encoder_decoder
        self._evaluation = evaluation
        self._label_sets = label_sets

    def __call__(self, items: Sequence[EncodedExample]) -> dict[str, Any]:
        """One batch.

        Raises:
            ValueError: If a task id is not in [0, n_tasks).
        """
        joined = not self._is_encoder_decoder and self._label_sets is None
        batch = self._causal(items) if joined else self._seq2seq(items)
        batch["task_ids"] = check_task_ids([item.task_id for item in items], self._n_tasks)
        if self._label_sets is not None:
            class_of = self._label_sets.class_of
            classes = [[class_of(item.task_id, int(item.target_ids[0]))] for item in items]
            batch["labels"] = torch.tensor(classes)
        batch["rows"] = torch.tensor([item.row for item in items], dtype=torch.int64)
        if self._evaluation:
            batch["inputs"] = [item.text for item in items]
            batch["references"] = [list(item.references) for item in items]
            if items[0].row == FILLER:
                batch["filler"] = True
            if self._label_sets is None and any(item.options for item in items):
                batch["ranked"] = self._ranked(items, joined=joined)
        return batch

    def _ranked(self, items: Sequence[EncodedExample], *, joined: bool) -> dict[str, Any]:
        rows, texts, asked = [], [], []
        for row, item in enumerate(items):
            same: dict[bytes, list[str]] = {}  # options that the token budget makes equal
            for text, ids in zip(item.options, item.option_ids, strict=True):
                if ids.tobytes() not in same:
                    rows.append(row)
                    asked.append(replace(item, target_ids=ids))
                    texts.append(same.setdefault(ids.tobytes(), []))
                same[ids.tobytes()].append(text)
        ranked = self._causal(asked) if joined else {"labels": _labels(asked)}
        kept = {k: v for k, v in ranked.items() if not k.startswith("prompt_")}
        return {**kept, "rows": torch.tensor(rows), "texts": texts}

    def _seq2seq(self, items: Sequence[EncodedExample]) -> dict[str, Any]:
        inputs = [item.input_ids for item in items]
        return {
            "input_ids": pad(inputs, self._pad_id),
            "attention_mask": pad([np.ones_like(ids) for ids in inputs], 0),
            "labels": _labels(items),
        }

    def _causal(self, items: Sequence[EncodedExample]) -> dict[str, Any]:
        wholes, labels = zip(*map(whole, items), strict=True)
        batch: dict[str, Any] = {
            "input_ids": pad(wholes, self._pad_id),
            "attention_mask": pad([np.ones_like(ids) for ids in wholes], 0),
            "labels": pad(labels, IGNORED),
        }
        if self._evaluation:
            prompts = [item.input_ids for item in items]
            batch["prompt_ids"] = pad(prompts, self._pad_id, left=True)
            batch["prompt_attention_mask"] = pad(
                [np.ones_like(ids) for ids in prompts], 0, left=True
            )
        return batch


def whole(item: EncodedExample) -> tuple[Tokens, Tokens]:
    """Input and target as one sequence, and its labels."""
    target, unlabelled = item.target_ids, np.full_like(item.input_ids, IGNORED)
    learnt = target >= 0
    return (
        np.concatenate([item.input_ids, np.where(learnt, target, masked(target))]),
        np.concatenate([unlabelled, np.where(learnt, target, np.int32(IGNORED))]),
    )


def _labels(items: Sequence[EncodedExample]) -> Int64[Tensor, "batch seq"]:
    return pad([item.target_ids for item in items], IGNORED)


def pad(
    sequences: Sequence[Tokens], value: int, *, left: bool = False
) -> Int64[Tensor, "batch seq"]:
    """The sequences as rows of one tensor, filled with `value` on the right or `left`."""
    width = max(map(len, sequences))
    rows = np.full((len(sequences), width), value, dtype=np.int64)
    for row, ids in zip(rows, sequences, strict=True):
        row[width - len(ids) if left else 0 : width if left else len(ids)] = ids
    return torch.from_numpy(rows)


def check_task_ids(task_ids: Sequence[int], n_tasks: int) -> Int64[Tensor, " batch"]:
    """The ids as a tensor.

    Raises:
        ValueError: If one is not in [0, n_tasks).
    """
    wrong = sorted({task_id for task_id in task_ids if not 0 <= task_id < n_tasks})
    if wrong:
        raise ValueError(
            f"task ids {wrong[:20]} · valid are 0 to {n_tasks - 1} (n_tasks={n_tasks}) · "
            "take them from task_names."
        )
    return torch.tensor(list(task_ids), dtype=torch.int64)
