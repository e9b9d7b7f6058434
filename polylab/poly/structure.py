"""What kind of transformers model this is, read from its structure, and what a call gives it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = [
    "batch_shape",
    "blocks_of",
    "embedding_width",
    "encoder_of",
    "is_causal",
    "named_inputs",
    "parameter_names",
    "widths",
]

# Where the batch's shape is read from, in this order.
_MAIN_INPUTS = ("input_ids", "inputs", "inputs_embeds", "input_features", "encoder_outputs")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a base model, by the class that transformers gives them."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def parameter_names(module: nn.Module) -> list[str]:
    """Names of the arguments of `forward`."""
    return [*inspect.signature(module.forward).parameters]


def encoder_of(model: nn.Module) -> nn.Module | None:
    """The encoder of an encoder-decoder model; None for any other.

    By signature, as `config.is_encoder_decoder` is not set on every T5.
    """
    if "encoder_outputs" not in parameter_names(model):
        return None
    find = getattr(model, "get_encoder", None)
    assert callable(find), f"{type(model).__name__} takes encoder_outputs but has no get_encoder()"
    encoder = find()
    assert isinstance(encoder, nn.Module)
    return encoder


def is_causal(model: nn.Module) -> bool:
    """Whether labels belong to the input's own tokens, each predicted from those before it."""
    can_generate = getattr(model, "can_generate", None)
    return encoder_of(model) is None and can_generate is not None and bool(can_generate())


def widths(model: nn.Module, targets: Mapping[str, nn.Module]) -> dict[str, int | None]:
    """Width of what the input router of each layer reads; None: the layer's own input.

    Layers outside the encoder of an encoder-decoder model read its pooled output.
    """
    encoder = encoder_of(model)
    if encoder is None:
        return dict.fromkeys(targets)
    inside = {id(module) for module in encoder.modules()}
    d_model = getattr(model.config, "hidden_size", None)
    assert isinstance(d_model, int)
    return {name: None if id(module) in inside else d_model for name, module in targets.items()}


def embedding_width(model: nn.Module) -> int:
    """Width of the input embeddings.

    Raises:
        ValueError: If the model has none.
    """
    find = getattr(model, "get_input_embeddings", None)
    embeddings = find() if callable(find) else None
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(
            f"router_input='embeddings': {type(model).__name__} has no table of input embeddings. "
            "Give router_input='layer'."
        )
    return weight.shape[1]


def named_inputs(names: Sequence[str], args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def batch_shape(inputs: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """`(batch, seq)` of a call's inputs; None where it cannot be told."""
    for name in _MAIN_INPUTS:
        value = inputs.get(name)
        if value is None:
            continue
        tensor = value if isinstance(value, Tensor) else value[0]
        return tensor.shape[0], tensor.shape[1] if tensor.ndim > 1 else None
    tensors = [value for value in inputs.values() if isinstance(value, Tensor) and value.ndim]
    return (tensors[0].shape[0], None) if tensors else (None, None)
