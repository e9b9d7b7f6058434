"""Allocations of a run at the moments it was looked at, one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polylab.reporting.reading import Folder, number

__all__ = ["Look", "Snapshot", "final_snapshot", "looks", "read_look"]

Layers = dict[str, Float[Tensor, "tasks splits skills"]]


@dataclass(frozen=True)
class Look:
    """A file of `allocations/`, before it is read."""

    path: Path
    tag: str
    step: int
    input_routed: bool
    layers_total: int


@dataclass(frozen=True)
class Snapshot:
    """Allocations at one moment; `gates` is empty where the router has none."""

    tag: str
    step: int | None
    tasks: list[str]
    weights: Layers
    gates: Layers


def looks(folder: Folder) -> list[Look]:
    """The files of `allocations/` by step, those of named checkpoints last."""
    found = []
    for path in sorted((folder.path / "allocations").glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                total = sum(name.startswith("weights/") for name in file.keys())  # noqa: SIM118
            found.append(_look(path, about, total))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            folder.note(f"allocations/{path.name} cannot be read, and is left out: {error}")
    return sorted(found, key=lambda look: (not look.tag.startswith("step"), look.step))


def _look(path: Path, about: dict[str, str], total: int) -> Look:
    return Look(
        path,
        about.get("tag", path.stem),
        int(about["step"]),
        about.get("input_routed") == "true",
        int(about.get("layers_total", total)),
    )


def read_look(folder: Folder, look: Look) -> Snapshot | None:
    """The tensors of a file; None and a line in the notes if it is torn or has wrong shapes."""
    try:
        with safe_open(look.path, framework="pt") as file:
            tasks = [str(name) for name in json.loads((file.metadata() or {})["tasks"])]
            parts: dict[str, Layers] = {"weights": {}, "gates": {}}
            for name in file.keys():  # noqa: SIM118
                kind, _, layer = name.partition("/")
                if kind in parts:
                    parts[kind][layer] = file.get_tensor(name).float()
        _check(tasks, parts["weights"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        folder.note(f"allocations/{look.path.name} cannot be read, and is left out: {error}")
        return None
    return Snapshot(look.tag, look.step, tasks, parts["weights"], parts["gates"])


def _check(tasks: list[str], weights: Layers) -> None:
    for layer, w in weights.items():
        if w.dim() != 3 or len(w) != len(tasks):
            raise ValueError(
                f"weights/{layer} has shape {list(w.shape)} and there are {len(tasks)} tasks; "
                "it must be [tasks, splits, skills]"
            )
    if not weights:
        raise ValueError("it has no weights/LAYER")


def final_snapshot(folder: Folder) -> Snapshot | None:
    """The last look of `allocations/`, else what `skills.csv` holds."""
    for look in reversed(looks(folder)):
        if (snapshot := read_look(folder, look)) is not None:
            return snapshot
    return table_snapshot(folder)


def table_snapshot(folder: Folder) -> Snapshot | None:
    """The final allocation as `skills.csv` has it."""
    import pandas

    path = folder.path / "skills.csv"
    if not path.is_file():
        return None
    kinds: dict[str, Any] = {"layer": str, "task": str, "split": int, "skill": int}
    try:
        frame = pandas.read_csv(path, dtype=kinds, keep_default_na=False, na_values={"gate": [""]})
        return _pivot(frame)
    except (OSError, ValueError, KeyError, TypeError) as error:
        folder.note(f"skills.csv cannot be read, and is left out: {' '.join(str(error).split())}")
        return None


def _pivot(frame: Any) -> Snapshot:
    if frame.empty:
        raise ValueError("it has no rows")
    tasks = list(dict.fromkeys(frame["task"]))
    weights: Layers = {}
    gates: Layers = {}
    for layer, part in _by_layer(frame):
        shape = (len(tasks), int(part["split"].max()) + 1, int(part["skill"].max()) + 1)
        if len(part) != np.prod(shape):
            raise ValueError(
                f"layer {layer} has {len(part)} cells; {shape[0]} tasks x {shape[1]} heads x "
                f"{shape[2]} skills make {np.prod(shape)}"
            )
        # the file's rows are tasks, heads, skills from the outside in
        weights[layer] = torch.tensor(part["weight"].to_numpy(np.float32)).view(shape)
        if part["gate"].notna().all():
            gates[layer] = torch.tensor(part["gate"].to_numpy(np.float32)).view(shape)
    return Snapshot("final", None, tasks, weights, gates)


def _by_layer(frame: Any) -> Iterator[tuple[str, Any]]:
    for layer, part in frame.groupby("layer", sort=False):
        if number(part["weight"].sum()) is None:
            raise ValueError(f"layer {layer} has a weight that is no number")
        yield str(layer), part
