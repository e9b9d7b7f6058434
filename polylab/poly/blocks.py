"""Compile the blocks of a base model: one graph for all blocks that are alike.

A whole model takes minutes to compile, most of them for the same block again and again. Routers
are evaluated, and skills mixed, outside; what a block needs of them comes in as tensors under the
names that its layers have within it, so that nothing tells two blocks apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
import torch.fx.experimental._config as shape_config
from torch import Tensor, nn

from polylab.poly.fused import Group, Mixed
from polylab.poly.layers import PolyLayer
from polylab.poly.routing import Routing, current, enter
from polylab.poly.structure import blocks_of

__all__ = ["compile_blocks"]

_Groups = Sequence[tuple[tuple[str, ...], float, Tensor, tuple[Tensor, ...]]]


def compile_blocks(model: nn.Module, **options: Any) -> int:
    """Compile each transformer block of `model` for its training steps; returns how many.

    Calls without gradients, and those whose routing is intervened on, stay eager. Every block is
    one graph: what would break it raises an error of the compiler. Train with `use_cache=False`: a
    cache differs from block to block.

    Args:
        model: With layers by polylab or without.
        **options: Of `torch.compile`.

    Raises:
        ValueError: If the model has no blocks that are known as such, or one is compiled already or
            checkpointed.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks to compile: none of its modules is a "
            "transformers.modeling_layers.GradientCheckpointingLayer. Compile the whole model with "
            "torch.compile."
        )
    # Factors are views of one tensor. With batches of several lengths their offsets would be sizes
    # to the compiler, which takes those that are equal by chance to be equal always.
    shape_config.use_duck_shape = False
    compiled: dict[object, Callable[..., Any]] = {}
    for block in blocks:
        if isinstance(block.__dict__.get("forward"), _Block):
            raise ValueError(f"a {type(block).__name__} of the model is compiled already.")
        _check_not_checkpointed(block)
        layers = {n: layer for n, layer in block.named_modules() if isinstance(layer, PolyLayer)}
        kind = type(block), tuple(layers)
        if kind not in compiled:
            # code of its own: the compiler limits the graphs of one code object
            own = FunctionType(_run.__code__.replace(), globals(), _run.__name__)
            compiled[kind] = torch.compile(own, fullgraph=True, **options)
        block.forward = _Block(block, layers, compiled[kind])
    return len(blocks)


class _Block:
    """The forward of one block."""

    def __init__(
        self, block: nn.Module, layers: Mapping[str, PolyLayer], run: Callable[..., Any]
    ) -> None:
        self._block, self._run = block, run
        self._names = {layer.name: name for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.block_name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output."""
        block, routing = self._block, current()
        is_plain = routing is None or routing.intervention is None
        if not (block.training and torch.is_grad_enabled() and is_plain):
            return type(block).forward(block, *args, **kwargs)
        _check_not_checkpointed(block)
        if routing is not None and routing.packed is not None:
            raise ValueError(
                "compiled blocks know no packed rows, whose lengths differ from call to call. "
                "Leave out packed_lengths, or do not compile."
            )
        if routing is None or routing.disabled or not self._names:
            return self._run(block, routing, (), args, kwargs)
        if routing.factors is None:
            return self._run(block, self._own(routing), (), args, kwargs)
        return self._run(block, None, self._groups(routing), args, kwargs)

    def _groups(self, routing: Routing) -> _Groups:
        """What was mixed for the block's layers: their names in it, scale, A* and B*s."""
        assert routing.factors is not None
        found: dict[int, tuple[Mixed, list[str]]] = {}
        for name, own in self._names.items():
            if name in routing.factors:
                mixed, _ = routing.factors[name]
                found.setdefault(id(mixed), (mixed, []))[1].append(own)
        return [
            (tuple(names), mixed.group.scale, mixed.a, tuple(mixed.bs))
            for mixed, names in found.values()
        ]

    def _own(self, routing: Routing) -> Routing:
        """The routing of a call whose layers mix by themselves, without the layers' full names."""
        if routing.records is not None:
            raise ValueError(
                "compiled blocks cannot note the weights of routers that read the input, as priors "
                "need. Set priors to {}, or do not compile."
            )
        if routing.weights is None and routing.reads is None:
            raise ValueError(
                "compiled blocks take one task id per row, and got one per token. Give task_ids "
                "[batch], or do not compile."
            )
        weights = {own: routing.weights_of(name) for name, own in self._names.items()}
        return replace(
            routing, is_local=True, by_name=weights, weights=None, rows={}, weigh_shared=None
        )


def _check_not_checkpointed(block: nn.Module) -> None:
    if getattr(block, "gradient_checkpointing", False):
        raise ValueError(
            "compiled blocks cannot be checkpointed: their forward would run twice in one graph. "
            "Leave compile=False, or gradient_checkpointing=False."
        )


def _run(
    block: nn.Module,
    routing: Routing | None,
    groups: _Groups,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if groups:
        factors: dict[str, tuple[Mixed, int]] = {}
        for names, scale, a, bs in groups:
            layers: list[Any] = [block.get_submodule(name) for name in names]
            mixed = Mixed(Group([layer.base_layer for layer in layers], scale), a, bs)
            for place, name in enumerate(names):
                factors[name] = mixed, place
        routing = Routing(factors=factors, is_local=True)
    previous = enter(routing)
    try:
        return type(block).forward(block, *args, **kwargs)
    finally:
        enter(previous)
