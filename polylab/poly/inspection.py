"""Read the routing of a model's active adapter, without noise and without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from polylab.poly.layers import PolyLayer
from polylab.poly.routers import Router
from polylab.poly.routing import Routing, entered
from polylab.poly.structure import batch_shape, parameter_names
from polylab.poly.weighing import mix_uniform

__all__ = ["call_weights", "task_choices", "task_gates", "task_weights"]


@torch.no_grad()
def call_weights(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    routing: Routing,
    layers: Mapping[str, PolyLayer],
) -> dict[str, Float[Tensor, "*batch splits skills"]]:
    """Weights of each layer for a call of the base `model` with `inputs` under `routing`.

    Routers of the prompt need the model run; the others only the ids.
    """
    records = routing.records = {}
    with entered(routing):
        if routing.reads is not None:
            _run(model, dict(inputs))
        else:
            for layer in layers.values():
                layer.mixing_weights(routing)
    found = {name: records[name] for name in layers if name in records}
    batch = batch_shape(inputs)[0]
    if routing.task_ids is None and batch is not None:  # one row for all, where none reads ids
        return {name: w.expand(batch, *w.shape[1:]) for name, w in found.items()}
    return found


@torch.no_grad()
def task_weights(
    layers: Mapping[str, PolyLayer], adapter_name: str, *, uniform_share: float = 0.0
) -> dict[str, Float[Tensor, "tasks splits skills"]]:
    """Weights of every task.

    Raises:
        ValueError: If the adapter is routed by the input.
    """
    made: dict[int, Tensor] = {}  # by router: layers may share one
    for ids, routers in _router_groups(layers, adapter_name):
        if routers[0].reads is not None:
            raise ValueError(
                "this adapter is routed by the input: a task has no weights of its own. Use "
                "mixing_weights with examples of the task."
            )
        plain = type(routers[0]).evaluate(routers, ids, sample=False)
        mixed = mix_uniform(plain, routers[0], ids=ids, share=uniform_share)
        made.update(zip(map(id, routers), mixed.unbind(), strict=True))
    return {name: made[id(layer.router(adapter_name))] for name, layer in layers.items()}


@torch.no_grad()
def task_gates(
    layers: Mapping[str, PolyLayer], adapter_name: str
) -> dict[str, Float[Tensor, "tasks splits skills"]]:
    """`sigmoid(Z)` of every task; empty where the router has no gates."""
    made: dict[int, Tensor] = {}
    for ids, routers in _router_groups(layers, adapter_name):
        gates = type(routers[0]).all_gates(routers, ids)
        if gates is not None:
            made.update(zip(map(id, routers), gates.unbind(), strict=True))
    routers = {name: id(layer.router(adapter_name)) for name, layer in layers.items()}
    return {name: made[router] for name, router in routers.items() if router in made}


@torch.no_grad()
def task_choices(
    layers: Mapping[str, PolyLayer], adapter_name: str
) -> dict[str, Int64[Tensor, "tasks usable"]]:
    """The skills that each task may use, by layer; without layers where it may use all.

    Without those too whose tasks differ in the number of skills (routers of the user's own may).
    """
    choices: dict[str, Tensor] = {}
    for name, layer in layers.items():
        router = layer.router(adapter_name)
        if not router.uniform_needs_task_ids:
            continue
        ids = _all_tasks(layer, adapter_name)
        like = torch.zeros(len(ids), router.n_splits, router.n_skills, device=ids.device)
        is_usable = router.uniform(ids, like)[:, 0] > 0
        if len(is_usable.sum(-1).unique()) == 1:
            choices[name] = is_usable.nonzero()[:, 1].unflatten(0, (len(ids), -1))
    return choices


def _router_groups(
    layers: Mapping[str, PolyLayer], adapter_name: str
) -> Iterator[tuple[Tensor, list[Router]]]:
    """Routers of one kind, size and device, each once, and the ids of all their tasks."""
    groups: dict[object, tuple[PolyLayer, dict[int, Router]]] = {}
    for layer in layers.values():
        router, device = layer.router(adapter_name), layer.poly_lora_A[adapter_name].device
        size = layer.n_tasks[adapter_name], router.n_splits, router.n_skills
        kind = type(router), size, device
        groups.setdefault(kind, (layer, {}))[1].setdefault(id(router), router)
    for layer, routers in groups.values():
        yield _all_tasks(layer, adapter_name), [*routers.values()]


def _all_tasks(layer: PolyLayer, adapter_name: str) -> Tensor:
    bank = layer.poly_lora_A[adapter_name]
    return torch.arange(layer.n_tasks[adapter_name], device=bank.device)


def _run(model: nn.Module, inputs: dict[str, Any]) -> None:
    """One forward in evaluation mode; each module's own mode is put back."""
    encoder_only = inputs.get("decoder_input_ids") is None and inputs.get("labels") is None
    if encoder_only and "decoder_input_ids" in parameter_names(model):
        # The decoder is routed by the encoder's output: any one token will do.
        start = torch.zeros(batch_shape(inputs)[0] or 1, 1, dtype=torch.int64)
        inputs["decoder_input_ids"] = start.to(next(model.parameters()).device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        model(**inputs)
    finally:
        for module in training:
            module.training = True
