"""The three pictures of a routing: on disk, and in W&B with a step slider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from polylab.callbacks.allocations import Allocations
from polylab.callbacks.base import (
    AllocationCallback,
    Moment,
    Sight,
    has_wandb,
    log_media,
    run_folder,
    task_names,
    true_skills,
)
from polylab.callbacks.figures import (
    Truth,
    cluster_tasks,
    draw_allocation,
    draw_by_layer,
    draw_hierarchy,
    pixels,
)
from polylab.callbacks.figures.style import shorten
from polylab.poly.recovery import match_to_truth
from polylab.poly.statistics import (
    aligned_mean,
    match_columns,
    skill_usage,
    task_similarity,
)

__all__ = ["SkillFigures"]


class SkillFigures(AllocationCallback):
    """Draws `allocation`, `by_layer` and `task_hierarchy`.

    Each goes to `FOLDER/figures/NAME-stepNNNNNN.png` (of a checkpoint given to `trainer.validate`:
    `NAME-CHECKPOINT.png`), the last one also to `NAME.png`, and to W&B as `skills/NAME`. Rows,
    colours and size stay the same through a run, so that the step slider shows nothing but the
    routing; columns are matched with the true skills where these are known, else with the picture
    before. Their numbers are those of `align_skills` on the same weights (`routing=drop:SKILL`).

    Args:
        folder: The run's folder; the trainer's `default_root_dir` if None.
        every_n_validations: Draw after every so many validations; 0 = only at the end.
        at_start: Draw before the first step, too.

    Raises:
        ValueError: If `every_n_validations` is negative.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        every_n_validations: int = 1,
        at_start: bool = True,
    ) -> None:
        if every_n_validations < 0:
            raise ValueError(
                f"every_n_validations={every_n_validations} must be 0 (only at the end) or more."
            )
        self._folder = folder
        self._every = every_n_validations
        self._at_start = at_start
        self._validations = 0
        self._drawn_step: int | None = None
        self._before: np.ndarray | None = None  # columns of the last picture
        self._final: Allocations | None = None

    @rank_zero_only
    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:  # noqa: ARG002
        self._validations += sight.moment is Moment.VALIDATION
        if sight.moment is Moment.CHECKPOINT and sight.allocations.equals(self._final):
            return
        if sight.moment is Moment.END and self._drawn_step == trainer.global_step:
            self._final = sight.allocations
            self._keep_last(trainer, sight)
            return
        if self._is_due(sight.moment):
            self._draw(trainer, sight)

    def _is_due(self, moment: Moment) -> bool:
        if moment is Moment.START:
            return self._at_start
        if moment is Moment.VALIDATION:
            return self._every > 0 and self._validations % self._every == 0
        return True

    def _draw(self, trainer: Trainer, sight: Sight) -> None:
        tasks = task_names(trainer, sight.allocations.task_ids)
        truth = true_skills(trainer, sight.allocations.task_ids)
        scene = _Scene(sight, tasks, truth, self._before)
        self._before, self._drawn_step = scene.mean, trainer.global_step
        images = {name: pixels(figure) for name, figure in scene.figures().items()}
        folder = run_folder(trainer, self._folder)
        if folder is not None:
            (folder / "figures").mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            if folder is not None:
                Image.fromarray(image).save(_file(folder, name, sight))
        if has_wandb(trainer):
            import wandb

            log_media(trainer, {f"skills/{n}": wandb.Image(image) for n, image in images.items()})
        if sight.is_final:
            self._final = sight.allocations
            self._keep_last(trainer, sight)

    def _keep_last(self, trainer: Trainer, sight: Sight) -> None:
        """Give the last picture of each kind a name that does not depend on the step."""
        folder = run_folder(trainer, self._folder)
        for name in ("allocation", "by_layer", "task_hierarchy"):
            if folder is not None and (file := _file(folder, name, sight)).exists():
                (folder / "figures" / f"{name}.png").write_bytes(file.read_bytes())


def _file(folder: Path, name: str, sight: Sight) -> Path:
    return folder / "figures" / f"{name}-{sight.tag}.png"


