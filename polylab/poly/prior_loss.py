"""From the priors of a configuration to one term of the training loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils.generic import ModelOutput

from polylab.poly.classes import build, is_custom
from polylab.poly.config import PolyConfig
from polylab.poly.layers import PolyLayer
from polylab.poly.priors import PRIORS, Prior
from polylab.poly.routers import Router
from polylab.poly.routing import Routing

__all__ = ["WeightedPrior", "add_to_output", "make_priors", "prior_loss"]


@dataclass(frozen=True)
class WeightedPrior:
    """A prior, its name in the configuration, and its weight in the loss."""

    name: str
    prior: Prior
    weight: float


def make_priors(config: PolyConfig) -> list[WeightedPrior]:
    """The configuration's priors.

    Raises:
        ValueError: If a class of the user's own cannot be built.
    """
    made = []
    for name, value in config.priors.items():
        if is_custom(value):
            own = {key: item for key, item in value.items() if key != "weight"}
            prior = build(f"priors.{name}", own, kind=Prior, given={})
            made.append(WeightedPrior(name, prior, value["weight"]))
        else:
            made.append(WeightedPrior(name, PRIORS[name](), value))
    return made


def prior_loss(
    priors: Iterable[WeightedPrior], layers: Mapping[str, PolyLayer], routing: Routing
) -> Float[Tensor, ""]:
    """The weighted sum of the priors, each a mean over the routers.

    Args:
        priors: Of the active adapter.
        layers: Its layers by name.
        routing: Of the call that just ended, with its `records`.

    Raises:
        ValueError: If a prior needs gates that the router lacks, the weights of a router by input
            carry no gradient (reentrant checkpointing cuts it), or they are those of tokens in
            packed rows of a decoder beside an encoder.
    """
    seen: dict[int, _View] = {}
    for name, layer in layers.items():
        router = layer.router(layer.active_adapter)
        was_called = router.reads is None or name in (routing.records or {})
        if id(router) not in seen and was_called:
            seen[id(router)] = _view(name, layer, router, routing)
    total = torch.zeros((), device=next(iter(layers.values())).weight.device)
    if not seen:
        return total
    for item in priors:
        if item.prior.needs_gates and any(view.gates is None for view in seen.values()):
            raise ValueError(
                f"priors.{item.name} works on gates, and this adapter's router has none. Leave it "
                "out, or route by task (poly, c-poly)."
            )
        values = [item.prior(view.weights, view.gates, view.shares) for view in seen.values()]
        total = total + item.weight * torch.stack([v.to(total.device) for v in values]).mean()
    return total


def refuse_packed_priors() -> NoReturn:
    """Refuse a loss that would not be that of the padded batch.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "priors on the tokens of a decoder beside an encoder count its padding, of which packed "
        "rows have less. Set priors to {}, or leave out packed_lengths (data.packing=false)."
    )


def add_to_output(output: Any, penalty: Float[Tensor, ""]) -> None:
    """Set `output.prior_loss`, and add it to `output.loss` if there is one.

    Raises:
        ValueError: If the output is a tuple.
    """
    if not isinstance(output, ModelOutput):
        raise ValueError(
            f"an adapter with priors needs the model's output by name, not a "
            f"{type(output).__name__}: call it with return_dict=True."
        )
    if output.get("loss") is not None:
        output["loss"] = output["loss"] + penalty.to(output["loss"].device)
    output.prior_loss = penalty


@dataclass(frozen=True)
class _View:
    """What priors see of one router."""

    weights: Float[Tensor, "rows splits skills"]
    gates: Float[Tensor, "rows splits skills"] | None
    shares: Float[Tensor, " rows"]


def _view(name: str, layer: PolyLayer, router: Router, routing: Routing) -> _View:
    if router.reads is None:
        adapter = layer.active_adapter
        tasks = torch.arange(layer.n_tasks[adapter], device=layer.poly_lora_A[adapter].device)
        weights = router(tasks, sample=False)
        return _View(weights, router.gates(tasks), _equal_shares(weights))
    assert routing.records is not None
    weights = routing.records[name]
    if not weights.requires_grad:
        raise ValueError(
            "priors on a router by input need its gradient, which reentrant checkpointing cuts: "
            "use gradient_checkpointing_enable({'use_reentrant': False})."
        )
    if weights.ndim == 3:
        return _View(weights, None, _equal_shares(weights))
    if routing.packed is not None and routing.packed.decoder is not None:
        refuse_packed_priors()
    counts = torch.ones(weights.shape[:2], device=weights.device)
    # A decoder's tokens beside an encoder have no mask here: all of them count.
    if routing.prompt is not None and routing.prompt.shape == counts.shape:
        counts = routing.prompt.to(counts)
    counts = counts.flatten()
    return _View(weights.flatten(0, 1), None, counts / counts.sum().clamp(min=1))


def _equal_shares(weights: Tensor) -> Tensor:
    return torch.full((len(weights),), 1 / len(weights), device=weights.device)
