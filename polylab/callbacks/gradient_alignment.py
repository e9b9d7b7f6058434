"""Do tasks pull the skills the same way? Cosines of their gradients on a fixed probe set."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from polylab.callbacks.allocations import find_poly_model
from polylab.callbacks.base import (
    Moment,
    has_wandb,
    log_media,
    log_metrics,
    run_folder,
    task_names,
)
from polylab.callbacks.figures import cluster_tasks, draw_task_matrix, pixels, tree_order
from polylab.callbacks.probes import ProbeSet
from polylab.callbacks.spacing import evenly_spaced
from polylab.poly.model import PolyModel
from polylab.poly.sharding import is_sharded
from polylab.training.files import write_atomically

__all__ = ["GradientAlignment", "gradient_cosines", "mean_pairwise"]

log = logging.getLogger(__name__)

Gradients = Mapping[str, Float[Tensor, "tasks parameters"]]


class GradientAlignment(Callback):
    """Logs `routing/grad_alignment` and draws `skills/grad_alignment`.

    The number is the mean cosine, over all pairs of tasks and then over the layers, of the
    gradients of the tasks' losses with respect to A and B of the layer (not Z): 1 = all pull the
    same way, 0 = unrelated, below = against each other. The picture has a cell for each pair, the
    mean over the layers; it goes to `FOLDER/figures/grad_alignment-stepNNNNNN.png`, the last one
    also to `grad_alignment.png`, its numbers to `FOLDER/grad_alignment.csv`. Rows keep the order
    of the first picture.

    The loss of a task is the `PolyModel`'s own (`model(**inputs).loss`), in evaluation mode: no
    dropout, no router's noise, no priors. The probe set is the first `examples_per_task` examples
    of each task in the first validation; it is the same at every look and on every rank, where each
    computes all of it. What is being trained does not notice: gradients, random streams, modes
    and optimiser stay as they are.

    Cost: a forward and a backward for each task and look, and memory for one gradient of A and B
    per task, on their device. Not part of the default callbacks.

    Batches must be mappings with `input_ids`, `labels` and `task_ids [batch]`, as the model takes
    them. What cannot be computed is said once in a warning, and the training goes on.

    Args:
        folder: The run's folder; the trainer's `default_root_dir` if None.
        every_n_validations: Look after every so many validations, and at the end.
        examples_per_task: Of the probe set.
        max_tasks: With more tasks, so many evenly spaced ids.

    Attributes:
        matrix: Of the latest look, `[tasks, tasks]`; None before the first.
        tasks: The ids of its rows.

    Raises:
        ValueError: If an argument is out of range; at the start if the skills are not trained.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        every_n_validations: int = 4,
        examples_per_task: int = 4,
        max_tasks: int = 32,
    ) -> None:
        given = {"every_n_validations": every_n_validations, "examples_per_task": examples_per_task}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if max_tasks < 2:
            raise ValueError(f"max_tasks={max_tasks} must be at least 2, to have a pair.")
        self._folder, self._every = folder, every_n_validations
        self._per_task, self._max_tasks = examples_per_task, max_tasks
        self.matrix: np.ndarray | None = None
        self.tasks: list[int] = []
        self._probes: ProbeSet | None = None
        self._order: list[int] | None = None
        self._validations = 0
        self._seen_step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the tasks.

        Raises:
            ValueError: If A and B are frozen.
        """
        model = find_poly_model(pl_module)
        if stage != "fit" or model is None:
            self._probes = None
            return
        if not _trained_banks(model):
            raise ValueError(
                "GradientAlignment compares gradients of the skills, and "
                f"trainable={model.config_of(model.active_adapter).trainable!r} leaves them "
                "frozen: train them, or leave the callback out."
            )
        n_tasks = model.config_of(model.active_adapter).n_tasks
        chosen = evenly_spaced(range(n_tasks), self._max_tasks)
        if len(chosen) < n_tasks and trainer.is_global_zero:
            log.info("routing/grad_alignment compares %d of %d tasks", len(chosen), n_tasks)
        self._probes = ProbeSet({*chosen}, self._per_task)
        self._order, self._validations, self._seen_step = None, 0, None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        probes = self._probes
        if probes is not None and not probes.is_closed and not trainer.sanity_checking:
            probes.add(batch, place=(dataloader_idx, batch_idx, trainer.global_rank))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self._probes is not None and not self._probes.is_closed:
            self._probes.gather()
            if self._probes.refused:
                self._give_up(self._probes.refused)
        self._validations += 1
        if self._validations % self._every == 0:
            self._look(trainer, pl_module, Moment.VALIDATION)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._seen_step != trainer.global_step:
            self._look(trainer, pl_module, Moment.END)
        folder = run_folder(trainer, self._folder)
        if folder is not None and self.matrix is not None:
            _keep(folder, self.matrix, task_names(trainer, self.tasks), trainer.global_step)

    def _give_up(self, reason: str) -> None:
        self._probes = None
        rank_zero_only(log.warning)("No gradient alignment: %s.", reason)

    def _look(self, trainer: Trainer, pl_module: LightningModule, moment: Moment) -> None:
        model, probes = find_poly_model(pl_module), self._probes
        if model is None or probes is None or not probes.is_closed:
            return
        if is_sharded(model):
            self._give_up("the skills of a sharded model are in parts")
            return
        self._seen_step, self.tasks = trainer.global_step, probes.seen
        with trainer.precision_plugin.forward_context():
            gradients = _probe_gradients(model, probes)
        if isinstance(gradients, str):
            self._give_up(gradients)
            return
        by_layer = gradient_cosines(gradients)
        number = mean_pairwise(by_layer)
        self.matrix = by_layer.nanmean(0).cpu().numpy()
        log_metrics(trainer, pl_module, {"routing/grad_alignment": number}, moment=moment)
        if trainer.is_global_zero:
            self._draw(trainer, number, n_layers=len(by_layer))

    def _draw(self, trainer: Trainer, number: float, *, n_layers: int) -> None:
        assert self.matrix is not None
        if self._order is None:
            alike = (1 + np.nan_to_num(self.matrix)) / 2
            self._order = tree_order(cluster_tasks(alike))
        step = trainer.global_step
        figure = draw_task_matrix(
            self.matrix,
            tasks=task_names(trainer, self.tasks),
            title=f"Gradient alignment of tasks after {step:,} steps",
            shown=[
                f"cosine of the gradients of A and B, mean of {n_layers} layers; mean pair "
                f"{number:.3f}",
                f"{self._per_task} validation examples of each task, the same at every look",
            ],
            scale="signed",
            order=self._order,
        )
        image, folder = pixels(figure), run_folder(trainer, self._folder)
        if folder is not None:
            (folder / "figures").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(_picture(folder, step))
        if has_wandb(trainer):
            import wandb

            log_media(trainer, {"skills/grad_alignment": wandb.Image(image)})


def gradient_cosines(gradients: Gradients) -> Float[Tensor, "layers tasks tasks"]:
    """Cosines of the tasks' gradients in each layer; NaN where one of them is zero."""
    return torch.stack([_cosines(g) for g in gradients.values()])


