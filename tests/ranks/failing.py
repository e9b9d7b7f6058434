"""A callback under which a rank fails, in one of the ways in which ranks do."""

import os
import signal
import time

from lightning.pytorch import Callback


class Fail(Callback):
    """Fails `rank` in the hook `where` as `how` says, at the first step or later.

    Others with `stuck` wait then, as in a collective of a backend that does not notice.
    """

    def __init__(self, *, rank: int, how: str, where: str = "step", stuck: bool = False) -> None:
        if where == "init" and os.environ.get("LOCAL_RANK") == str(rank):
            raise ValueError(f"rank {rank} has no such file")
        self._rank, self._how, self._where, self._stuck = rank, how, where, stuck

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # noqa: ARG002
        if self._where == "step" and trainer.global_step == 2:
            self._fail(trainer)

    def on_validation_batch_end(self, trainer, pl_module, *_) -> None:  # noqa: ARG002
        if self._where == "validation" and trainer.global_step:
            self._fail(trainer)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:  # noqa: ARG002
        if self._where == "look" and trainer.is_global_zero and trainer.global_step:
            self._fail(trainer)

    def on_exception(self, trainer, pl_module, exception) -> None:  # noqa: ARG002
        if self._how == "hang" and trainer.global_rank == self._rank:
            time.sleep(1000)

    def _fail(self, trainer) -> None:
        if trainer.global_rank != self._rank:
            if self._stuck:
                time.sleep(1000)
            return
        if self._how == "pause":
            if os.fork() == 0:  # who wakes it
                time.sleep(2)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "exit":
            os._exit(7)
        if self._how == "disk":
            raise OSError(28, "No space left on device")
        raise ValueError(f"step {trainer.global_step} of rank {self._rank} went wrong")
