"""A W&B logger that never ends a run: what fails is said once, in words, and the run goes on."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from wandb.errors import Error
from wandb.sdk.lib.module import unset_globals
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

__all__ = ["PatientWandbLogger", "finish", "staged_in"]

log = logging.getLogger(__name__)

# the server, the network, the disk, and W&B's own process that was killed
_LOST = (Error, OSError, HandleAbandonedError, MailboxClosedError)


class PatientWandbLogger(WandbLogger):
    """Lightning's `WandbLogger` for runs that must not be lost to their tracker.

    A server that does not let the run begin within `init_timeout` seconds makes it an offline run;
    one that does not take all data at the end within `finish_timeout` seconds leaves the rest in
    the run's folder, for `wandb sync`. W&B's process that dies, or a disk that is full, ends the
    tracking and not the training. Each is said once.

    Args:
        init_timeout: Seconds.
        finish_timeout: Seconds.
        log_adapter: Whether the end of a run logs its adapter, final figures and scores as an
            artifact (`log_run_artifact`).
        **arguments: `WandbLogger`'s.

    Raises:
        ValueError: If a timeout is not positive.
    """

    def __init__(
        self,
        *,
        init_timeout: float = 30.0,
        finish_timeout: float = 300.0,
        log_adapter: bool = True,
        **arguments: Any,
    ) -> None:
        for name, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
            if seconds <= 0:
                raise ValueError(f"{name}={seconds} must be above 0 seconds.")
        settings = arguments.pop("settings", None) or wandb.Settings()
        settings.init_timeout, settings.finish_timeout = init_timeout, finish_timeout
        settings.finish_timeout_raises = True
        super().__init__(**arguments, settings=settings)
        self._wandb_init.pop("anonymous", None)  # Lightning sends it, W&B warns that it is gone
        self.log_adapter = log_adapter
        self.is_lost = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which begins with the first look at it."""
        if self.is_lost:
            return _DummyExperiment()
        try:
            return self._begin()
        except _LOST as error:
            self.give_up(error)
            return _DummyExperiment()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self.is_lost:
            return
        try:
            super().log_metrics(metrics, step)
        except _LOST as error:
            self.give_up(error)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        if self.is_lost:
            return
        try:
            super().log_hyperparams(params)
        except _LOST as error:
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """Log nothing more, and say so."""
        if not self.is_lost:
            self.is_lost = True
            log.warning(
                "W&B stopped (%s) · the run goes on without it; its numbers are in history.jsonl "
                "and its figures in figures/",
                _first_line(error),
            )

    def _begin(self) -> Any:
        began = WandbLogger.experiment.fget
        assert began is not None
        try:
            return began(self)
        except _LOST as error:
            if self._wandb_init.get("mode") in ("offline", "disabled"):
                raise
            self._wandb_init["mode"] = "offline"
            self._wandb_init["settings"].mode = "offline"
            log.warning(
                "W&B did not begin the run (%s) · it is logged offline instead, to be uploaded "
                "later with wandb sync",
                _first_line(error),
            )
            return began(self)


@contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Let W&B keep what it stages in the run's `folder`, unless `WANDB_DATA_DIR` is set.

    Offline tables and artifacts wait there for `wandb sync`. W&B's own place is one folder of the
    user for all runs, which nothing ever empties.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb" / "data")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def finish(logger: WandbLogger, *, exit_code: int) -> None:
    """End the W&B run. What could not be uploaded is said, and stays in the run's folder."""
    run = wandb.run
    folder = None if run is None else Path(run.dir).parent
    try:
        wandb.finish(exit_code=exit_code)
    except TimeoutError:
        log.warning(
            "W&B took too long to take all data · upload the rest with: wandb sync %s",
            "" if folder is None else shlex.quote(str(folder)),
        )
    except _LOST as error:
        if isinstance(logger, PatientWandbLogger):
            logger.give_up(error)
        _forget_service()


def _forget_service() -> None:
    """Let the next run of this process, and its exit, not talk to a process that has died."""
    try:
        wandb.teardown()
    except _LOST as error:
        log.debug("W&B's process had died: %s", error)
    unset_globals()  # wandb.run, which the next logger would go on with


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
