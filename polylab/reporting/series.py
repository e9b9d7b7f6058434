"""Curves: what was logged over the steps, thinned to what a page can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polylab.reporting.packing import evenly, pack_floats
from polylab.reporting.reading import Folder, number

__all__ = ["history_series", "routing_by_layer", "run_curves"]

POINTS = 400  # of a curve
ALL_POINTS = 160_000  # of a page
SERIES = 400  # curves of a run's page
SWEEP_SERIES, SWEEP_POINTS = 24, 100  # of each run of a sweep's page
LAYERS, LOOKS = 64, 100  # curves of a statistic of the routing, and their points
STATISTICS = ("entropy", "discreteness", "density", "usage_entropy", "effective_skills")
# of single tasks and layers: the first to go where there are too many
_DETAIL = re.compile(r"^(train|val|test)/.+/[^/]+$|^routing/[^/]+/.+$")

Points = tuple[list[float], list[float]]  # steps, values


def history_series(folder: Folder) -> dict[str, Any]:
    """`{"series": [[name, steps, values]], "words": [...]}` of `history.jsonl`."""
    logged = _logged(folder)
    names = sorted(logged, key=lambda name: (bool(_DETAIL.match(name)), name))
    words = []
    if len(names) > SERIES:
        words.append(f"This page holds {SERIES} of {len(names)} logged numbers.")
        names = names[:SERIES]
    points = min(POINTS, ALL_POINTS // max(1, len(names)))
    if any(len(logged[name][0]) > points for name in names):
        words.append(f"Curves of more than {points} points are thinned to that, evenly.")
    return {"series": [[name, *_thinned(logged[name], points)] for name in names], "words": words}


def run_curves(folder: Folder) -> dict[str, list[str]]:
    """`{name: [steps, values]}` in base64, few points of few curves: for one run among many."""
    logged = _logged(folder)
    names = [name for name in sorted(logged) if not _DETAIL.match(name)]
    names.sort(key=lambda name: not name.startswith(("train/loss", "val/", "routing/")))
    curves = {}
    for name in names[:SWEEP_SERIES]:
        steps, values = _thinned(logged[name], SWEEP_POINTS)
        curves[name] = [pack_floats(np.array(steps)), pack_floats(np.array(values))]
    return curves


def _logged(folder: Folder) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for line in folder.json_lines("history.jsonl"):
        step = number(line.get("step"))
        if step is None:
            continue
        for name, value in line.items():
            if name == "step" or isinstance(value, bool | str) or number(value) is None:
                continue
            steps, values = found.setdefault(name, ([], []))
            while steps and steps[-1] > step:  # a killed run was beyond what it went on from
                steps.pop()
                values.pop()
            steps.append(step)
            values.append(float(value))
    return found


def _thinned(points: Points, most: int) -> Points:
    steps, values = points
    kept = evenly(len(steps), most)
    return [steps[i] for i in kept], [float(f"{values[i]:.5g}") for i in kept]


def routing_by_layer(folder: Folder) -> dict[str, Any] | None:
    """`{"steps", "layers", "statistics": {NAME: [layer][step]}, "words"}` of `routing.csv`.

    Layer "" is the mean over layers, and comes first. Values are means over heads.
    """
    columns, rows = folder.table("routing.csv")
    if not rows:
        return None
    if gone := {"step", "layer", "split"} - {*columns}:
        folder.note(f"routing.csv has no column {', '.join(sorted(gone))}, and is left out")
        return None
    kept = [row for row in rows if row["split"] == "" and number(row["step"]) is not None]
    looks = sorted({float(row["step"]) for row in kept})
    layers = sorted({row["layer"] for row in kept}, key=_order([row["layer"] for row in kept]))
    chosen = [layers[i] for i in evenly(len(layers), LAYERS)]
    steps = [looks[i] for i in evenly(len(looks), LOOKS)]
    words = [
        f"This page holds {len(some)} of {len(every)} {what}, evenly spaced."
        for some, every, what in ((chosen, layers, "layers"), (steps, looks, "looks"))
        if len(some) < len(every)
    ]
    present = [name for name in STATISTICS if name in columns]
    tables = {name: _table(kept, name, layers=chosen, steps=steps) for name in present}
    filled = {name: t for name, t in tables.items() if any(v is not None for r in t for v in r)}
    return {"steps": steps, "layers": chosen, "statistics": filled, "words": words}


def _order(names: Sequence[str]) -> Any:
    places = {name: place for place, name in reversed([*enumerate(names)])}
    return lambda name: (name != "", places[name])


def _table(
    rows: Sequence[Mapping[str, str]],
    name: str,
    *,
    layers: Sequence[str],
    steps: Sequence[float],
) -> list[list[float | None]]:
    cells = {(row["layer"], float(row["step"])): number(row[name]) for row in rows}
    return [[cells.get((layer, step)) for step in steps] for layer in layers]
