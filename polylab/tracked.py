"""The end of what a tracker follows, whatever happens; nothing of W&B is imported without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@contextmanager
def finished_logger(logger: "Logger | None", *, folder: Path) -> Iterator[None]:
    """End the W&B run whatever happens, marked as failed if an exception passes.

    Args:
        logger: Of the run.
        folder: Where W&B keeps what it stages.
    """
    from lightning.pytorch.loggers import WandbLogger

    if not isinstance(logger, WandbLogger):  # the others also work where wandb is not installed
        yield
        return
    from polylab.tracking import finish, staged_in

    code = 1
    with staged_in(folder):
        try:
            yield
            code = 0
        finally:
            # a second run in this process would otherwise go on in the first one
            finish(logger, exit_code=code)