class _Scene:
    """One moment, its rows and columns put in order, ready to be drawn."""

    def __init__(
        self, sight: Sight, tasks: list[str], truth: Truth | None, before: np.ndarray | None
    ) -> None:
        self._sight = sight
        rows = _row_order(tasks, truth)
        seen = sight.allocations
        self._weights = {name: w[rows] for name, w in seen.weights.items()}
        self._tasks = [tasks[i] for i in rows]
        self._truth = truth and Truth(truth.matrix[rows], truth.names)
        mean, self._agreement = aligned_mean(seen.weights)
        mean = mean[rows]
        columns = _column_order(mean, self._truth, before)
        # the numbers of align_skills, so that `routing=drop:SKILL` takes them
        self._skills = [f"skill {k}" for k in columns]
        self.mean = mean[:, columns].numpy()

    def figures(self) -> dict[str, Figure]:
        figures = {"allocation": self._allocation(), "by_layer": self._by_layer()}
        if len(self._tasks) > 1:
            figures["task_hierarchy"] = self._hierarchy()
        return figures

    def _allocation(self) -> Figure:
        lines = [self._shown()]
        if self._truth is not None:
            lines.append("columns stand in the order of the true skills that they match best")
        return draw_allocation(
            self.mean * len(self._skills),
            tasks=self._tasks,
            skills=self._skills,
            title=f"Skill allocation {self._sight.words}",
            shown=lines,
            truth=self._truth,
        )

    def _hierarchy(self) -> Figure:
        similarity = task_similarity(self._weights).numpy()
        lines = [
            f"average linkage of the tasks' weights in all {len(self._weights)} layers, unaligned",
            f"map: {self._shown()}",
        ]
        return draw_hierarchy(
            cluster_tasks(similarity),
            self.mean * len(self._skills),
            tasks=self._tasks,
            skills=self._skills,
            title=f"Task hierarchy {self._sight.words}",
            shown=lines,
            truth=self._truth,
        )

    def _by_layer(self) -> Figure:
        seen = self._sight.allocations
        usage = skill_usage(seen.used)
        ranked = torch.stack([u.sort(-1, descending=True)[0].mean(0) for u in usage.values()])
        what = "gates" if seen.gates else "weights"
        heads = max(w.shape[1] for w in seen.weights.values())
        lines = [
            f"share of each skill in the {what} of all tasks x {seen.n_skills}"
            + (f", mean of {heads} heads" if heads > 1 else ""),
            "columns are ranks: each layer's own skills from most to least used",
        ]
        return draw_by_layer(
            (ranked * seen.n_skills).numpy(),
            list(seen.layer_entropy().values()),
            layers=list(usage),
            title=f"Skill usage by layer {self._sight.words}",
            shown=lines,
        )

    def _shown(self) -> str:
        sizes = [w.shape[1] for w in self._weights.values()]
        what = f"normalised weight x {len(self._skills)}"
        if self._sight.allocations.examples:
            what = f"mean {what} of validation inputs"
        if sum(sizes) == 1:
            return f"{what}, layer {shorten([*self._weights])[0]}"
        over = f"{len(sizes)} layer{'s' if len(sizes) > 1 else ''}"
        if max(sizes) > 1:
            over += f" x {max(sizes)} heads"
        return f"{what}, aligned mean of {over}, agreement {self._agreement:.2f}"


def _row_order(tasks: list[str], truth: Truth | None) -> list[int]:
    """Tasks of equal true skills side by side where these are known; else as they come."""
    if truth is None:
        return list(range(len(tasks)))
    return sorted(range(len(tasks)), key=lambda i: (*~truth.matrix[i].astype(bool), tasks[i]))


def _column_order(mean: Tensor, truth: Truth | None, before: np.ndarray | None) -> list[int]:
    n_skills = mean.shape[1]
    if truth is not None:
        matched = match_to_truth(mean, torch.from_numpy(truth.matrix))
        first = [k for k in matched if k is not None]
    elif before is not None and before.shape == tuple(mean.shape):
        now = mean.double().numpy()
        scores = before.T @ now  # the closest in squares: sum over |before - now|^2 is least
        first = [k for _, k in sorted(match_columns(scores))]
    else:
        first = []
    return [*first, *(k for k in range(n_skills) if k not in first)]
