"""The final allocation in long form: `skills.csv`, and a table in W&B."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from polylab.callbacks.allocations import Allocations
from polylab.callbacks.base import (
    AllocationCallback,
    Sight,
    has_wandb,
    log_media,
    run_folder,
    task_names,
)
from polylab.callbacks.spacing import evenly_spaced

__all__ = ["COLUMNS", "SkillTable", "allocation_rows"]

log = logging.getLogger(__name__)

COLUMNS = ["layer", "split", "task", "skill", "weight", "gate"]
_TYPES = [str, int, str, int, float, float]


class SkillTable(AllocationCallback):
    """Writes `FOLDER/skills.csv` and logs `skills/table` at the end of the training.

    A later `trainer.validate` with other weights (say the best ones) writes and logs them again.
    Skills are numbered within their layer and head, not aligned.

    Args:
        folder: The run's folder; the trainer's `default_root_dir` if None.
        max_rows: Of the table in W&B; above it the table holds as many whole layers, evenly
            spaced, as fit. The file holds all.

    Raises:
        ValueError: If `max_rows` is not from 1 to 200,000, the most that W&B keeps.
    """

    def __init__(self, folder: Path | str | None = None, *, max_rows: int = 50_000) -> None:
        if not 1 <= max_rows <= 200_000:
            raise ValueError(f"max_rows={max_rows} must lie in 1 to 200000, the most W&B keeps.")
        self._folder = folder
        self._max_rows = max_rows
        self._written: Allocations | None = None

    @rank_zero_only
    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:  # noqa: ARG002
        seen = sight.allocations
        if not sight.is_final or seen.equals(self._written):
            return
        self._written = seen
        names = task_names(trainer, seen.task_ids)
        folder = run_folder(trainer, self._folder)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _write_csv(folder / "skills.csv", allocation_rows(seen, names))
        if has_wandb(trainer):
            self._log(trainer, seen, names)

    def _log(self, trainer: Trainer, seen: Allocations, names: list[str]) -> None:
        import wandb

        rows = max(w.numel() for w in seen.weights.values())
        layers = evenly_spaced(list(seen.weights), max(1, self._max_rows // rows))
        if len(layers) < len(seen.weights):
            log.info("skills/table holds %d of %d layers", len(layers), len(seen.weights))
        cells: list[Any] = [[*row] for row in allocation_rows(seen, names, layers=layers)]
        with _long_tables(len(cells)):
            # with types given, W&B does not infer them row by row
            table = wandb.Table(
                columns=[*COLUMNS], data=cells, dtype=_TYPES, optional=[*[False] * 5, True]
            )
            log_media(trainer, {"skills/table": table})


def allocation_rows(
    seen: Allocations, names: list[str], *, layers: list[str] | None = None
) -> Iterator[tuple[str, int, str, int, float, float | None]]:
    """One row of `COLUMNS` for every cell; `gate` is None without gates.

    Args:
        seen: What to list.
        names: Of its tasks.
        layers: Only these; all if None.
    """
    for layer in layers or list(seen.weights):
        weights = seen.weights[layer]
        n_tasks, n_splits, n_skills = weights.shape
        flat = weights.flatten().tolist()
        gates = seen.gates[layer].flatten().tolist() if layer in seen.gates else [None] * len(flat)
        cells = product(range(n_tasks), range(n_splits), range(n_skills))
        for (task, split, skill), weight, gate in zip(cells, flat, gates, strict=True):
            yield layer, split, names[task], skill, weight, gate


def _write_csv(path: Path, rows: Iterator[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *cell, weight, gate in rows:
            writer.writerow([*cell, f"{weight:.6g}", "" if gate is None else f"{gate:.6g}"])


@contextmanager
def _long_tables(n_rows: int) -> Iterator[None]:
    """Let W&B keep tables of more than its default of 10,000 rows, which it cuts silently."""
    import wandb

    before = wandb.Table.MAX_ROWS
    wandb.Table.MAX_ROWS = max(before, n_rows)  # type: ignore[assignment]
    try:
        yield
    finally:
        wandb.Table.MAX_ROWS = before
