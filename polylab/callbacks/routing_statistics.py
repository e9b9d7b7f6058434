"""Scalars of the routing, and a warning where it never left its start."""

from __future__ import annotations

import logging
from typing import TypeVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from polylab.callbacks.allocations import Allocations, find_poly_model
from polylab.callbacks.base import AllocationCallback, Moment, Sight, log_metrics
from polylab.poly.statistics import (
    allocation_change,
    density,
    discreteness,
    effective_skills,
    usage_entropy,
    z_entropy_bits,
)

__all__ = ["RoutingStatistics"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class RoutingStatistics(AllocationCallback):
    """Logs `routing/*` at the start, after every validation and at the end of the training.

    `entropy`, `entropy/LAYER`, `usage_entropy`, `effective_skills`, `change` (share of mixing
    weight that moved since the start); with sigmoid gates also `discreteness`, `z_entropy_bits`
    (one minus it) and `density`; for input routers `mutual_information` (nats, between example and
    skill). Definitions: `polylab.poly.statistics`. Usage is counted on the gates, without gates on
    the weights.

    At the end of the training one line warns if a trainable routing still sits at its start.

    Args:
        max_layers: At most so many `entropy/LAYER` keys, evenly spaced over the model's layers.
        still: The warning's bound on `routing/change`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, *, max_layers: int = 64, still: float = 0.01) -> None:
        if max_layers < 0:
            raise ValueError(f"max_layers={max_layers} must be 0 or more.")
        if not 0 <= still <= 1:
            raise ValueError(f"still={still} must lie in 0 to 1, a share of mixing weight.")
        self._max_layers = max_layers
        self._still = still
        self._start: tuple[str, Allocations] | None = None
        self._logged_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._logged_step = None, None
        super().on_train_start(trainer, pl_module)

    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:
        self._start = self._start or (sight.words, sight.allocations)
        change = self._change(sight.allocations)
        if sight.moment is not Moment.END or self._logged_step != trainer.global_step:
            metrics = self._metrics(sight.allocations)
            if change is not None:
                metrics["routing/change"] = change
            log_metrics(trainer, pl_module, metrics, moment=sight.moment)
            self._logged_step = trainer.global_step
        if sight.moment is Moment.END and change is not None and change < self._still:
            self._warn(pl_module, sight, change)

    def _metrics(self, seen: Allocations) -> dict[str, float]:
        layers = seen.layer_entropy()
        metrics = {
            "routing/entropy": seen.entropy(),
            "routing/usage_entropy": usage_entropy(seen.used),
            "routing/effective_skills": effective_skills(seen.used),
        }
        if seen.gates:
            metrics["routing/discreteness"] = discreteness(seen.gates)
            metrics["routing/z_entropy_bits"] = z_entropy_bits(seen.gates)
            metrics["routing/density"] = density(seen.gates)
        if seen.examples:
            metrics["routing/mutual_information"] = seen.mutual_information()
        for name in evenly_spaced(list(layers), self._max_layers):
            metrics[f"routing/entropy/{name}"] = layers[name]
        return metrics

    def _change(self, now: Allocations) -> float | None:
        """None where there is nothing to compare: one skill, or other tasks than at the start."""
        assert self._start is not None
        before = self._start[1]
        if now.n_skills == 1 or now.task_ids != before.task_ids:
            return None
        return allocation_change(now.weights, before.weights)

    @rank_zero_only
    def _warn(self, pl_module: LightningModule, sight: Sight, change: float) -> None:
        assert self._start is not None
        model = find_poly_model(pl_module)
        assert model is not None
        routers = [p for name, p in model.named_parameters() if "poly_router" in name]
        if self._start[0] == sight.words or not any(p.requires_grad for p in routers):
            return
        log.warning(
            "Routing has hardly moved: %s the allocations differ from those %s by %.2g of their "
            "weight (entropy %.3f, 1 = uniform). The skills act as one average adapter; train "
            "longer, or raise the learning rate of the router's parameter group.",
            sight.words,
            self._start[0],
            change,
            sight.allocations.entropy(),
        )


def evenly_spaced(items: list[T], most: int) -> list[T]:
    """At most `most` items, first and last among them."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]
