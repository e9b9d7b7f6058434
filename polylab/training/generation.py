"""Answers to an evaluation batch, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from polylab.poly.sharding import is_sharded

if TYPE_CHECKING:
    from polylab.poly import PolyModel


def generate_texts(
    model: PolyModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, Any],
    *,
    encoded: Float[Tensor, "batch seq d_model"] | None = None,
    **options: Any,
) -> list[str]:
    """The model's answers, without special tokens.

    A sharded model goes on until the answers of all ranks have ended: each of its steps is one of
    all ranks, which must call this equally often.

    Args:
        model: Generates.
        tokenizer: Decodes.
        batch: Of the data module, for evaluation.
        encoded: The encoder's output for `input_ids`, where it is known (see `losses.reusable`).
        options: Of `generate`.
    """
    options["synced_gpus"] = is_sharded(model)
    if not model.config.is_encoder_decoder:
        prompt, mask = batch["prompt_ids"], batch["prompt_attention_mask"]
        ids = {"input_ids": prompt, "attention_mask": mask, "task_ids": batch["task_ids"]}
        tokens = model.generate(**ids, **options)[:, prompt.shape[1] :]
        return tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ids = {name: batch[name] for name in ("input_ids", "attention_mask", "task_ids")}
    if encoded is not None:
        options["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
    return tokenizer.batch_decode(model.generate(**ids, **options), skip_special_tokens=True)
