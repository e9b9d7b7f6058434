"""What a finished run makes of texts of the user's own: answers, or labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from polylab.data.collate import Collator
from polylab.data.dataset import EncodedExample
from polylab.data.encoding import TextEncoder, padding_id
from polylab.data.tasks import quote
from polylab.training.classification import class_logits, encoder_output
from polylab.training.generation import generate_texts

if TYPE_CHECKING:
    from polylab.runs import Run

__all__ = ["answers", "label_probabilities"]


@torch.no_grad()
def answers(run: Run, texts: Sequence[str], *, task: str | None, **options: Any) -> list[str]:
    """See `Run.generate`."""
    if run.labels is not None:
        raise ValueError("the run classifies (module=classification) · use classify(texts, task=).")
    if not _given(texts):
        return []
    module = run.config.module
    batch = _batch(run, texts, task, separate=bool(run.model.config.is_encoder_decoder))
    own = {"max_new_tokens": module.max_new_tokens, "num_beams": module.num_beams}
    return generate_texts(run.model, run.tokenizer, batch, **{**own, "do_sample": False, **options})


@torch.no_grad()
def label_probabilities(
    run: Run, texts: Sequence[str], *, task: str | None
) -> list[dict[str, float]]:
    """See `Run.classify`."""
    if run.labels is None:
        raise ValueError("the run generates and has no labels · use generate(texts, task=).")
    if not _given(texts):
        return []
    batch = _batch(run, texts, task, separate=True)
    hidden = encoder_output(run.model, batch).last_hidden_state
    labels = run.labels[run.tasks[_task_id(run, task)]]
    shares = class_logits(run.model, hidden, batch).softmax(1)[:, : len(labels)].tolist()
    named = [zip(labels, row, strict=True) for row in shares]
    return [dict(sorted(pairs, key=lambda pair: pair[1], reverse=True)) for pairs in named]


def _given(texts: Sequence[str]) -> bool:
    if isinstance(texts, str):
        raise ValueError("texts is one string; give a list of them.")
    return bool(texts)


_ENCODING = ("max_input_length", "max_target_length", "separator", "keep_input", "chat")


def _batch(run: Run, texts: Sequence[str], task: str | None, *, separate: bool) -> dict[str, Any]:
    """The texts encoded as in training; `separate`: the answer is not in the row of its input."""
    encoder = TextEncoder(
        run.tokenizer,
        is_encoder_decoder=separate,
        **{key: run.config.data[key] for key in _ENCODING},
    )
    task_id = _task_id(run, task)
    inputs, targets = encoder.encode_inputs(texts), encoder.encode_targets([""] * len(texts))
    pairs = enumerate(zip(inputs, targets, strict=True))
    items = [EncodedExample(task_id, row, ids, target) for row, (ids, target) in pairs]
    collate = Collator(
        pad_id=padding_id(run.tokenizer),
        n_tasks=len(run.tasks),
        is_encoder_decoder=separate,
        evaluation=True,
    )
    device = next(run.model.parameters()).device
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in collate(items).items()
    }


def _task_id(run: Run, task: str | None) -> int:
    if task in run.tasks:
        return run.tasks.index(task)
    if task is not None:
        raise ValueError(f"task={task!r} is none of the run's: {quote(run.tasks)}.")
    if len(run.tasks) > 1 and (run.labels is not None or not run.model.is_input_routed):
        what = "routing" if run.labels is None else "head"
        raise ValueError(f"say whose {what} to use: task= one of {quote(run.tasks)}.")
    return 0
