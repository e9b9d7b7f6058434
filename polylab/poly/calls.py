"""Around a call of the base model: what routers of the prompt observe and keep, checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from polylab.poly.prompts import check_prompts, pool_prompt, prompt_before_labels
from polylab.poly.routing import ReenteringCheckpoint, Routing, current, enter
from polylab.poly.structure import encoder_of, is_causal, named_inputs, parameter_names

__all__ = [
    "RoutedModule",
    "check_prompt_mask",
    "check_segment_ids",
    "go_on",
    "guard_checkpoints",
    "keep_factors",
    "observe_prompts",
]


class RoutedModule(nn.Module):
    """A part of the base model (its encoder) that takes `task_ids` and `prompt_mask` itself."""

    def __init__(self, module: nn.Module, make_routing: Callable[..., Routing]) -> None:
        super().__init__()
        self.module = module
        self._make_routing = make_routing
        self._names = parameter_names(module)

    def forward(
        self,
        *args: Any,
        task_ids: object = None,
        prompt_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The module's output under the routing of these ids."""
        inputs = named_inputs(self._names, args, kwargs)
        routing = self._make_routing(
            inputs, task_ids, prompt_mask=prompt_mask, segment_ids=segment_ids
        )
        previous = enter(routing)
        try:
            return self.module(*args, **kwargs)
        finally:
            enter(previous)


def guard_checkpoints(modules: Iterable[nn.Module]) -> None:
    """Make the modules' gradient checkpointing re-enter the routing of its forward.

    Called before each training forward: checkpointing may be switched on at any time.
    """
    for module in modules:
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is not None and not isinstance(checkpoint, ReenteringCheckpoint):
            module.__dict__["_gradient_checkpointing_func"] = ReenteringCheckpoint(checkpoint)


def check_prompt_mask(
    prompt_mask: Tensor | None, batch: int | None, *, seq: int | None
) -> Bool[Tensor, "batch seq"] | None:
    """The mask as booleans.

    Raises:
        ValueError: If its shape is not that of the input.
    """
    if prompt_mask is None:
        return None
    shape = tuple(prompt_mask.shape)
    if len(shape) != 2 or batch not in (None, shape[0]) or seq not in (None, shape[1]):
        raise ValueError(
            f"prompt_mask has shape {[*shape]}, but the input is {[batch, seq]} (batch, seq)."
        )
    return prompt_mask.bool()


def keep_factors(output: Any, routing: Routing) -> None:
    """Keep the factors of a prompt with the cache that holds it, for the calls that go on."""
    cache = getattr(output, "past_key_values", None)
    if isinstance(cache, Cache):
        cache.poly_factors = routing.factors  # type: ignore[attr-defined]


def go_on(routing: Routing, inputs: Mapping[str, Any]) -> None:
    """Take the factors of the prompt from the cache that holds it, if there is one.

    Raises:
        ValueError: If the prompt was not routed by such a call.
    """
    routing.factors = {}
    cache = inputs.get("past_key_values")
    if cache is None or cache.get_seq_length() == 0:
        return
    factors = getattr(cache, "poly_factors", None)
    if factors is None:
        raise ValueError(
            f"past_key_values holds {cache.get_seq_length()} tokens of a prompt that this "
            "adapter, routed by the prompt, has not seen. Use the cache of a PolyModel forward "
            "without gradients, or of generate."
        )
    routing.factors, routing.weigh_shared = factors, None


def check_segment_ids(
    segment_ids: Tensor | None, batch: int | None, *, seq: int | None
) -> Tensor | None:
    """The ids of a packed row's examples, as int64.

    Raises:
        ValueError: If they are no integers, or their shape is not that of the input.
    """
    if segment_ids is None:
        return None
    shape = tuple(segment_ids.shape)
    if segment_ids.is_floating_point() or shape != (batch, seq):
        raise ValueError(
            f"segment_ids has shape {[*shape]} and dtype {segment_ids.dtype}. Give integers of "
            f"shape {[batch, seq]} (batch, seq), one number for each example of a packed row; an "
            "encoder-decoder model takes none."
        )
    return segment_ids.long()


