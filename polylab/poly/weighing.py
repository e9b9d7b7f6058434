"""Evaluate routers: from the `Routing` of a call to the weights that layers mix by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from polylab.poly.prompts import pool_prompt
from polylab.poly.routers import Router
from polylab.poly.routing import Routing

if TYPE_CHECKING:
    from polylab.poly.layers import PolyLayer

__all__ = ["evaluate", "layer_weights", "mix_uniform"]

_Weights = Float[Tensor, "*batch splits skills"]


def layer_weights(layer: PolyLayer, x: Tensor | None, routing: Routing) -> _Weights:
    """The weights of one layer's active adapter in this call, as recorded in it.

    Args:
        layer: Whose router is asked, unless its weights are known already.
        x: The layer's input; None where the router reads none.
        routing: Of the call.
    """
    name = layer.active_adapter
    router, device = layer.router(name), layer.poly_lora_A[name].device
    weights, hidden = routing.weights_of(layer.block_name if routing.is_local else layer.name), None
    if weights is None:
        hidden = None if router.reads is None else _hidden(layer, router, x, routing)
        (weights,) = evaluate(
            [router], routing, hidden=hidden, indexes=[layer.index], device=device
        )
    weights, change = weights.to(device), routing.intervention
    if change and change.reweigh:
        ids = _of_rows(_ids(router, routing, device), hidden)
        weights = change.reweigh(layer.name, router, ids, weights)
    if routing.records is not None:
        routing.records[layer.name] = weights
    return weights


def evaluate(
    routers: Sequence[Router],
    routing: Routing,
    *,
    hidden: Float[Tensor, "batch *seq d"] | None,
    indexes: Sequence[int],
    device: torch.device,
) -> Float[Tensor, "routers *batch splits skills"]:
    """The weights of routers of one adapter in this call, before interventions on them.

    Args:
        routers: Of one kind and size.
        routing: Of the call.
        hidden: What they read, if they read.
        indexes: Of each router: the position of the first layer that it serves.
        device: Of the result.
    """
    router = routers[0]
    ids = _of_rows(_ids(router, routing, device), hidden)
    samples = router.draws_noise and router.training
    samples = samples and routing.intervention is None and not routing.noiseless
    uniform = _keyed_noise(router, ids, routing, indexes) if samples and routing.noise else None
    weights = type(router).evaluate(routers, ids, hidden, uniform=uniform, sample=samples)
    if routing.uniform_share is None:
        return weights
    return mix_uniform(weights, router, ids=ids, share=routing.uniform_share.to(weights.device))


def mix_uniform(
    weights: _Weights, router: Router, *, ids: Tensor | None, share: Tensor | float
) -> _Weights:
    """`(1 - share) w + share * uniform`: how a trained router is annealed to uniform.

    Over training share rises as `1 - cos(pi/2 * done)` (MHR, https://arxiv.org/abs/2211.03831, the
    schedule of its released code).
    """
    return weights + share * (router.uniform(ids, weights) - weights)


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
        own = None if routing.packed is None else routing.packed.of(x)
        return pool_prompt(
            x, routing.prompt, segments=routing.segments, packing=own, where=layer.name
        )
    if routing.encoder is None:
        raise ValueError(
            f"layer {layer.name!r} is routed by the encoder's output, and none was computed. "
            "Call the PolyModel with input_ids or encoder_outputs."
        )
    return routing.encoder.to(layer.poly_lora_A[layer.active_adapter].device)


def _keyed_noise(
    router: Router, ids: Tensor | None, routing: Routing, layers: Sequence[int]
) -> Tensor:
    assert routing.noise is not None
    assert ids is not None
    n_splits, n_gates = router.n_splits, router.n_gates
    if getattr(router, "noise_per_task", False):
        return routing.noise.uniform_of_tasks(layers, n_splits, n_gates=n_gates, task_ids=ids)
    if ids.ndim == 2:
        return routing.noise.uniform_per_task(layers, n_splits, n_gates=n_gates, task_ids=ids)
    return routing.noise.uniform(layers, n_splits, n_gates=n_gates, device=ids.device)
