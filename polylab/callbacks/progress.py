"""How far a run is: a bar on a terminal, and a plain line now and then in a log file."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from polylab.callbacks.progress_views import Bar, Lines, View

__all__ = ["Progress"]


class Progress(ProgressBar):
    """Shows optimiser steps of the whole training, the time left, the loss and the learning rate.

    On a terminal a bar, and a line for every validation. Elsewhere lines alone, so that a log file
    stays readable: at each `share` of the training and at least every ten minutes; of a validation
    or test that takes longer, every minute. Rank zero speaks. The loss is read from the device
    every `refresh_rate` steps, not in every step.

    Args:
        refresh_rate: Steps between two looks at the loss.
        share: Of the training between two lines of a log file.

    Raises:
        ValueError: If `refresh_rate` is not positive, or `share` not in (0, 1].
    """

    def __init__(self, refresh_rate: int = 10, *, share: float = 0.1) -> None:
        super().__init__()
        if refresh_rate < 1:
            raise ValueError(f"refresh_rate={refresh_rate} must be at least 1.")
        if not 0 < share <= 1:
            raise ValueError(f"share={share} must be above 0 and at most 1.")
        self._refresh_rate, self._share = refresh_rate, share
        self._is_enabled = True
        self._view: View | None = None
        self._shown_step = 0

    def enable(self) -> None:
        self._is_enabled = True

    def disable(self) -> None:
        self._is_enabled = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._view is None and self._is_enabled:
            self._view = Bar() if sys.stdout.isatty() else Lines(share=self._share)

    def print(self, *args: Any, sep: str = " ", **_kwargs: Any) -> None:
        self._say(sep.join(map(str, args)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._shown_step = trainer.global_step
        self._begin("training", "step", total=_steps(trainer), done=trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        step = trainer.global_step
        if self._view is None or step == self._shown_step:
            return
        if step % self._refresh_rate == 0 or step == _steps(trainer):
            self._shown_step = step
            self._view.move(step, _training_words(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if trainer.sanity_checking:
            self._begin("trying out validation", "batch", total=trainer.num_sanity_val_batches)
        else:
            self._begin("validating", "batch", total=trainer.num_val_batches)

    def on_validation_batch_end(self, *_args: Any, **_kwargs: Any) -> None:
        self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._end()
        is_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if is_training and (line := _validated(trainer)):
            self._say(line)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._begin("testing", "batch", total=trainer.num_test_batches)

    def on_test_batch_end(self, *_args: Any, **_kwargs: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._end()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        while self._view is not None and self._view.is_busy:
            self._view.end()

    def _begin(
        self, what: str, unit: str, *, total: float | Sequence[float] | None, done: int = 0
    ) -> None:
        if self._view is not None:
            count = sum(total) if isinstance(total, Sequence) else total
            known = None if count is None or not math.isfinite(count) else int(count)
            self._view.begin(what, unit, total=known, done=done)

    def _advance(self) -> None:
        if self._view is not None:
            self._view.move(self._view.done + 1, "")

    def _end(self) -> None:
        if self._view is not None:
            self._view.end()

    def _say(self, line: str) -> None:
        if self._view is not None:
            self._view.say(line)


def _steps(trainer: Trainer) -> int | None:
    """Optimiser steps of the whole training, if it has an end that is known."""
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is not None and epochs > 0 and math.isfinite(batches):
        limits.append(math.ceil(batches / trainer.accumulate_grad_batches) * epochs)
    return min(limits, default=None)


def _training_words(trainer: Trainer) -> str:
    losses = {
        key.removeprefix("train/"): value
        for key, value in trainer.progress_bar_metrics.items()
        if not key.startswith(("val/", "val_", "test/", "test_"))
    }
    words = [f"{key} {value:.4g}" for key, value in [*losses.items()][:2] if _is_number(value)]
    if trainer.optimizers:
        words.append(f"lr {trainer.optimizers[0].param_groups[0]['lr']:.2g}")
    return ", ".join(words)


def _validated(trainer: Trainer) -> str:
    """`validation after 300 steps: loss 1.234, exact_match 0.500`, as many as fit on 80 columns."""
    found = {
        key[4:]: value
        for key, value in trainer.progress_bar_metrics.items()
        if key.startswith(("val/", "val_")) and _is_number(value)
    }
    words = [f"{key} {value:.3f}" for key, value in found.items()]
    words.sort(key=lambda word: not word.startswith("loss "))
    step = trainer.global_step
    line = f"validation after {step:,} step{'' if step == 1 else 's'}:"
    for i, word in enumerate(words):
        if i and len(line) + len(word) + 2 > 80:
            break
        line += f"{',' if i else ''} {word}"
    return line if words else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
