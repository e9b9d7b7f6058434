"""Dead and duplicate skills: as scalars, and in words at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from polylab.callbacks.allocations import Allocations, find_poly_model
from polylab.callbacks.base import AllocationCallback, Moment, Sight, log_metrics
from polylab.poly.alike import alike, by_shape
from polylab.poly.model import PolyModel
from polylab.poly.redundancy import (
    DEAD_BELOW,
    DUPLICATE_ABOVE,
    dead_skills,
    duplicate_skills,
)
from polylab.poly.sharding import whole
from polylab.poly.statistics import mean_over_heads

__all__ = ["SkillRedundancy"]

log = logging.getLogger(__name__)

# rows of a Gram matrix: above it comparing all skills with all takes too much memory
_MOST_ROWS = 4096
_MOST_CELLS = 2**24  # of skills that are copied to be compared at once
_NAMED = 3  # layers in the warning


class SkillRedundancy(AllocationCallback):
    """Logs `routing/dead_skills` and `routing/duplicate_skills`: mean number per layer and head.

    At the start, after every validation and at the end; `polylab.poly.redundancy` says what they
    are. Of C-Poly's private skills each task's own count as one skill that may be dead, and none as
    a duplicate: what two tasks have learnt alike they could share, but neither could do without.
    For the same reason `private` skills have no duplicates.

    At the end one warning says how many there are, in which layers, and what to do: where some
    layer has one or more per head.

    Args:
        dead_below: The largest weight of a dead skill, as a share of an even one.
        duplicate_above: The least cosine of duplicates.

    Raises:
        ValueError: If an argument is not from 0 to 1.
    """

    def __init__(
        self, *, dead_below: float = DEAD_BELOW, duplicate_above: float = DUPLICATE_ABOVE
    ) -> None:
        for name, value in (("dead_below", dead_below), ("duplicate_above", duplicate_above)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in 0 to 1.")
        self._dead_below, self._duplicate_above = dead_below, duplicate_above
        self._logged_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged_step = None
        super().on_train_start(trainer, pl_module)

    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:
        model = find_poly_model(pl_module)
        assert model is not None
        is_end = sight.moment is Moment.END
        found = dead_skills(sight.allocations.open_weights, below=self._dead_below)
        dead = mean_over_heads(by_shape(lambda own: own.sum(-1).double(), found))
        alike = self._count_duplicates(model, sight.allocations)
        if not is_end or self._logged_step != trainer.global_step:
            metrics = {"routing/dead_skills": _mean(dead)}
            if alike:
                metrics["routing/duplicate_skills"] = _mean(alike)
            log_metrics(trainer, pl_module, metrics, moment=sight.moment)
            self._logged_step = trainer.global_step
        if is_end:
            _warn_dead(dead, sight.allocations)
            _warn_duplicates(alike)

    def _count_duplicates(self, model: PolyModel, seen: Allocations) -> dict[str, float]:
        """By layer; without layers where they have too many skills, or each is one task's."""
        name = model.active_adapter
        banks: dict[str, tuple[Tensor, Tensor]] = {}
        for layer_name, layer in model.active_layers().items():
            a, b = layer.poly_lora_A[name], layer.poly_lora_B[name]
            shared = _shared_skills(seen, layer_name)
            if shared is not None:
                a, b = a[:, : len(shared)], b[:, : len(shared)]
            if a.shape[1] * a.shape[3] > _MOST_ROWS or layer.router(name).is_hard:
                continue
            banks[layer_name] = a.detach(), b.detach()
        found: dict[str, Tensor] = {}
        for names in alike(banks, _MOST_CELLS):
            a, b = (torch.stack([whole(banks[n][side]) for n in names]) for side in (0, 1))
            number = duplicate_skills(a, b, above=self._duplicate_above).sum(-1).double().mean(-1)
            found.update(zip(names, number.unbind(), strict=True))
        if not found:
            return {}
        device = next(iter(found.values())).device
        means = torch.stack([found[name].to(device) for name in banks])  # one wait for all
        return dict(zip(banks, means.tolist(), strict=True))


def _mean(layers: Mapping[str, float]) -> float:
    return sum(layers.values()) / len(layers)


def _shared_skills(seen: Allocations, layer: str) -> Tensor | None:
    """Those that all tasks may use, where not all are; C-Poly's bank begins with them."""
    choices = seen.choices.get(layer)
    return None if choices is None else choices[0, (choices == choices[0]).all(0)]


@rank_zero_only
def _warn_dead(dead: Mapping[str, float], seen: Allocations) -> None:
    if max(dead.values()) >= 1:
        n_skills = next(iter(seen.open_weights.values())).shape[2]
        log.warning(
            "Dead skills: no task makes more than a trace of %s. Fewer skills would compute the "
            "same: lower adapter.n_skills (now %d), or give the skills more time to be chosen "
            "(a lower learning rate of the router, a load-balance prior).",
            _where(dead), n_skills,
        )  # fmt: skip


@rank_zero_only
def _warn_duplicates(alike: Mapping[str, float]) -> None:
    if alike and max(alike.values()) >= 1:
        log.warning(
            "Duplicate skills: %s have nearly the same update as another skill of their layer. "
            "They count as one: lower adapter.n_skills, or let tasks choose more sharply (a higher "
            "learning rate of the router) so that their skills come apart.",
            _where(alike),
        )


def _where(layers: Mapping[str, float]) -> str:
    """Such as `1.5 skills per head in 7 of 48 layers (most in a, b, c: 3.0)`."""
    hit = {name: n for name, n in layers.items() if n > 0}
    most = sorted(hit, key=lambda name: -hit[name])[:_NAMED]
    mean = sum(hit.values()) / len(hit)
    return (
        f"{mean:.1f} skills per head in {len(hit)} of {len(layers)} layers (most in "
        f"{', '.join(most)}: {hit[most[0]]:.1f})"
    )