def mean_pairwise(cosines: Float[Tensor, "layers tasks tasks"]) -> float:
    """Mean over the pairs of different tasks in each layer, then over the layers, without NaNs."""
    upper = torch.triu_indices(*cosines.shape[1:], offset=1, device=cosines.device)
    return float(cosines[:, upper[0], upper[1]].nanmean(1).nanmean())


def _cosines(g: Float[Tensor, "tasks parameters"]) -> Float[Tensor, "tasks tasks"]:
    length = torch.linalg.vector_norm(g, dim=1)
    unit = g / torch.where(length > 0, length, torch.nan)[:, None]
    return (unit @ unit.T).clamp(-1, 1)  # beyond it by rounding


def _trained_banks(model: PolyModel) -> dict[str, list[Tensor]]:
    """A and B of each layer, where they are trained."""
    name = model.active_adapter
    banks = {
        n: [la.poly_lora_A[name], la.poly_lora_B[name]] for n, la in model.active_layers().items()
    }
    return {n: pair for n, pair in banks.items() if all(p.requires_grad for p in pair)}


def _probe_gradients(model: PolyModel, probes: ProbeSet) -> Gradients | str:
    """Of each layer, a row for each task; or why there are none."""
    banks = _trained_banks(model)
    flat = [p for pair in banks.values() for p in pair]
    device = flat[0].device
    rows: dict[str, list[Tensor]] = {name: [] for name in banks}
    training = [module for module in model.modules() if module.training]
    model.eval()
    devices = [device] if device.type == "cuda" else []
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices),
        ):
            for task in probes.seen:
                loss = _task_loss(model, probes, task, device)
                if loss is None:
                    return f"{type(model.get_base_model()).__name__} gives no loss for its labels"
                found = torch.autograd.grad(loss, flat, allow_unused=True)
                for name, a, b in zip(banks, found[::2], found[1::2], strict=True):
                    own = zip((a, b), banks[name], strict=True)
                    parts = [torch.zeros_like(p) if g is None else g for g, p in own]
                    rows[name].append(torch.cat([g.flatten().float() for g in parts]))
    finally:
        for module in training:
            module.training = True
    return {name: torch.stack(own) for name, own in rows.items()}


def _task_loss(
    model: PolyModel, probes: ProbeSet, task: int, device: torch.device
) -> Tensor | None:
    """Mean over the labels of the task's examples."""
    losses, counts = [], []
    for rows in probes.rows(task):
        inputs = {name: tensor.to(device) for name, tensor in rows.items()}
        loss = getattr(model(**inputs), "loss", None)
        if loss is None:
            return None
        losses.append(loss)
        counts.append(int((rows["labels"] != -100).sum()))
    total = max(sum(counts), 1)
    return torch.stack([loss * n / total for loss, n in zip(losses, counts, strict=True)]).sum()


def _picture(folder: Path, step: int) -> Path:
    return folder / "figures" / f"grad_alignment-step{step:06d}.png"


def _keep(folder: Path, matrix: np.ndarray, tasks: list[str], step: int) -> None:
    """The last picture under a name without a step, and its numbers."""
    if _picture(folder, step).exists():
        last = folder / "figures" / "grad_alignment.png"
        last.write_bytes(_picture(folder, step).read_bytes())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", *tasks])
    for task, row in zip(tasks, matrix.tolist(), strict=True):
        writer.writerow([task, *(f"{value:.6g}" for value in row)])
    write_atomically(folder / "grad_alignment.csv", lambda to: to.write(text.getvalue().encode()))
