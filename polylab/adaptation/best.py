"""The weights that did best on validation, kept in memory: an adaptation has few of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from polylab.training.checkpoint import trainable_state

__all__ = ["KeepBest"]


class KeepBest(Callback):
    """Puts back, when training ends, the trainable weights of the best validation.

    Of validations with the same score the one with the lower loss is the better one, and of those
    the first. The last step is followed by a validation too, whatever `trainer.val_check_interval`.

    Args:
        monitor: A metric that is logged under `val/`; `loss` is better when lower.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self._best = (-math.inf, -math.inf)
        self._state: dict[str, Tensor] | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # as after an early stop Lightning validates once more

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a validation without answers leaves the metrics of an earlier one
        is_new = self.monitor == "loss" or getattr(pl_module, "generates", True)
        if trainer.sanity_checking or not is_new:
            return
        score = self._score(trainer)
        if self._state is None or score > self._best:
            self._best = score
            # CPU copies, though a clone is made where they are there already
            self._state = {
                name: torch.clone(tensor).cpu()
                for name, tensor in trainable_state(pl_module, pl_module.state_dict()).items()
            }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if self._state is not None:
            pl_module.load_state_dict(self._state, strict=False)

    def _score(self, trainer: Trainer) -> tuple[float, float]:
        values = trainer.callback_metrics
        key = f"val/{self.monitor}"
        if key not in values:
            known = ", ".join(sorted(k[4:] for k in values if k.startswith("val/")))
            raise ValueError(f"adapt.monitor={self.monitor} was not logged · logged are: {known}")
        loss = values.get("val/loss")
        found = -float("inf") if loss is None else -float(loss)
        score = found if self.monitor == "loss" else float(values[key])
        return _ranked(score), _ranked(found)


def _ranked(value: float) -> float:
    """A diverged value is worse than any other."""
    return -math.inf if math.isnan(value) else value
