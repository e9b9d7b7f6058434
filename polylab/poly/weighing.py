"""Evaluate routers: from the `Routing` of a call to the weights that layers mix by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from polylab.poly.prompts import pool_prompt
from polylab.poly.routers import Router
from polylab.poly.routing import Routing

if TYPE_CHECKING:
    from polylab.poly.layers import PolyLayer

__all__ = ["layer_weights", "mix_uniform", "weigh_shared"]

_Weights = Float[Tensor, "*batch splits skills"]


def layer_weights(layer: PolyLayer, x: Tensor | None, routing: Routing) -> _Weights:
    """The weights of one layer's active adapter in this call, as recorded in it.

    Args:
        layer: Whose router is asked, unless its group's weights are known already.
        x: The layer's input; None where the router reads none.
        routing: Of the call.
    """
    name = layer.active_adapter
    router, group = layer.router(name), layer.groups[name]
    ids = _ids(router, routing, layer.poly_lora_A[name].device)
    if group is not None and group in routing.weights:
        weights = routing.weights[group].to(layer.poly_lora_A[name].device)
    else:
        hidden = None if router.reads is None else _hidden(layer, router, x, routing)
        ids = _of_rows(ids, hidden)
        weights = _evaluate(router, routing, ids=ids, hidden=hidden, index=layer.index)
    change = routing.intervention
    if change and change.reweigh:
        weights = change.reweigh(layer.name, router, ids, weights)
    if routing.records is not None:
        routing.records[layer.name] = weights
    return weights


def weigh_shared(
    layers: Iterable[PolyLayer], routing: Routing, hidden: Float[Tensor, "batch *seq d"] | None
) -> None:
    """Fill `routing.weights`: each router that several layers share is evaluated once.

    Args:
        layers: The layers of the active adapter.
        routing: Of the call.
        hidden: The pooled embeddings, where the routers read them.
    """
    for layer in layers:
        name = layer.active_adapter
        group = layer.groups[name]
        if group is None or group in routing.weights:
            continue
        router = layer.router(name)
        ids = _of_rows(_ids(router, routing, layer.poly_lora_A[name].device), hidden)
        routing.weights[group] = _evaluate(
            router, routing, ids=ids, hidden=hidden, index=layer.index
        )


def mix_uniform(
    weights: _Weights, router: Router, *, ids: Tensor | None, share: Tensor | float
) -> _Weights:
    """`(1 - share) w + share * uniform`: how a trained router is annealed to uniform.

    Over training share rises as `1 - cos(pi/2 * done)` (MHR, https://arxiv.org/abs/2211.03831, the
    schedule of its released code).
    """
    return weights + share * (router.uniform(ids, weights) - weights)


def _evaluate(
    router: Router, routing: Routing, *, ids: Tensor | None, hidden: Tensor | None, index: int
) -> _Weights:
    samples = router.draws_noise and router.training
    samples = samples and routing.intervention is None and not routing.noiseless
    uniform = _keyed_noise(router, ids, routing, index) if samples and routing.noise else None
    weights = router(ids, hidden, uniform=uniform, sample=samples)
    if routing.uniform_share is None:
        return weights
    return mix_uniform(weights, router, ids=ids, share=routing.uniform_share.to(weights.device))


def _ids(router: Router, routing: Routing, device: torch.device) -> Tensor | None:
    if routing.task_ids is None or not router.needs_task_ids:
        return None
    ids = routing.task_ids.to(device)
    change = routing.intervention
    return change.remap(ids) if change and change.remap else ids


def _of_rows(ids: Tensor | None, hidden: Tensor | None) -> Tensor | None:
    """One id for each row of what the router reads: with beams there are more rows than ids."""
    if ids is None or hidden is None or len(hidden) == len(ids):
        return ids
    return ids.repeat_interleave(len(hidden) // len(ids), dim=0)


def _hidden(
    layer: PolyLayer, router: Router, x: Tensor | None, routing: Routing
) -> Float[Tensor, "batch *seq d"]:
    if router.reads == "tokens":
        assert x is not None
        return x
    if layer.d_router[layer.active_adapter] is None:
        assert x is not None
        return pool_prompt(x, routing.prompt, segments=routing.segments, where=layer.name)
    if routing.encoder is None:
        raise ValueError(
            f"layer {layer.name!r} is routed by the encoder's output, and none was computed. "
            "Call the PolyModel with input_ids or encoder_outputs."
        )
    return routing.encoder.to(layer.poly_lora_A[layer.active_adapter].device)


def _keyed_noise(router: Router, ids: Tensor | None, routing: Routing, index: int) -> Tensor:
    assert routing.noise is not None
    assert ids is not None
    n_splits, n_gates = router.n_splits, router.n_gates
    if getattr(router, "noise_per_task", False):
        return routing.noise.uniform_of_tasks(index, n_splits, n_gates=n_gates, task_ids=ids)
    if ids.ndim == 2:
        return routing.noise.uniform_per_task(index, n_splits, n_gates=n_gates, task_ids=ids)
    return routing.noise.uniform(index, n_splits, n_gates=n_gates, device=ids.device)
