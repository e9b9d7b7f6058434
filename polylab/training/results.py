"""`metrics.json`: what a run achieved, in one file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from polylab.training.files import write_atomically


def count_trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def write_metrics(
    path: str | os.PathLike[str],
    *,
    splits: Mapping[str, Mapping[str, Any] | None],
    checkpoint: str,
    seconds: float,
    trainable_parameters: int,
    recovery: Mapping[str, Any] | None = None,
    neighbours: Mapping[str, str] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the final metrics as strict JSON, in one step, without the parts that are None.

    Args:
        path: Usually `RUN_DIR/metrics.json`.
        splits: `PolyModule.results`, by `val`, `test` (and `train`, of an evaluation):
            `{"loss", "macro", "micro", "tasks"}`.
        checkpoint: `best` or `last`: which of the run's was tested.
        seconds: Wall time of the run.
        trainable_parameters: See `count_trainable`.
        recovery: How well the router found the true skills, where they are known.
        neighbours: The trained task that each untrained one was routed as (`zero_shot=nearest`).
        categories: Of each task that has some, written as `task_categories`.

    Raises:
        ValueError: If `checkpoint` is neither.
    """
    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint={checkpoint} must be best or last.")
    parts = {**splits, "recovery": recovery, "neighbours": neighbours}
    parts["task_categories"] = categories
    content = {name: part for name, part in parts.items() if part is not None} | {
        "checkpoint": checkpoint,
        "seconds": seconds,
        "trainable_parameters": trainable_parameters,
    }
    text = json.dumps(_strict(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: a diverged loss is written as null."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
