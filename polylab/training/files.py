"""Files that are either the old or the new one, never a torn one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Have `write` fill a file beside `path`, then put it in the place of `path` in one step.

    Whatever stops it on the way (kill, full disk, power) leaves the previous file whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a fixed name: what a killed process left is overwritten by the next write
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written in their own folder and then renamed.

    Lightning collects a file in the system's temporary folder and moves it: on another disk that
    is a copy over the old file, which a kill tears, and a refused move is passed over in silence.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to the local `path`.

        Raises:
            TypeError: If `storage_options` are given.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options} has no use here; leave it out.")
        write_atomically(path, lambda file: torch.save(checkpoint, file))
