"""A training batch in two parts, the short rows and the long ones: less padding to compute.

On a CPU a padded token costs as much as any other. (An accelerator would rather have one large
call than two smaller ones.)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from polylab.training.losses import IGNORED, ExampleLosses

__all__ = ["join_parts", "length_parts", "take_rows"]

_LEAST_TOKENS = 2048  # of a batch with its padding; below it a second call costs more than it saves
_LEAST_SAVING = 0.1

Rows = Int64[Tensor, " rows"]


def length_parts(attention_mask: Int[Tensor, "batch seq"]) -> tuple[Rows, Rows] | None:
    """The rows of the shorter and of the longer part, cut where both need the fewest tokens.

    None where that saves less than a tenth, or the batch is small.
    """
    n_rows, width = attention_mask.shape
    if n_rows < 2 or n_rows * width < _LEAST_TOKENS:
        return None
    lengths, order = _lengths(attention_mask).sort()
    cuts = torch.arange(1, n_rows)  # rows of the shorter part
    costs = cuts * lengths[:-1] + (n_rows - cuts) * lengths[-1]
    cost, best = costs.min(0)
    if cost > (1 - _LEAST_SAVING) * n_rows * width:
        return None
    cut = int(cuts[best])
    return order[:cut], order[cut:]


def take_rows(batch: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """These rows of a training batch, without the columns that are padding in all of them."""
    part = {name: value[rows] for name, value in batch.items() if isinstance(value, Tensor)}
    width = int(_lengths(part["attention_mask"]).max())
    causal = part["labels"].shape == part["input_ids"].shape
    answers = width if causal else int(_lengths(part["labels"] != IGNORED).max())
    for name, end in (("input_ids", width), ("attention_mask", width), ("labels", answers)):
        part[name] = part[name][:, :end]
    return part


def join_parts(parts: list[ExampleLosses], rows: tuple[Rows, ...]) -> ExampleLosses:
    """The losses of all examples in the order of their rows."""
    place = torch.cat(rows).argsort()
    losses = torch.cat([part.losses for part in parts])[place]
    return ExampleLosses(losses, torch.cat([part.tokens for part in parts])[place], None, None)


def _lengths(mask: Tensor) -> Rows:
    """Columns up to the last one that counts: with padding on the left, all of them."""
    return (mask.long() * torch.arange(1, mask.shape[1] + 1)).amax(1)
