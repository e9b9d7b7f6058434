"""What the page of a sweep holds: a row, curves and an aligned map of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polylab.poly.alignment import agreement, align_skills, aligned_mean, apply_alignment
from polylab.reporting.allocation import task_tree
from polylab.reporting.packing import evenly, pack
from polylab.reporting.reading import Folder, number
from polylab.reporting.run import duration, flat
from polylab.reporting.series import run_curves
from polylab.reporting.snapshots import Snapshot, final_snapshot

__all__ = ["sweep_contents"]

MAP_CELLS = 4_000_000
ORDERING = 16  # runs that the order of tasks is found from
_PLACES = ("job", "folder")  # columns that tell runs apart and are shown first
# of each run, and no setting: they differ without meaning anything
_OWN = ("logger.", "ckpt_path", "hydra.", "callbacks.")


def sweep_contents(
    folder: Folder, columns: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Everything that the folder of a sweep has to show, from its `results.csv` and its jobs."""
    runs = [_run(folder, row) for row in rows]
    present = [run for run in runs if run.path.is_dir()]
    if len(present) < len(runs):
        gone = [_name(folder, run) for run in runs if not run.path.is_dir()]
        folder.note(f"{len(gone)} of {len(runs)} job folders are not there: {_some(gone)}")
    contents = {
        "kind": "sweep",
        "title": folder.path.resolve().name,
        "facts": _facts(rows),
        "columns": _ordered(columns, rows),
        "rows": [[_cell(row[c]) for c in _ordered(columns, rows)] for row in rows],
        "varying": _varying(columns, rows),
        "curves": [run_curves(run) for run in runs],
        "maps": _maps(folder, runs),
        "config": _differences([dict(flat(run.yaml("config.yaml"))) for run in runs], skip=_OWN),
        "environment": _differences([dict(flat(run.json("environment.json"))) for run in runs]),
    }
    for run in present:
        for line in run.notes:
            folder.note(f"{_name(folder, run)}/{line}")
    return contents


def _run(folder: Folder, row: Mapping[str, str]) -> Folder:
    place = Path(row["folder"])
    is_inside = bool(place.parts) and not place.is_absolute() and ".." not in place.parts
    return Folder(folder.path / (place if is_inside else "-"))


def _name(folder: Folder, run: Folder) -> str:
    return run.path.relative_to(folder.path).as_posix()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _facts(rows: Sequence[Mapping[str, str]]) -> list[list[Any]]:
    done = sum(row["status"] == "completed" for row in rows)
    seconds = [value for row in rows if (value := number(row.get("seconds"))) is not None]
    facts = [["runs", len(rows)], ["completed", done], ["not completed", len(rows) - done]]
    return facts + ([["time of all runs", duration(sum(seconds))]] if seconds else [])


def _varying(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    return [c for c in columns if len({row[c] for row in rows}) > 1 or len(rows) == 1]


def _ordered(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What tells runs apart, what varies, and then what is the same in all of them."""
    varying = {*_varying(columns, rows)}
    head = [c for c in (*_PLACES, "status") if c in columns]
    rest = [c for c in columns if c not in head]
    return [*head, *(c for c in rest if c in varying), *(c for c in rest if c not in varying)]


def _cell(text: str) -> float | str | None:
    value = number(text)
    return text or None if value is None else value


def _maps(folder: Folder, runs: Sequence[Folder]) -> dict[str, Any]:
    """The last aligned mean of each run; skills in one order among runs of equal size."""
    groups: dict[tuple[int, tuple[str, ...]], dict[int, Tensor]] = {}
    for place, run in enumerate(runs):
        snapshot = final_snapshot(run)
        if snapshot is not None and (mean := _mean(run, snapshot)) is not None:
            key = (mean.shape[1], tuple(snapshot.tasks))
            groups.setdefault(key, {})[place] = mean
    kept = _fitting(folder, groups)
    return {"groups": [_group(key, means) for key, means in kept.items()]}


def _mean(run: Folder, snapshot: Snapshot) -> Float[Tensor, "tasks skills"] | None:
    try:
        return aligned_mean(snapshot.weights)[0]
    except ValueError as error:
        run.note(f"the allocations cannot be drawn: {error}")
        return None


def _fitting(folder: Folder, groups: dict[Any, dict[int, Tensor]]) -> dict[Any, dict[int, Tensor]]:
    cells = sum(mean.numel() for means in groups.values() for mean in means.values())
    if cells <= MAP_CELLS:
        return groups
    kept = {}
    for key, means in groups.items():
        places = [*means]
        some = evenly(len(places), max(1, len(places) * MAP_CELLS // cells))
        kept[key] = {places[i]: means[places[i]] for i in some}
    count = sum(map(len, kept.values()))
    total = sum(map(len, groups.values()))
    folder.note(f"this page holds the allocation maps of {count} of {total} runs, evenly spaced")
    return kept


def _group(key: tuple[int, tuple[str, ...]], means: Mapping[int, Tensor]) -> dict[str, Any]:
    named = {str(place): mean[:, None] for place, mean in means.items()}
    aligned = apply_alignment(named, align_skills(named))
    alike = agreement(aligned)
    return {
        "skills": key[0],
        "tasks": [*key[1]],
        "order": _task_order(aligned),
        "agreement": None if np.isnan(alike) else round(alike, 4),
        "runs": {place: pack(w.numpy(), bits=8) for place, w in aligned.items()},
    }


def _task_order(aligned: Mapping[str, Tensor]) -> list[int]:
    """Tasks by the hierarchy over several runs together."""
    names = [*aligned]
    tree = task_tree({names[i]: aligned[names[i]] for i in evenly(len(names), ORDERING)})
    return [*range(len(aligned[names[0]]))] if tree is None else tree["order"]


def _differences(
    nodes: Sequence[Mapping[str, Any]], *, skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Keys whose values differ between runs, with all values; and those that all share."""
    known = [node for node in nodes if node]
    keys = list(dict.fromkeys(key for node in known for key in node))
    differ, same = [], []
    for key in keys:
        values = [None if not node else str(node.get(key)) for node in nodes]
        if len({value for value in values if value is not None}) <= 1:
            same.append([key, known[0].get(key)])
        elif not key.startswith(skip):
            differ.append([key, values])
    return {"differ": differ, "same": same}
