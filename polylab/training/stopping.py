"""The orderly end of a training that a signal stops: all ranks after the same step, saved."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from polylab.training.checkpoint import RunCheckpoint
from polylab.training.distributed import Vote

__all__ = ["Stopping"]


class Stopping(Callback):
    """On SIGTERM, or `also`, saves `last.ckpt` after the step and ends all ranks with SystemExit.

    It does not matter which rank the signal reaches, nor when: they agree after every step, and
    several ranks stop one step later. The code is 128 + the signal's number. A validation that is
    due at that step still takes place.

    Args:
        also: A signal that ends the process outside of the training as well, at once.
    """

    def __init__(self, *, also: signal.Signals | None = None) -> None:
        self.also = also
        self._first_step: int | None = None
        self._received: int = 0  # the signal that this process got
        self._agreed: int = 0  # the one that all ranks stop for
        self._vote: Vote | None = None  # of the step before, on several ranks
        self._step = -1
        self._trains = False
        self._process = os.getpid()
        if also is not None:
            _handle(also, self._note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        _handle(signal.SIGTERM, self._note)
        # before every batch Lightning's ranks ask whether the first one has got SIGTERM, and wait
        # until their devices have caught up
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._trains, self._step, self._vote = True, trainer.global_step, None
        self._first_step = trainer.global_step

    @property
    def has_advanced(self) -> bool:
        """Whether this process has made a step of the training."""
        return self._first_step is not None and self._step > self._first_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Agree, and save where a resumed run continues exactly; an epoch's end saves by itself."""
        if trainer.global_step == self._step or self._agreed:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        self._agreed = self._agree(trainer)
        checkpoint = trainer.checkpoint_callback
        if self._agreed and isinstance(checkpoint, RunCheckpoint) and not trainer.is_last_batch:
            checkpoint.save_last(trainer)

    def on_train_batch_start(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """End here, where the validation and what follows a step are over."""
        self.end_if_agreed()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Agree on what came since the last step: what follows is not begun."""
        self._trains = False
        self._agreed = self._agreed or self._agree(trainer)
        if trainer.world_size > 1:
            self._agreed = self._agreed or self._agree(trainer)  # what the first one asked

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        # Lightning's handler starts a broadcast in the midst of whatever the ranks are doing
        _handle(signal.SIGTERM, self._note)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        _handle(signal.SIGTERM, self._note)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        _handle(signal.SIGTERM, self._note)

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        self._trains = False

    def end_if_agreed(self) -> None:
        """Raise where the ranks have agreed to stop.

        Raises:
            SystemExit: With 128 + the signal's number.
        """
        if self._agreed:
            raise SystemExit(128 + self._agreed)

    def _agree(self, trainer: Trainer) -> int:
        """Which signal ends the training on all ranks; 0 if none.

        On several ranks by what each had got a step ago: nobody waits for the present one.
        """
        if trainer.world_size == 1:
            return self._received
        before, own = self._vote, 0 if self._received == 0 else 1
        if self.also is not None and self._received == self.also:
            own = 2
        self._vote = Vote(own, trainer.strategy.root_device)
        highest = 0 if before is None else before.highest()
        return (0, int(signal.SIGTERM), int(self.also or 0))[highest]

    def _note(self, number: int, _: Any) -> None:
        is_worker = os.getpid() != self._process  # SLURM signals those that load data, too
        if (is_worker and number == signal.SIGTERM) or not (is_worker or self._trains):
            raise SystemExit(128 + number)
        self._received = number


def _handle(number: signal.Signals, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # nowhere else may one
        signal.signal(number, handler)
