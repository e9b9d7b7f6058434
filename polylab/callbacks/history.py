"""The allocations through a run, on disk: what a report draws from, without W&B."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save
from torch import Tensor

from polylab.callbacks.base import AllocationCallback, Moment, Sight, run_folder, task_names
from polylab.callbacks.seen import Allocations
from polylab.callbacks.spacing import evenly_spaced
from polylab.poly.statistics import mean_over_heads, mean_over_layers
from polylab.training.files import write_atomically

__all__ = ["ROUTING_COLUMNS", "AllocationHistory"]

log = logging.getLogger(__name__)

_STATISTICS = ["entropy", "discreteness", "density", "usage_entropy", "effective_skills"]
ROUTING_COLUMNS = ["step", "layer", "split", *_STATISTICS]
_STEP = "step"  # how the tags of a training's looks begin


class AllocationHistory(AllocationCallback):
    """Writes `FOLDER/allocations/TAG.safetensors` and appends to `FOLDER/routing.csv`.

    At the start, after every validation and at the end; a look at a checkpoint by
    `trainer.validate` gets a file of allocations, and no rows.

    `routing.csv` has `ROUTING_COLUMNS`. `split` is empty in a layer's mean over its heads, `layer`
    too in the mean over the layers; `discreteness` and `density` are empty without gates. Heads
    have rows of their own where a layer has several, and layers x heads are at most `max_heads`.

    A file of allocations has the tensors `weights/LAYER` and `gates/LAYER`, float16
    `[tasks, splits, skills]`, and as metadata `step`, `words`, `tag`, `tasks` (names, JSON),
    `input_routed`, `layers_total`. Above `max_cells` it holds as many whole layers, evenly spaced,
    as fit; of a layer that is too large by itself some heads, of a head some tasks. A training
    keeps at most `max_files` of them, the first and the last among these: the one that leaves the
    smallest gap between its neighbours is deleted.

    A training that is continued, or begun anew, in the folder first drops what is there of steps
    that it has not reached yet.

    Args:
        folder: The run's folder; the trainer's `default_root_dir` if None.
        max_cells: Of a file.
        max_files: Of a training; 0 writes none.
        max_heads: Of a look in `routing.csv`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        max_cells: int = 2_000_000,
        max_files: int = 64,
        max_heads: int = 1024,
    ) -> None:
        if max_cells < 1:
            raise ValueError(f"max_cells={max_cells} must be 1 or more.")
        if max_files < 2 and max_files != 0:
            raise ValueError(f"max_files={max_files} must be 2 (first and last) or more, or 0.")
        if max_heads < 0:
            raise ValueError(f"max_heads={max_heads} must be 0 (no rows of heads) or more.")
        self._folder = folder
        self._max_cells, self._max_files, self._max_heads = max_cells, max_files, max_heads
        self._seen_step: int | None = None
        self._has_warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what the folder knows of later steps, then look."""
        self._seen_step = None
        folder = run_folder(trainer, self._folder)
        if folder is not None and self._source is not None:
            # an input router has no look at the start to write the present step's rows anew
            step = trainer.global_step
            _forget(folder, step, keep_rows=self._source.is_input_routed)
        super().on_train_start(trainer, pl_module)

    @rank_zero_only
    def see(self, trainer: Trainer, pl_module: LightningModule, sight: Sight) -> None:  # noqa: ARG002
        folder = run_folder(trainer, self._folder)
        step, trains = trainer.global_step, sight.moment is not Moment.CHECKPOINT
        if folder is None or (trains and step == self._seen_step):
            return
        if trains:
            self._seen_step = step
            _append(folder / "routing.csv", self._rows(step, sight.allocations))
        if self._max_files:
            self._save(trainer, folder / "allocations", sight)
            _thin(folder / "allocations", self._max_files)

    def _rows(self, step: int, seen: Allocations) -> Iterator[list[str | int]]:
        layers = {name: mean_over_heads(heads) for name, heads in seen.heads.items()}
        overall = {name: mean_over_layers(means) for name, means in layers.items()}
        yield [step, "", "", *_cells(overall)]
        sizes = {name: len(own) for name, own in seen.heads["entropy"].items()}
        has_heads = max(sizes.values()) > 1 and sum(sizes.values()) <= self._max_heads
        for layer, n_splits in sizes.items():
            yield [step, layer, "", *_cells({n: means[layer] for n, means in layers.items()})]
            for split in range(n_splits if has_heads else 0):
                own = {name: heads[layer][split].item() for name, heads in seen.heads.items()}
                yield [step, layer, split, *_cells(own)]

    def _save(self, trainer: Trainer, folder: Path, sight: Sight) -> None:
        seen = sight.allocations
        layers, splits, rows = self._choose(seen)
        tensors: dict[str, Tensor] = {}
        for kind, held in (("weights", seen.weights), ("gates", seen.gates)):
            for layer in layers:
                if layer in held:
                    part = held[layer] if splits is None else held[layer][:, splits]
                    part = part if rows is None else part[rows]
                    # layers that share a router share a tensor, which safetensors refuses
                    tensors[f"{kind}/{layer}"] = part.to(torch.float16, copy=True).contiguous()
        names = task_names(trainer, seen.task_ids)
        about = {
            "step": str(trainer.global_step),
            "words": sight.words,
            "tag": sight.tag,
            "tasks": json.dumps(names if rows is None else [names[i] for i in rows]),
            "input_routed": str(seen.examples is not None).lower(),
            "layers_total": str(len(seen.weights)),
        }
        file = save(tensors, about)
        write_atomically(folder / f"{sight.tag}.safetensors", lambda to: to.write(file))

    def _choose(self, seen: Allocations) -> tuple[list[str], list[int] | None, list[int] | None]:
        """Layers to keep, and where one layer is too much, which heads and tasks of it."""
        n_tasks, n_splits, n_skills = max((w.shape for w in seen.weights.values()), key=_product)
        kinds = 2 if seen.gates else 1
        head = n_tasks * n_skills * kinds
        layers = evenly_spaced([*seen.weights], max(1, self._max_cells // (head * n_splits)))
        splits = rows = None
        if head * n_splits > self._max_cells:
            splits = evenly_spaced([*range(n_splits)], max(1, self._max_cells // head))
        if head > self._max_cells:
            most = max(1, self._max_cells // (n_skills * kinds))
            rows = evenly_spaced([*range(n_tasks)], most)
        if len(layers) < len(seen.weights) and not self._has_warned:
            self._has_warned = True
            log.info(
                "allocations/ holds %d of %d layers (at most %d cells a file)",
                len(layers), len(seen.weights), self._max_cells,
            )  # fmt: skip
        return layers, splits, rows


def _product(shape: Iterable[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _cells(values: dict[str, float]) -> list[str]:
    return [f"{values[name]:.6g}" if name in values else "" for name in _STATISTICS]


def _append(path: Path, rows: Iterable[list[str | int]]) -> None:
    """Add rows in one write: a kill leaves at most one torn line, which the next start drops."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        writer.writerow(ROUTING_COLUMNS)
    writer.writerows(rows)
    with path.open("ab") as file:
        file.write(text.getvalue().encode())


