"""Around a call of the base model: its parts, its checkpointing, and checks of its masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from polylab.poly.routing import ReenteringCheckpoint, Routing, enter
from polylab.poly.structure import named_inputs, parameter_names

__all__ = [
    "RoutedModule",
    "check_prompt_mask",
    "check_segment_ids",
    "guard_checkpoints",
    "widen_padding",
]

_WIDENED = ("t5", "mt5", "umt5")  # their position biases ask for a mask in any case
_WAITING = ("cuda",)


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


def widen_padding(model: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same call of a T5 on a GPU, with `attention_mask` as `[batch, 1, 1, seq]` of booleans.

    Of a mask `[batch, seq]` transformers asks whether it hides anything, once for the encoder and
    once for the decoder, and the host waits each time until its GPU has caught up.
    """
    mask, config = inputs.get("attention_mask"), getattr(model, "config", None)
    if (
        getattr(config, "model_type", None) not in _WIDENED
        or getattr(config, "_attn_implementation", None) != "sdpa"
        or not isinstance(mask, Tensor)
        or mask.ndim != 2
        or mask.device.type not in _WAITING
    ):
        return inputs
    return {**inputs, "attention_mask": mask.bool()[:, None, None]}
