"""Every logged number in the run's folder: `history.jsonl`, for whoever has no tracker at hand."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["FILE_NAME", "HistoryLogger"]

FILE_NAME = "history.jsonl"


class HistoryLogger(Logger):
    """Appends one line for each call of `log_metrics` to `FOLDER/history.jsonl`.

    A line is `{"step": 300, "seconds": 12.34, "train/loss": 1.2, ...}`; seconds count from the
    first line that this process wrote. Lines are only ever added, each in one write, so that a
    killed run keeps all but a torn last one. What is not a finite number is left out.

    Args:
        folder: The run's; made when the first line is written.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self._path = Path(folder) / FILE_NAME
        self._began: float | None = None

    @property
    def name(self) -> None:
        """None: the run's folder has its name."""

    @property
    def save_dir(self) -> str:
        """The run's folder, which Lightning takes for `trainer.log_dir`."""
        return str(self._path.parent)

    @property
    def version(self) -> None:
        """None: the run's folder has its date."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write the numbers among `metrics` down."""
        numbers = {key: float(value) for key, value in metrics.items() if _is_number(value)}
        found = {key: value for key, value in numbers.items() if math.isfinite(value)}
        found.pop("epoch", None)
        if not found:
            return
        now = time.monotonic()
        if self._began is None:
            self._begin()
            self._began = now
        line = {"step": step, "seconds": round(now - self._began, 3), **found}
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` has them."""

    def _begin(self) -> None:
        """Make the folder, and end the line that a killed process may have torn."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")


def _is_number(value: Any) -> bool:
    if isinstance(value, Real):
        return True
    return getattr(value, "numel", lambda: 0)() == 1
