"""Around a call of the base model: what routers of the prompt observe, and checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from polylab.poly.prompts import pool_prompt, prompt_before_labels
from polylab.poly.routing import ReenteringCheckpoint, Routing, current, enter
from polylab.poly.structure import encoder_of, is_causal, named_inputs, parameter_names

__all__ = ["RoutedModule", "check_prompt_mask", "guard_checkpoints", "observe_prompts"]


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
    rows = tokens.shape[0]
    if routing.prompt is not None:
        if routing.prompt.shape[0] != rows and rows % routing.prompt.shape[0] == 0:  # beams
            times = rows // routing.prompt.shape[0]
            routing.prompt = routing.prompt.repeat_interleave(times, dim=0)
        return
    attended = _attended(inputs.get("attention_mask"), tokens)
    labels = inputs.get("labels") if causal else None
    routing.prompt = prompt_before_labels(attended, labels)


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
