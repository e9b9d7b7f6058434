"""`Routing`, the one carrier of what the layers of a forward must know.

It is thread-local: two threads may run one model with different task ids. A forward enters it and
leaves it in `finally`, so that an exception leaves nothing behind. Backward threads inherit
nothing, so gradient checkpointing re-enters, in its recompute, what it captured in the forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from polylab.poly.fused import Mixed
from polylab.poly.interventions import Intervention
from polylab.poly.noise import NoiseKey
from polylab.poly.packing import Packed

__all__ = [
    "Override",
    "ReenteringCheckpoint",
    "Routing",
    "TaskIds",
    "check_task_ids",
    "current",
    "enter",
    "entered",
    "overridden",
    "override_of",
]


TaskIds = Int64[Tensor, "batch *seq"]


@dataclass
class Routing:
    """The state of one call of the model."""

    task_ids: TaskIds | None = None
    reads: str | None = None
    """What the routers read, if they read inputs (`Router.reads`)."""
    prompt: Bool[Tensor, "batch seq"] | None = None
    """Tokens an input router may read."""
    prompt_tokens: int | None = None
    """Length of the prompt that `generate` continues: what its calls see beyond is no prompt."""
    segments: Int64[Tensor, "batch seq"] | None = None
    """Which example of a packed row each token belongs to."""
    packed: Packed | None = None
    """Where the examples that `task_ids` are of lie in packed rows."""
    encoder: Float[Tensor, "batch *seq d_model"] | None = None
    """The encoder's output, pooled over the prompt: what decoder layers are routed by."""
    weights: Float[Tensor, "routers *batch splits skills"] | None = None
    """Of all routers, where they are evaluated at once; else each layer asks its own."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Of each layer: the place of its router in `weights`."""
    weigh_shared: Callable[[Routing, Tensor], None] | None = None
    """Fills `weights` from the pooled embeddings, once these are known."""
    uniform_share: Float[Tensor, ""] | None = None
    """How much of a uniform routing is mixed in; None for nothing."""
    intervention: Intervention | None = None
    noise: NoiseKey | None = None
    noiseless: bool = False
    """No noise in training mode either."""
    disabled: bool = False
    """Layers compute the base model."""
    factors: dict[str, tuple[Mixed, int]] | None = None
    """Mixed skills by layer, and its place among them: of all layers from the start, or kept by
    each for what follows."""
    merges: bool = False
    """All rows are routed alike: skills are merged into copies of the weights."""
    records: dict[str, Tensor] | None = None
    """The weights of each layer, where someone asked for them."""
    is_local: bool = False
    """Layers are known by the names that they have in their block: see `polylab.poly.blocks`."""
    by_name: Mapping[str, Tensor | None] = field(default_factory=dict)
    """Weights by layer, in place of `weights`."""
    _unbound: tuple[Tensor, ...] | None = None

    def weights_of(self, layer_name: str) -> Float[Tensor, "*batch splits skills"] | None:
        """Those of the layer's router, if they are known."""
        if self.is_local:
            return self.by_name.get(layer_name)
        if self.weights is None:
            return None
        if self._unbound is None:  # one operation for all layers, in the backward too
            self._unbound = self.weights.unbind()
        return self._unbound[self.rows[layer_name]]


_local = threading.local()


def current() -> Routing | None:
    """The routing of the running forward in this thread."""
    return getattr(_local, "routing", None)


def enter(routing: Routing | None) -> Routing | None:
    """Make `routing` current and return the previous one, to be entered again in `finally`."""
    previous = current()
    _local.routing = routing
    return previous


@contextmanager
def entered(routing: Routing | None) -> Iterator[None]:
    """`enter` as a context manager."""
    previous = enter(routing)
    try:
        yield
    finally:
        enter(previous)


@dataclass(frozen=True)
class Override:
    """How every call of one model is changed in this thread, until its context is left."""

    disabled: bool = False
    intervention: Intervention | None = None
    adapter: str | None = None
    """The adapter that the intervention was made for."""


