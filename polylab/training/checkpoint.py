"""Checkpoints of the trainable part: what goes in, strict loading, and which ones are kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from polylab.training.distributed import gather_objects
from polylab.training.files import write_atomically

if TYPE_CHECKING:
    from polylab.poly import PolyModel


def trainable_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of `state` that belong to the trainable part of `module`."""
    names = trainable_part(module)
    return {name: tensor for name, tensor in state.items() if name in names}


def trainable_part(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, and buffers of routers and of copied modules (a running mean, say)."""
    parameters = dict(module.named_parameters())
    part: dict[str, Tensor] = {name: p for name, p in parameters.items() if p.requires_grad}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name not in parameters and {"poly_router", "modules_to_save"} & {*name.split(".")}:
            part[name] = tensor
    return part


def check_trainable_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that `state` holds each trainable parameter of `module` in its shape, and no more.

    Raises:
        ValueError: Listing what is missing, unexpected or of another shape.
    """
    expected = trainable_part(module)
    reshaped = [
        f"{name}: {list(state[name].shape)} in the checkpoint, {list(p.shape)} in the model"
        for name, p in expected.items()
        if name in state and state[name].shape != p.shape
    ]
    problems = [
        *_listed("missing in the checkpoint", [name for name in expected if name not in state]),
        *_listed("not trainable in the model", [name for name in state if name not in expected]),
        *_listed("of another shape", reshaped),
    ]
    if problems:
        raise ValueError(
            "The checkpoint does not fit the model's trainable part; use the adapter, tasks and "
            "backbone it was written with.\n" + "\n".join(problems)
        )


def check_task_names(saved: Sequence[str], given: Sequence[str]) -> None:
    """Check that a task id means the same task in the checkpoint and here.

    Raises:
        ValueError: Saying how the two lists differ.
    """
    if list(saved) == list(given):
        return
    gone = [name for name in saved if name not in given]
    new = [name for name in given if name not in saved]
    detail = f"only in the checkpoint: {gone}; only here: {new}" if gone or new else "another order"
    raise ValueError(
        f"The checkpoint was trained on {len(saved)} tasks, this run has {len(given)} ({detail}); "
        "resume with the same tasks, or start a new run from it with init_from."
    )


def _listed(what: str, names: Sequence[str], *, most: int = 8) -> list[str]:
    if not names:
        return []
    more = [f"    ... and {len(names) - most} more"] if len(names) > most else []
    return [f"  {what} ({len(names)}):", *(f"    {name}" for name in names[:most]), *more]


def save_adapter(
    model: PolyModel,
    directory: str | os.PathLike[str],
    task_names: Sequence[str],
    *,
    is_main_process: bool = True,
) -> None:
    """Write the adapter in PEFT's file format and `tasks.json` (task name to id) to `directory`.

    Each file is whole at every moment; those of a previous save stay until the new ones are. All
    ranks call this; the main process writes.
    """
    target = Path(directory)
    model.save_pretrained(target, is_main_process=is_main_process)
    if not is_main_process:
        return
    ids = json.dumps({name: i for i, name in enumerate(task_names)}, indent=2, ensure_ascii=False)
    write_atomically(target / "tasks.json", lambda file: file.write(ids.encode()))


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt` and `best.ckpt`, under exactly these names, in `dirpath`.

    `last.ckpt` is written after every `every_n_steps`, after every validation and after the last
    step; `best.ckpt` after a validation whose `monitor` is better than all before it. Both are
    written from places in Lightning's loops from which a resumed run continues exactly. The
    exception is a run without `trainer.max_steps` that ends an epoch without a validation: resumed
    with more epochs, Lightning drops the loader's state.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str],
        *,
        monitor: str = "val/exact_match",
        mode: str = "max",
        every_n_steps: int | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode={mode} must be max or min.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1, or null.")
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.best_score: float | None = None
        self._sign = 1.0 if mode == "max" else -1.0
        self._every_n_steps = every_n_steps
        self._saved_step = 0

    @property
    def last_path(self) -> Path:
        return self.dirpath / "last.ckpt"

    @property
    def best_path(self) -> Path:
        return self.dirpath / "best.ckpt"

    @property
    def best_model_path(self) -> str:
        """What Lightning takes for `ckpt_path="best"`; empty as long as there is none."""
        return str(self.best_path) if self.best_score is not None else ""

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # a run continued in another folder has no best.ckpt yet: its first validation writes one
        has_best = gather_objects(self.best_path.exists())[0]  # one answer for all ranks
        self.best_score = state_dict["best_score"] if has_best else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        step, every = trainer.global_step, self._every_n_steps
        # from an epoch's end Lightning would start the next epoch: a cut one must be saved here,
        # and a whole one there, or it is counted twice
        ends = step == trainer.max_steps or trainer.should_stop
        is_due = ends or (every is not None and step % every == 0)
        if is_due and not trainer.is_last_batch and step != self._saved_step:
            self.save_last(trainer)

    def on_train_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
    ) -> None:
        if trainer.is_last_batch and trainer.global_step != self._saved_step:
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `best.ckpt` first: killed between the two, the resumed run writes it again."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        # a validation without answers leaves the metrics of an earlier one
        is_new = self.monitor == "val/loss" or getattr(pl_module, "generates", True)
        score = self._score(trainer) if is_new else math.nan
        best = self.best_score
        if not math.isnan(score) and (best is None or self._sign * (score - best) > 0):
            self.best_score = score
            self._save(trainer, self.best_path)
        self.save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if trainer.global_step != self._saved_step:
            self.save_last(trainer)

    def _score(self, trainer: Trainer) -> float:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(key for key in trainer.callback_metrics if "/" in key))
            raise ValueError(f"monitor={self.monitor} was not logged; logged are: {known}.")
        return float(trainer.callback_metrics[self.monitor])

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt` on all ranks; between steps of the optimiser only."""
        self._saved_step = trainer.global_step
        self._save(trainer, self.last_path)

    def _save(self, trainer: Trainer, path: Path) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(path)
