"""A frozen backbone in 4 or 8 bits, prepared for the training of adapters: QLoRA."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

__all__ = ["QUANTIZATIONS", "enable_checkpointing", "prepare_quantized", "quantization_options"]

QUANTIZATIONS = ("4bit", "8bit")
_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def quantization_options(quantization: str | None) -> dict[str, Any]:
    """What `from_pretrained` is told: nf4 with double quantisation and bfloat16 compute, or int8.

    QLoRA (https://arxiv.org/abs/2305.14314); LLM.int8 (https://arxiv.org/abs/2208.07339).

    Raises:
        ValueError: If the word is not a known one.
        ModuleNotFoundError: If bitsandbytes, or accelerate that loads for it, is not installed.
    """
    if quantization is None:
        return {}
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"backbone.quantization={quantization} is not known; choose one of "
            f"{', '.join(QUANTIZATIONS)}, or null."
        )
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"backbone.quantization={quantization} needs {' and '.join(missing)}: "
            "pip install 'polylab[quantized]'."
        )
    if quantization == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config}


def prepare_quantized(model: PreTrainedModel) -> None:
    """Hold what is not quantised (norms, embeddings, the head) in float32, as PEFT does."""
    for parameter in model.parameters():
        # a 4-bit weight may be stored as if it were bfloat16
        is_quantized = type(parameter).__name__ == "Params4bit"
        if parameter.dtype in _SIXTEEN_BITS and not is_quantized:
            parameter.data = parameter.data.float()


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass instead of keeping them.

    transformers marks the embeddings' output as needing a gradient, which the reentrant kind would
    need for the adapters to get theirs.

    Raises:
        ValueError: If the architecture has no checkpointing.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"backbone.gradient_checkpointing=true: {type(model).__name__} has no checkpointing; "
            "leave it false."
        )
    former = model.gradient_checkpointing_enable
    getattr(model, "activation_checkpointing_enable", former)({"use_reentrant": False})