def observe_prompts(model: nn.Module) -> list[RemovableHandle]:
    """Let every call of `model` fill `Routing.prompt` and `Routing.encoder`, where read.

    By hooks, for `generate` calls the base model itself, with masks and rows that it prepares.
    """
    encoder, names = encoder_of(model), parameter_names(model)
    handles = _observe_embeddings(model)
    # Partial functions, not closures: a model with closures as hooks cannot be pickled.
    if encoder is None:
        see = partial(_see_inputs, names=names, causal=is_causal(model))
        return [*handles, model.register_forward_pre_hook(see, with_kwargs=True)]
    see = partial(_see_inputs, names=parameter_names(encoder), causal=False)
    see_output = partial(_see_given_output, names=names)
    return [
        *handles,
        encoder.register_forward_pre_hook(see, with_kwargs=True),
        encoder.register_forward_hook(_see_encoder_output),
        model.register_forward_pre_hook(see_output, with_kwargs=True),
    ]


def _see_inputs(
    _module: nn.Module, args: tuple, kwargs: dict, *, names: list[str], causal: bool
) -> None:
    _set_prompt(named_inputs(names, args, kwargs), causal=causal)


def _see_encoder_output(_module: nn.Module, _args: tuple, output: Any) -> None:
    _set_encoder(output[0], None)


def _see_given_output(_module: nn.Module, args: tuple, kwargs: dict, *, names: list[str]) -> None:
    inputs = named_inputs(names, args, kwargs)
    if inputs.get("encoder_outputs") is not None:
        _set_encoder(inputs["encoder_outputs"][0], inputs.get("attention_mask"))


def _observe_embeddings(model: nn.Module) -> list[RemovableHandle]:
    """Routers of the embeddings, which layers share, are evaluated once the first are known."""
    # Each stack may have a table of its own; the first that is called is the prompt's.
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    tables = {id(table): table for table in (part.get_input_embeddings() for part in parts)}
    return [table.register_forward_hook(_see_embeddings) for table in tables.values()]


def _see_embeddings(_module: nn.Module, _args: tuple, output: Any) -> None:
    _weigh_shared(output)


def _weigh_shared(embeddings: Tensor) -> None:
    routing = current()
    if routing is not None and routing.weigh_shared is not None:
        weigh, routing.weigh_shared = routing.weigh_shared, None
        weigh(
            routing,
            pool_prompt(embeddings, routing.prompt, segments=routing.segments, where="embeddings"),
        )


def _set_prompt(inputs: Mapping[str, Any], *, causal: bool) -> None:
    routing = current()
    if routing is None or routing.reads is None:
        return
    tokens = inputs.get("input_ids")
    tokens = inputs.get("inputs_embeds") if tokens is None else tokens
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
    if inputs.get("inputs_embeds") is not None:  # then the table of embeddings is not called
        _weigh_shared(tokens)


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


def _set_encoder(hidden: Tensor, attention_mask: Tensor | None) -> None:
    routing = current()
    if routing is None or routing.reads != "prompt" or routing.encoder is not None:
        return
    prompt = routing.prompt
    if prompt is None:
        prompt = _attended(attention_mask, hidden)
    routing.encoder = pool_prompt(hidden, prompt, where="encoder")


def _attended(attention_mask: Tensor | None, tokens: Tensor) -> Bool[Tensor, "batch seq"]:
    if attention_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if attention_mask.ndim != 2:
        routing = current()
        if routing is not None and routing.reads == "tokens":
            return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        raise ValueError(
            f"attention_mask has shape {[*attention_mask.shape]}, which does not say what the "
            "prompt is. Give prompt_mask, [batch, seq]."
        )
    return attention_mask.bool()
