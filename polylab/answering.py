"""Answers of a finished run to texts of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExample
from polylab.data.encoding import TextEncoder, padding_id
from polylab.data.tasks import quote
from polylab.training.generation import generate_texts

if TYPE_CHECKING:
    from polylab.runs import Run

__all__ = ["answers"]


@torch.no_grad()
def answers(run: Run, texts: Sequence[str], *, task: str | None, **options: Any) -> list[str]:
    """See `Run.generate`."""
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list of them.")
    if not texts:
        return []
    is_encoder_decoder = bool(run.model.config.is_encoder_decoder)
    data, module = run.config.data, run.config.module
    encoder = TextEncoder(
        run.tokenizer,
        is_encoder_decoder=is_encoder_decoder,
        **{key: data[key] for key in _ENCODING},
    )
    task_id = _task_id(run, task)
    inputs, targets = encoder.encode_inputs(texts), encoder.encode_targets([""] * len(texts))
    pairs = enumerate(zip(inputs, targets, strict=True))
    items = [EncodedExample(task_id, row, ids, target) for row, (ids, target) in pairs]
    collate = Collator(
        pad_id=padding_id(run.tokenizer),
        n_tasks=len(run.tasks),
        is_encoder_decoder=is_encoder_decoder,
        evaluation=True,
    )
    device = next(run.model.parameters()).device
    batch = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in collate(items).items()
    }
    own = {"max_new_tokens": module.max_new_tokens, "num_beams": module.num_beams}
    return generate_texts(run.model, run.tokenizer, batch, **{**own, "do_sample": False, **options})


_ENCODING = ("max_input_length", "max_target_length", "separator", "keep_input", "chat")


def _task_id(run: Run, task: str | None) -> int:
    if task in run.tasks:
        return run.tasks.index(task)
    if task is not None:
        raise ValueError(f"task={task!r} is none of the run's: {quote(run.tasks)}.")
    if len(run.tasks) > 1 and not run.model.is_input_routed:
        raise ValueError(f"say whose routing to use: task= one of {quote(run.tasks)}.")
    return 0