def _forget(folder: Path, step: int, *, keep_rows: bool) -> None:
    """Drop files and rows of steps after this one, its own rows too unless kept.

    At step 0 every file.
    """
    table = folder / "routing.csv"
    if table.exists():
        lines = table.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines[1:] if _step_of(line) < step + keep_rows]
        if kept:
            write_atomically(table, lambda to: to.write(b"".join([lines[0], *kept])))
        else:
            table.unlink()
    for file in [*(folder / "allocations").glob("*.safetensors")]:
        tag = file.stem.removeprefix(_STEP)
        if step == 0 or (tag.isdecimal() and int(tag) > step):
            file.unlink()


def _step_of(line: bytes) -> float:
    """Infinite for a torn line."""
    first = line.split(b",", 1)[0]
    return int(first) if first.isdigit() and line.endswith(b"\n") else float("inf")


def _thin(folder: Path, most: int) -> None:
    """Delete files of a training until `most` are left, the first and the last among them."""
    files = {int(f.stem.removeprefix(_STEP)): f for f in folder.glob(f"{_STEP}*.safetensors")
             if f.stem.removeprefix(_STEP).isdecimal()}  # fmt: skip
    steps = sorted(files)
    while len(steps) > most:
        gaps = [after - before for before, after in zip(steps, steps[2:], strict=False)]
        files[steps.pop(1 + gaps.index(min(gaps)))].unlink()
