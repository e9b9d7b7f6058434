"""When skills are looked at, and how what was seen is logged."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from polylab.callbacks.allocations import Allocations, AllocationSource, find_poly_model
from polylab.callbacks.figures import Truth

__all__ = ["AllocationCallback", "Moment", "Sight", "log_metrics", "task_names", "true_skills"]


class Moment(Enum):
    """When the allocations are looked at."""

    START = "start of the training, or of its continuation"
    VALIDATION = "end of a validation within the training"
    END = "end of the training"
    CHECKPOINT = "end of `trainer.validate`, whose weights may be older than the last step"


@dataclass(frozen=True)
class Sight:
    """Allocations of one moment."""

    allocations: Allocations
    moment: Moment
    words: str  # for titles: `after 300 steps`, `of best.ckpt`
    tag: str  # for file names: `step000300`, `best`

    @property
    def is_final(self) -> bool:
        return self.moment in (Moment.END, Moment.CHECKPOINT)


class AllocationCallback(Callback, ABC):
    """Shows a subclass the allocations of the `PolyModel` in any LightningModule.

    `see` is called on all ranks, outside of training steps, at each `Moment`. An input router has
    no allocations before the first validation; `see` waits for it. A module without a `PolyModel`
    (the plain backbone, for comparison) has nothing to show: one line says so.
    """

    _source: AllocationSource | None = None

    @abstractmethod
    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:
        """Look at the allocations; write on rank zero only."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        model = find_poly_model(pl_module)
        self._source = None if model is None else AllocationSource.of(model)
        if model is None and stage == "fit":
            rank_zero_info(
                f"{type(self).__name__} has nothing to show: {type(pl_module).__name__} holds no "
                "PolyModel (see polylab.get_peft_model)."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._see(trainer, pl_module, Moment.START)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if self._source is not None:
            self._source.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._source is not None and not trainer.sanity_checking:
            place = dataloader_idx, batch_idx, trainer.global_rank
            self._source.observe(batch, key=place)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        fits = trainer.state.fn == TrainerFn.FITTING
        self._see(trainer, pl_module, Moment.VALIDATION if fits else Moment.CHECKPOINT)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._see(trainer, pl_module, Moment.END)

    def _see(self, trainer: Trainer, pl_module: LightningModule, moment: Moment) -> None:
        occasion = id(trainer), moment, trainer.global_step
        source = self._source
        allocations = None if source is None else source.read_once(self, occasion)
        if allocations is not None:
            words, tag = _name(trainer, moment)
            self.see(trainer, pl_module, Sight(allocations, moment, words, tag))


def log_metrics(
    trainer: Trainer,
    pl_module: LightningModule,
    metrics: Mapping[str, float],
    *,
    moment: Moment,
    of_parts: Mapping[str, float] | None = None,
) -> None:
    """Log scalars at `trainer.global_step`, the number of optimiser steps done.

    During a validation they also become `trainer.callback_metrics`, to be monitored; but not those
    `of_parts`, which may be dozens and take most of the time. What is not a number (undefined) is
    left out.
    """
    known = {key: value for key, value in metrics.items() if math.isfinite(value)}
    if moment in (Moment.VALIDATION, Moment.CHECKPOINT):
        # equal on all ranks already; said again only to satisfy Lightning
        values = torch.tensor([*known.values()], device=pl_module.device).unbind()  # one copy
        pl_module.log_dict(
            dict(zip(known, values, strict=True)),
            logger=False,
            sync_dist=trainer.world_size > 1,
        )
    known |= {key: value for key, value in (of_parts or {}).items() if math.isfinite(value)}
    for logger in trainer.loggers:
        logger.log_metrics(known, step=trainer.global_step)


def log_media(trainer: Trainer, media: Mapping[str, Any]) -> None:
    """Log W&B objects in one row at `trainer.global_step`, where there is a W&B logger."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics(dict(media), step=trainer.global_step)


def has_wandb(trainer: Trainer) -> bool:
    """Whether `log_media` would reach anything."""
    return any(isinstance(logger, WandbLogger) for logger in trainer.loggers)


def task_names(trainer: Trainer, task_ids: list[int]) -> list[str]:
    """Names by `trainer.datamodule.task_names`; `task 7` where it has none."""
    known = getattr(trainer.datamodule, "task_names", None) or []  # type: ignore[attr-defined]
    return [known[i] if i < len(known) else f"task {i}" for i in task_ids]


def true_skills(trainer: Trainer, task_ids: list[int]) -> Truth | None:
    """`trainer.datamodule.skill_matrix` for these tasks, where it is known."""
    known = getattr(trainer.datamodule, "skill_matrix", None)  # type: ignore[attr-defined]
    if known is None:
        return None
    matrix, names = known
    return Truth(matrix[task_ids].cpu().numpy(), list(names))


def run_folder(trainer: Trainer, folder: Path | str | None) -> Path | None:
    """Where files go: `folder`, else the trainer's root; None where nothing is to be written."""
    if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
        return None
    return Path(trainer.default_root_dir if folder is None else folder)


def _name(trainer: Trainer, moment: Moment) -> tuple[str, str]:
    """Words and tag of a `Sight`."""
    step = trainer.global_step
    if moment is Moment.CHECKPOINT and trainer.ckpt_path:
        path = Path(trainer.ckpt_path)
        return f"of {path.name}", path.stem
    words = f"after {step:,} step{'s' if step > 1 else ''}" if step else "at the start"
    return words, f"step{step:06d}"
