"""Scalars of the routing, and a warning where it never left its start."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from polylab.callbacks.allocations import Allocations, find_poly_model
from polylab.callbacks.base import AllocationCallback, Moment, Sight, log_metrics
from polylab.callbacks.spacing import evenly_spaced
from polylab.poly.statistics import allocation_change, overall

__all__ = ["RoutingStatistics"]

log = logging.getLogger(__name__)

_KEPT_CELLS = 2_000_000  # of the allocations at the start, which every checkpoint holds


class RoutingStatistics(AllocationCallback):
    """Logs `routing/*` at the start, after every validation and at the end of the training.

    `entropy`, `entropy/LAYER`, `usage_entropy`, `effective_skills`, `task_information` (nats,
    between task and skill), `change` (share of mixing weight that moved since the start of the
    run, also of one that was continued; of an input router since its first validation); with
    sigmoid gates also `discreteness`, `z_entropy_bits` (one minus it) and `density`; for input
    routers `mutual_information` (nats, between example and skill) and `max_load` (the most loaded
    skill's share of the weight x S, mean over heads and layers: 1 = even). Definitions:
    `polylab.poly.statistics`. Usage is counted on the gates, without gates on the weights; of
    C-Poly's private skills as each task's own (`Allocations.open_weights`).

    One line warns if a trainable routing still sits at its start `warn_after` steps into the
    training, and another one at the end.

    Args:
        max_layers: At most so many `entropy/LAYER` keys, evenly spaced over the model's layers.
            Only logged: they are not among `trainer.callback_metrics`.
        still: The warning's bound on `routing/change`; for an input router on the share of
            `log S` that `routing/mutual_information` is.
        warn_after: Steps.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, *, max_layers: int = 64, still: float = 0.01, warn_after: int = 1000
    ) -> None:
        if max_layers < 0:
            raise ValueError(f"max_layers={max_layers} must be 0 or more.")
        if not 0 <= still <= 1:
            raise ValueError(f"still={still} must lie in 0 to 1, a share of mixing weight.")
        if warn_after < 1:
            raise ValueError(f"warn_after={warn_after} must be at least 1, a number of steps.")
        self._max_layers, self._still, self._warn_after = max_layers, still, warn_after
        self._start: _Start | None = None
        self._logged_step: int | None = None
        self._has_warned = self._has_said = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._start = None
        self._logged_step, self._has_warned = None, False
        super().on_train_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The allocations at the start."""
        return {} if self._start is None else vars(self._start)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = _Start(**state_dict) if state_dict else None

    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:
        seen, step = sight.allocations, trainer.global_step
        if self._start is None and sight.moment is not Moment.CHECKPOINT:
            self._start = _Start.of(seen, step=step, words=sight.words)
        if sight.moment is not Moment.END or self._logged_step != step:
            metrics, layers = self._metrics(seen), self._of_layers(seen)
            log_metrics(trainer, pl_module, metrics, moment=sight.moment, of_parts=layers)
            self._logged_step = step
        is_due = step >= self._warn_after and not self._has_warned
        if sight.moment is Moment.END or (sight.moment is Moment.VALIDATION and is_due):
            self._has_warned = step >= self._warn_after
            self._warn(pl_module, sight)

    def _metrics(self, seen: Allocations) -> dict[str, float]:
        metrics = {f"routing/{name}": overall(heads) for name, heads in seen.heads.items()}
        if seen.gates:
            metrics["routing/z_entropy_bits"] = 1 - metrics["routing/discreteness"]
        metrics["routing/task_information"] = seen.task_information()
        if seen.examples:
            metrics["routing/mutual_information"] = seen.mutual_information()
            metrics["routing/max_load"] = seen.examples.max_load
        change = self._change(seen)
        if change is not None:
            metrics["routing/change"] = change
        return metrics

    def _of_layers(self, seen: Allocations) -> dict[str, float]:
        layers = seen.layer_entropy()
        kept = evenly_spaced([*layers], self._max_layers)
        if len(kept) < len(layers) and not self._has_said:
            self._has_said = True
            log.info("routing/entropy/LAYER is logged for %d of %d layers", len(kept), len(layers))
        return {f"routing/entropy/{name}": layers[name] for name in kept}

    def _change(self, now: Allocations) -> float | None:
        """None where there is nothing to compare: one skill, or other tasks than at the start."""
        start = self._start
        if start is None or now.n_skills == 1 or now.task_ids != start.task_ids:
            return None
        return allocation_change({name: now.weights[name] for name in start.weights}, start.weights)

    @rank_zero_only
    def _warn(self, pl_module: LightningModule, sight: Sight) -> None:
        if self._start is None or self._start.words == sight.words or not _may_move(pl_module):
            return
        seen, change = sight.allocations, self._change(sight.allocations)
        if seen.examples:
            share = seen.mutual_information() / math.log(max(seen.n_skills, 2))
            if seen.n_skills > 1 and share < self._still:
                log.warning(
                    "Routing tells no inputs apart: %s all get the same skills (mutual information "
                    "of example and skill %.2g of the possible, entropy %.3f, 1 = uniform). %s",
                    sight.words, share, seen.entropy(), _advice(seen.entropy()),
                )  # fmt: skip
        elif change is not None and change < self._still and self._start.step == 0:
            log.warning(
                "Routing has hardly moved: %s the allocations differ from those %s by %.2g of "
                "their weight (entropy %.3f, 1 = uniform). %s",
                sight.words, self._start.words, change, seen.entropy(), _advice(seen.entropy()),
            )  # fmt: skip


@dataclass
class _Start:
    """What a run's later allocations are compared with, of as many layers as may be kept."""

    step: int
    words: str
    task_ids: list[int]
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, seen: Allocations, *, step: int, words: str) -> _Start:
        cells = max(w.numel() for w in seen.weights.values())
        layers = evenly_spaced([*seen.weights], max(1, _KEPT_CELLS // cells))
        # copies: a view would bring all that it is a part of into every checkpoint
        kept = {name: seen.weights[name].clone() for name in layers}
        return cls(step, words, seen.task_ids, kept)


def _may_move(module: LightningModule) -> bool:
    """Whether routers are trained, and not annealed to uniform on purpose."""
    model = find_poly_model(module)
    assert model is not None
    routers = [p for name, p in model.named_parameters() if "poly_router" in name]
    annealed = model.config_of(model.active_adapter).uniform_share > 0
    return any(p.requires_grad for p in routers) and not annealed


def _advice(entropy: float) -> str:
    if entropy > 0.9:
        acts = "The skills act as one average adapter"
    else:
        acts = "What tasks share is what the routing started with"
    return f"{acts}; train longer, or raise the learning rate of the router's parameter group."