def override_of(model: object) -> Override:
    """The innermost override of `model` in this thread."""
    stack: tuple[tuple[int, Override], ...] = getattr(_local, "overrides", ())
    return next((entry for key, entry in reversed(stack) if key == id(model)), Override())


@contextmanager
def overridden(model: object, override: Override) -> Iterator[None]:
    """Put `override` on `model` for the calls inside."""
    before = getattr(_local, "overrides", ())
    _local.overrides = (*before, (id(model), override))
    try:
        yield
    finally:
        _local.overrides = before


class ReenteringCheckpoint:
    """A checkpoint function whose recompute runs under the routing of its forward.

    Tensors of the routing that carry gradients travel as arguments of the checkpointed function:
    reentrant checkpointing differentiates arguments, and would walk a captured graph once per
    segment.
    """

    def __init__(self, checkpoint: Callable[..., Any]) -> None:
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`checkpoint(function, *args, **kwargs)`."""
        routing = current()
        if routing is None:
            return self.checkpoint(function, *args, **kwargs)

        def run(encoder: Tensor | None, weights: Tensor | None, *args: Any, **kwargs: Any) -> Any:
            previous = enter(replace(routing, encoder=encoder, weights=weights, _unbound=None))
            try:
                return function(*args, **kwargs)
            finally:
                enter(previous)

        return self.checkpoint(run, routing.encoder, routing.weights, *args, **kwargs)


def check_task_ids(
    task_ids: object, n_tasks: int, *, batch: int | None, seq: int | None
) -> TaskIds:
    """The ids as int64, if they are an integer tensor `[batch]` or `[batch, seq]` in range.

    On an accelerator, or while compiling, the range is asserted without waiting for the device.

    Args:
        task_ids: What the caller gave.
        n_tasks: Valid ids are 0 to `n_tasks - 1`.
        batch: Rows of the model's input; None where unknown.
        seq: Tokens per row where packed ids are possible; None where they are not.

    Raises:
        ValueError: Naming task_ids, if they are anything else.
    """
    want = f"an int64 tensor [{'batch' if batch is None else batch}] of ids 0 to {n_tasks - 1}"
    if task_ids is None:
        raise ValueError(f"task_ids=None: this adapter is routed by task. Give {want}.")
    if not isinstance(task_ids, Tensor):
        raise ValueError(f"task_ids={task_ids!r} is a {type(task_ids).__name__}. Give {want}.")
    if task_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"task_ids has dtype {task_ids.dtype}. Give {want}.")
    _check_shape(task_ids.shape, batch, seq=seq, want=want)
    if task_ids.numel() == 0:
        raise ValueError(f"task_ids is empty: shape {[*task_ids.shape]}. Give {want}.")
    _check_range(task_ids, n_tasks, want=want)
    return task_ids.long()


def _check_shape(shape: torch.Size, batch: int | None, *, seq: int | None, want: str) -> None:
    per_row = len(shape) == 1 and batch in (None, shape[0])
    per_token = len(shape) == 2 and seq is not None and (batch, seq) == tuple(shape)
    if per_row or per_token:
        return
    packed = f", or [{batch}, {seq}] for packed rows."
    if seq is None:
        packed = "; ids per token need one forward of a decoder-only model, or an encoder."
    if len(shape) == 1:
        raise ValueError(
            f"task_ids has length {shape[0]}, but the batch has {batch} rows. Give {want}{packed}"
        )
    raise ValueError(f"task_ids has shape {[*shape]}. Give {want}{packed}")


def _check_range(task_ids: Tensor, n_tasks: int, *, want: str) -> None:
    if torch.compiler.is_compiling() or task_ids.device.type not in ("cpu", "mps"):
        inside = ((task_ids >= 0) & (task_ids < n_tasks)).all()
        torch.ops.aten._assert_async.msg(
            inside, f"task_ids out of range: ids run from 0 to {n_tasks - 1}."
        )
        return
    low, high = (int(bound) for bound in task_ids.aminmax())
    if low < 0 or high >= n_tasks:
        bad = low if low < 0 else high
        raise ValueError(f"task_ids contains {bad}, but n_tasks={n_tasks}. Give {want}.")
