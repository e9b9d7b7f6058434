"""The final allocation in long form: `skills.csv`, and a table in W&B."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
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
_LAYER = "\0"  # where its name comes
_TYPES = [str, int, str, int, float, float]


class SkillTable(AllocationCallback):
    """Writes `FOLDER/skills.csv` and logs `skills/table` at the end of the training.

    A later `trainer.validate` with other weights (say the best ones) writes and logs them again.
    Skills are numbered within their layer and head, not aligned.

    Args:
        folder: The run's folder; the trainer's `default_root_dir` if None.
        max_rows: Of the table in W&B; above it the table holds as many whole layers, evenly
            spaced, as fit, and where not even one does, some of its tasks, evenly spaced (one at
            least). What was left out is said. The file holds all.

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
            _write_csv(folder / "skills.csv", seen, names)
        if has_wandb(trainer):
            self._log(trainer, seen, names)

    def _log(self, trainer: Trainer, seen: Allocations, names: list[str]) -> None:
        import wandb

        layers, tasks = choose_rows(seen, self._max_rows)
        n_layers, n_tasks = len(seen.weights), len(names)
        if len(layers) < n_layers or len(tasks) < n_tasks:
            log.info(
                "skills/table in W&B holds %d of %d layers and %d of %d tasks, evenly spaced "
                "(callbacks.table.max_rows=%d); skills.csv holds all",
                *(len(layers), n_layers, len(tasks), n_tasks, self._max_rows),
            )
        rows = allocation_rows(seen, names, layers=layers, tasks=tasks)
        cells: list[Any] = [[*row] for row in rows]
        with _long_tables(len(cells)):
            # with types given, W&B does not infer them row by row
            table = wandb.Table(
                columns=[*COLUMNS], data=cells, dtype=_TYPES, optional=[*[False] * 5, True]
            )
            log_media(trainer, {"skills/table": table})


def choose_rows(seen: Allocations, most: int) -> tuple[list[str], list[int]]:
    """The layers and the positions of the tasks that a table of at most `most` rows holds."""
    rows = max(w.numel() for w in seen.weights.values())
    n_tasks = len(seen.task_ids)
    layers = evenly_spaced(list(seen.weights), max(1, most // rows))
    if rows <= most:
        return layers, [*range(n_tasks)]
    return layers, evenly_spaced(range(n_tasks), max(1, most * n_tasks // rows))


def allocation_rows(
    seen: Allocations,
    names: list[str],
    *,
    layers: list[str] | None = None,
    tasks: Sequence[int] | None = None,
) -> Iterator[tuple[str, int, str, int, float, float | None]]:
    """One row of `COLUMNS` for every cell; `gate` is None without gates.

    Args:
        seen: What to list.
        names: Of its tasks.
        layers: Only these; all if None.
        tasks: Only those at these positions; all if None.
    """
    for layer in layers or list(seen.weights):
        weights = seen.weights[layer]
        n_tasks, n_splits, n_skills = weights.shape
        kept = [*(range(n_tasks) if tasks is None else tasks)]
        flat = weights[kept].flatten().tolist()
        gates = [None] * len(flat)
        if layer in seen.gates:
            gates = seen.gates[layer][kept].flatten().tolist()
        cells = product(kept, range(n_splits), range(n_skills))
        for (task, split, skill), weight, gate in zip(cells, flat, gates, strict=True):
            yield layer, split, names[task], skill, weight, gate


def _write_csv(path: Path, seen: Allocations, names: list[str]) -> None:
    """The rows of `allocation_rows`: of each layer in one operation, since there may be millions.

    Layers of one shape have the same rows but for their name and numbers.
    """
    tasks = [_field(name) for name in names]
    forms: dict[tuple[object, bool], str] = {}
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(",".join(COLUMNS) + "\n")
        for layer, weights in seen.weights.items():
            gates = seen.gates.get(layer)
            kind = weights.shape, gates is not None
            if kind not in forms:
                forms[kind] = _form(tasks, *weights.shape[1:], has_gates=gates is not None)
            numbers = [weights] if gates is None else [weights, gates]
            cells = torch.stack(numbers, dim=-1).flatten().tolist()
            name = _field(layer).replace("%", "%%")
            file.write(forms[kind].replace(_LAYER, name) % tuple(cells))


def _form(tasks: list[str], n_splits: int, n_skills: int, *, has_gates: bool) -> str:
    """All rows of a layer, with places for its name and its numbers."""
    end = "%.6g,%.6g\n" if has_gates else "%.6g,\n"
    return "".join(
        f"{_LAYER},{split},{task.replace('%', '%%')},{skill},{end}"
        for task, split, skill in product(tasks, range(n_splits), range(n_skills))
    )


def _field(value: str) -> str:
    """As it stands in a CSV file: quoted where it has to be."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([value, ""])
    return text.getvalue().removesuffix(",\n")


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
