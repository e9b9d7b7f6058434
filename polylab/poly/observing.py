"""What routers of the input observe of a call: the prompt, the embeddings, the encoder's output.

By hooks, for `generate` calls the base model itself, with masks and rows that it prepares.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from polylab.poly.prompts import check_prompts, pool_prompt, prompt_before_labels
from polylab.poly.routing import Routing, current
from polylab.poly.structure import encoder_of, is_causal, named_inputs, parameter_names

__all__ = ["observe_prompts"]


def observe_prompts(model: nn.Module) -> list[RemovableHandle]:
    """Let every call of `model` fill `Routing.prompt` and `Routing.encoder`, where read."""
    encoder, names = encoder_of(model), parameter_names(model)
    # Each stack may have a table of its own; the first that is called is the prompt's.
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    tables = {id(table): table for table in (part.get_input_embeddings() for part in parts)}
    handles = [table.register_forward_hook(_see_embeddings) for table in tables.values()]
    # Partial functions, not closures: a model with closures as hooks cannot be pickled.
    if encoder is None:
        see = partial(_see_inputs, names=names, causal=is_causal(model))
        return [*handles, model.register_forward_pre_hook(see, with_kwargs=True)]
    see = partial(_see_inputs, names=parameter_names(encoder), causal=False)
    given = partial(_see_given_output, names=names)
    return [
        *handles,
        encoder.register_forward_pre_hook(see, with_kwargs=True),
        encoder.register_forward_hook(_see_encoder_output),
        model.register_forward_pre_hook(given, with_kwargs=True),
    ]


def _see_embeddings(_module: nn.Module, _args: tuple, output: Any) -> None:
    _weigh_shared(output)


def _see_inputs(
    module: nn.Module, args: tuple, kwargs: dict, *, names: list[str], causal: bool
) -> None:
    inputs = named_inputs(names, args, kwargs)
    learns = module.training and torch.is_grad_enabled()
    if causal and learns and inputs.get("labels") is None:
        _refuse_unknown_prompt()
    _set_prompt(inputs, causal=causal)


def _see_encoder_output(_module: nn.Module, _args: tuple, output: Any) -> None:
    _set_encoder(output[0], None)


def _see_given_output(_module: nn.Module, args: tuple, kwargs: dict, *, names: list[str]) -> None:
    inputs = named_inputs(names, args, kwargs)
    if inputs.get("encoder_outputs") is not None:
        routing = current()
        if routing is not None and routing.weigh_shared is not None:
            raise ValueError(
                "encoder_outputs without the embeddings that routers of the embeddings read: give "
                "input_ids, or inputs_embeds."
            )
        _set_encoder(inputs["encoder_outputs"][0], inputs.get("attention_mask"))


def _refuse_unknown_prompt() -> None:
    """A training batch holds its targets: without a word on where they start, all would be read."""
    routing = current()
    if routing is not None and routing.reads == "prompt" and routing.prompt is None:
        raise ValueError(
            "a router of the prompt in a training step without labels: where the prompt ends is "
            "unknown, and the router must not read targets. Give labels (-100 on the prompt) or "
            "prompt_mask [batch, seq]."
        )


def _set_prompt(inputs: Mapping[str, Any], *, causal: bool) -> None:
    routing = current()
    if routing is None or routing.reads is None:
        return
    embedded = inputs.get("inputs_embeds")
    tokens = inputs.get("input_ids")
    tokens = embedded if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        return
    if routing.prompt is None:
        attended = _attended(inputs.get("attention_mask"), tokens)
        labels = inputs.get("labels") if causal and routing.reads == "prompt" else None
        routing.prompt = prompt_before_labels(attended, labels, routing.segments)
        if labels is not None and routing.segments is None:
            check_prompts(routing.prompt)
    rows = tokens.shape[0]
    if routing.prompt.shape[0] != rows and rows % routing.prompt.shape[0] == 0:  # beams
        times = rows // routing.prompt.shape[0]
        routing.prompt = routing.prompt.repeat_interleave(times, dim=0)
    if routing.prompt_tokens is not None:
        _fit_prompt(routing, tokens.shape[1])
    if embedded is not None:  # then the table of embeddings is not called
        _weigh_shared(embedded)


def _fit_prompt(routing: Routing, seq: int) -> None:
    """Speculative decoding appends candidates to the prompt in its first call."""
    length, prompt = routing.prompt_tokens, routing.prompt
    assert length is not None
    assert prompt is not None
    if seq >= length:
        routing.prompt = nn.functional.pad(prompt[:, :length], (0, seq - length))
    elif not routing.factors:
        raise ValueError(
            f"generate gave the model {seq} of the prompt's {length} tokens, but this adapter is "
            "routed by the whole prompt. Leave out prefill_chunk_size."
        )


def _weigh_shared(embeddings: Tensor) -> None:
    """Routers of the embeddings, which layers share, are evaluated once the first are known."""
    routing = current()
    if routing is None or routing.weigh_shared is None:
        return
    weigh, routing.weigh_shared = routing.weigh_shared, None
    pooled = pool_prompt(
        embeddings,
        routing.prompt,
        segments=routing.segments,
        packing=None if routing.packed is None else routing.packed.input,
        where="embeddings",
    )
    weigh(routing, pooled)


def _set_encoder(hidden: Tensor, attention_mask: Tensor | None) -> None:
    routing = current()
    if routing is None or routing.reads != "prompt" or routing.encoder is not None:
        return
    prompt = routing.prompt
    if prompt is None:
        prompt = _attended(attention_mask, hidden)
    packing = None if routing.packed is None else routing.packed.input
    routing.encoder = pool_prompt(hidden, prompt, packing=packing, where="encoder")


def _attended(attention_mask: Tensor | None, tokens: Tensor) -> Bool[Tensor, "batch seq"]:
    if attention_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if attention_mask.dtype == torch.bool and attention_mask.shape[1:-1] == (1, 1):
        return attention_mask[:, 0, 0]  # see calls.widen_padding
    if attention_mask.ndim != 2:
        routing = current()
        if routing is not None and routing.reads == "tokens":
            return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        raise ValueError(
            f"attention_mask has shape {[*attention_mask.shape]}, which does not say what the "
            "prompt is. Give prompt_mask, [batch, seq]."
        )
    return attention_mask.bool()
