"""Whether the router recovers the true skills, where these are known."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from polylab.callbacks.allocations import Allocations
from polylab.callbacks.base import AllocationCallback, Moment, Sight, log_metrics, true_skills
from polylab.poly.recovery import recovery, unidentifiable_skills

__all__ = ["Recovery"]

log = logging.getLogger(__name__)

_MOST_CELLS, _FEWEST = 10_000_000, 10

_KEYS = {
    "aligned": "routing/recovery",
    "mean": "routing/recovery_mean",
    "best": "routing/recovery_best",
    "similarity": "routing/recovery_similarity",
}


class Recovery(AllocationCallback):
    """Logs `routing/recovery` where `trainer.datamodule.skill_matrix` is `(bool [T, K], names)`.

    `routing/recovery` is the AUROC of the aligned mean; `_mean` and `_best` those of the single
    layers, `_similarity` the Spearman correlation of the task similarities. Each comes with a
    `_baseline` (tasks permuted) at the start and at the end; in between only the score is
    computed. See `polylab.poly.recovery`. Without a known matrix nothing happens.

    Args:
        n_permutations: Of the baselines; fewer, and a line says so, where permutations x layers x
            heads x tasks would be more than 10 million (each takes seconds then, and with so many
            tasks and layers a few are enough).
        seed: Of the permutations.

    Attributes:
        result: Of the latest look with baselines, as `polylab.poly.recovery.recovery` returns it;
            empty where no true skills are known.

    Raises:
        ValueError: If `n_permutations` is negative.
    """

    def __init__(self, *, n_permutations: int = 200, seed: int = 0) -> None:
        if n_permutations < 0:
            raise ValueError(f"n_permutations={n_permutations} must be 0 (no baseline) or more.")
        self._n_permutations = n_permutations
        self._seed = seed
        self.result: dict[str, Any] = {}
        self._has_said = False
        self._seen: Allocations | None = None  # what `result` was made from

    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:
        truth = true_skills(trainer, sight.allocations.task_ids)
        if truth is None:
            return
        matrix = torch.from_numpy(truth.matrix)
        full = sight.moment is not Moment.VALIDATION
        # the last weights often are the best, too: seconds of permutations, once
        known = sight.is_final and sight.allocations.equals(self._seen)
        result = self.result
        if not known:
            result = recovery(
                sight.allocations.weights,
                matrix,
                names=truth.names,
                n_permutations=self._affordable(sight.allocations) if full else 0,
                seed=self._seed,
            )
        if full:
            self.result, self._seen = result, sight.allocations
        if sight.moment is Moment.START and trainer.is_global_zero:
            for group in unidentifiable_skills(matrix, truth.names):
                log.info("No routing of these tasks can tell apart the skills: %s", group)
        log_metrics(trainer, pl_module, scalars(result), moment=sight.moment)

    def _affordable(self, seen: Allocations) -> int:
        heads = sum(w.shape[1] for w in seen.weights.values())
        most = max(_FEWEST, _MOST_CELLS // (heads * len(seen.task_ids)))
        if most < self._n_permutations and not self._has_said:
            self._has_said = True
            rank_zero_only(log.info)(
                "routing/recovery_baseline is of %d permutations, not %d: there are %d tasks, and "
                "%d layers and heads",
                most, self._n_permutations, len(seen.task_ids), heads,
            )  # fmt: skip
        return min(most, self._n_permutations)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores among `trainer.callback_metrics`, which a test run starts anew."""
        found = {k: v for k, v in scalars(self.result).items() if v == v}
        # equal on all ranks already; said again only to satisfy Lightning
        pl_module.log_dict(found, logger=False, sync_dist=trainer.world_size > 1)


def scalars(result: dict[str, Any]) -> dict[str, float]:
    """The result's numbers under their W&B keys."""
    return {
        key + suffix: float(result[name + suffix])
        for name, key in _KEYS.items()
        for suffix in ("", "_baseline")
        if name + suffix in result
    }
