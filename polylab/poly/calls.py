"""Around a call of the base model: what routers of the prompt observe and keep, checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import Cache

from polylab.poly.mixing import Factors
from polylab.poly.prompts import pool_prompt, prompt_before_labels
from polylab.poly.routing import ReenteringCheckpoint, Routing, current, enter
from polylab.poly.structure import encoder_of, is_causal, named_inputs, parameter_names

__all__ = [
    "RoutedModule",
    "check_prompt_mask",
    "guard_checkpoints",
    "keep_factors",
    "observe_prompts",
    "prefilled_factors",
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
        **kwargs: Any,
    ) -> Any:
        """The module's output under the routing of these ids."""
        inputs = named_inputs(self._names, args, kwargs)
        previous = enter(self._make_routing(inputs, task_ids, prompt_mask=prompt_mask))
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


def prefilled_factors(inputs: Mapping[str, Any]) -> dict[str, Factors]:
    """Factors kept with a cache that holds a prompt: its routing goes on.

    Raises:
        ValueError: If the prompt was not routed by such a call.
    """
    cache = inputs.get("past_key_values")
    if cache is None or cache.get_seq_length() == 0:
        return {}
    factors = getattr(cache, "poly_factors", None)
    if factors is None:
        raise ValueError(
            f"past_key_values holds {cache.get_seq_length()} tokens of a prompt that this "
            "adapter, routed by the prompt, has not seen. Use the cache of a PolyModel forward "
            "without gradients, or of generate."
        )
    return factors


def observe_prompts(model: nn.Module) -> None:
    """Let every call of `model` fill `Routing.prompt` and `Routing.encoder`, where read.

    By hooks, for `generate` calls the base model itself, with masks and rows that it prepares.
    """
    encoder, names = encoder_of(model), parameter_names(model)
    # Partial functions, not closures: a model with closures as hooks cannot be pickled.
    if encoder is None:
        see = partial(_see_inputs, names=names, causal=is_causal(model))
        model.register_forward_pre_hook(see, with_kwargs=True)
        return
    see = partial(_see_inputs, names=parameter_names(encoder), causal=False)
    encoder.register_forward_pre_hook(see, with_kwargs=True)
    encoder.register_forward_hook(_see_encoder_output)
    model.register_forward_pre_hook(partial(_see_given_output, names=names), with_kwargs=True)


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


def _set_prompt(inputs: Mapping[str, Any], *, causal: bool) -> None:
    routing = current()
    if routing is None or not routing.reads_prompt:
        return
    tokens = inputs.get("input_ids")
    tokens = inputs.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        return
    if routing.prompt is None:
        attended = _attended(inputs.get("attention_mask"), tokens)
        labels = inputs.get("labels") if causal else None
        routing.prompt = prompt_before_labels(attended, labels)
    rows = tokens.shape[0]
    if routing.prompt.shape[0] != rows and rows % routing.prompt.shape[0] == 0:  # beams
        times = rows // routing.prompt.shape[0]
        routing.prompt = routing.prompt.repeat_interleave(times, dim=0)
    if routing.prompt_tokens is not None:
        _fit_prompt(routing, tokens.shape[1])


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
    if routing is None or not routing.reads_prompt or routing.encoder is not None:
        return
    prompt = routing.prompt
    if prompt is None:
        prompt = _attended(attention_mask, hidden)
    routing.encoder = pool_prompt(hidden, prompt, where="encoder")


def _attended(attention_mask: Tensor | None, tokens: Tensor) -> Bool[Tensor, "batch seq"]:
    if attention_mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask has shape {[*attention_mask.shape]}, which does not say what the "
            "prompt is. Give prompt_mask, [batch, seq]."
        )
    return attention_mask.bool()
