"""The pictures of a routing: on disk, and in W&B with a step slider."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from polylab.callbacks.allocations import Allocations, find_poly_model
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
from polylab.callbacks.budget import TimeBudget
from polylab.callbacks.collecting import uncollected
from polylab.callbacks.figures import pixels, save_vector
from polylab.callbacks.places import Places
from polylab.callbacks.routers import Routers
from polylab.callbacks.scene import Scene, Start
from polylab.callbacks.subject import Subject

__all__ = ["SkillFigures"]

log = logging.getLogger(__name__)

_AT_EACH_LOOK = ("allocation", "by_layer", "task_hierarchy")  # the others at the end


class SkillFigures(AllocationCallback):
    """Draws `allocation`, `by_layer` and `task_hierarchy`.

    At the end also `task_similarity`, `change` (since the start) and `layers`: maps of single
    layers and heads. A figure that could only repeat one number (one skill, one task, an allocation
    that is given) is left out, and a line says so.

    Pictures take most of a second, which may be many training steps. A look is drawn where all
    looks so far and one more like the last stay within `max_share` of the training's time since
    its start, validations included; else it is left out, and one line says so. The start, the end
    and checkpoints are always drawn, and do not count.

    Each goes to `FOLDER/figures/NAME-stepNNNNNN.png` (of a checkpoint given to `trainer.validate`:
    `NAME-CHECKPOINT.png`), the last one also to `NAME.png` and `NAME.pdf`, and to W&B as
    `skills/NAME`. Colours and size stay the same through a run. Rows stand in the order of the task
    hierarchy, as near to the picture before as that allows; columns are matched with the true
    skills where these are known, else with the picture before. Their numbers are those of
    `align_skills` on the same weights (`routing=drop:SKILL`).

    Args:
        folder: The run's folder; the trainer's `default_root_dir` if None.
        every_n_validations: Draw after every so many validations; 0 = only at the end.
        at_start: Draw before the first step, too.
        max_share: Of the training's time, for the looks within it; None: draw them all.

    Raises:
        ValueError: If `every_n_validations` is negative, or `max_share` not from 0 to 1.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        every_n_validations: int = 1,
        at_start: bool = True,
        max_share: float | None = 0.01,
    ) -> None:
        if every_n_validations < 0:
            raise ValueError(
                f"every_n_validations={every_n_validations} must be 0 (only at the end) or more."
            )
        if max_share is not None and not 0 <= max_share <= 1:
            raise ValueError(
                f"max_share={max_share} must lie in 0 to 1, a share of the training's time, or be "
                "null to draw every look."
            )
        self._folder = folder
        self._every = every_n_validations
        self._at_start = at_start
        self._validations = 0
        self._logged: tuple[int | None, set[str]] = (None, set())  # step, and figures of it
        self._places: Places | None = None
        self._start: tuple[int, Start] | None = None  # its step
        self._final: Allocations | None = None
        self._has_said = self._has_left_out = False
        self._max_share, self._budget = max_share, TimeBudget(max_share)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with this start from now on."""
        self._start = None
        super().on_train_start(trainer, pl_module)
        self._budget.begin()

    @rank_zero_only
    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:
        self._validations += sight.moment is Moment.VALIDATION
        if sight.moment is Moment.CHECKPOINT and sight.allocations.equals(self._final):
            return
        is_due = self._is_due(sight.moment)
        if is_due and sight.moment is Moment.VALIDATION and not self._budget.allows:
            self._say_left_out()
            is_due = False
        if self._start is None or is_due:
            with self._budget.spending(), uncollected():
                self._look(trainer, pl_module, sight, draws=is_due)

    def _say_left_out(self) -> None:
        if not self._has_left_out:
            self._has_left_out = True
            log.info(
                "SkillFigures leaves out looks within the training: one takes %.1f s, and all may "
                "take %g of its time (callbacks.figures.max_share). The end is drawn.",
                self._budget.last, self._max_share,
            )  # fmt: skip

    def _is_due(self, moment: Moment) -> bool:
        if moment is Moment.START:
            return self._at_start
        if moment is Moment.VALIDATION:
            return self._every > 0 and self._validations % self._every == 0
        return True

    def _look(
        self, trainer: Trainer, pl_module: LightningModule, sight: Sight, *, draws: bool
    ) -> None:
        seen, model = sight.allocations, find_poly_model(pl_module)
        assert model is not None  # else there were no allocations
        subject = Subject.of(
            seen,
            Routers.of(model),
            tasks=task_names(trainer, seen.task_ids),
            truth=true_skills(trainer, seen.task_ids),
            categories=getattr(trainer.datamodule, "categories", None),  # type: ignore[attr-defined]
        )
        if self._start is None:
            words = "the start" if sight.moment is Moment.START else f"the look {sight.words}"
            self._start = trainer.global_step, Start(subject, words)
        if draws:
            step, start = self._start
            start = start if step < trainer.global_step else None
            scene = Scene(subject, sight.words, before=self._places, start=start)
            self._places = scene.places
            self._draw(trainer, scene, sight)
        if sight.is_final:
            self._final = seen

    def _draw(self, trainer: Trainer, scene: Scene, sight: Sight) -> None:
        """Draw what is due; the last figures get a name without the step, and a vector version."""
        folder, images = run_folder(trainer, self._folder), {}
        for name, draw in scene.figures().items():
            if name not in _AT_EACH_LOOK and not sight.is_final:
                continue
            figure = draw()
            images[name] = pixels(figure)
            if folder is not None:
                _write(folder / "figures", name, images[name], sight=sight)
                if sight.is_final:
                    save_vector(figure, folder / "figures" / f"{name}.pdf")
        if sight.moment is Moment.END and not self._has_said and scene.left_out:
            self._has_said = True
            log.info("SkillFigures leaves out what could only repeat itself: %s", scene.left_out)
        step, known = self._logged
        if sight.moment is Moment.END and step == trainer.global_step:
            images = {name: image for name, image in images.items() if name not in known}
        self._logged = trainer.global_step, {*images}
        if has_wandb(trainer) and images:
            import wandb

            log_media(trainer, {f"skills/{n}": wandb.Image(image) for n, image in images.items()})


def _write(folder: Path, name: str, image: np.ndarray, *, sight: Sight) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{sight.tag}.png"
    Image.fromarray(image).save(path, compress_level=1)  # a fifth larger, in half the time
    if sight.is_final:
        (folder / f"{name}.png").write_bytes(path.read_bytes())
