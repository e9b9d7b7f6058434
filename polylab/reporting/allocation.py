"""The allocations of a run as a page holds them: aligned, thinned to a budget, quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from polylab.poly.alignment import agreement, align_skills, apply_alignment
from polylab.poly.statistics import task_similarity
from polylab.reporting.packing import evenly, pack
from polylab.reporting.reading import Folder
from polylab.reporting.snapshots import Layers, Look, Snapshot, looks, read_look, table_snapshot

__all__ = ["allocation_contents", "task_tree"]

CELLS = 6_000_000  # of all looks and layers together: 8 MB of text
FINE_CELLS = 750_000  # up to so many, two bytes each
LOOKS = 24
_FEWEST_LOOKS, _ENOUGH_LAYERS = 3, 8
HEADS = 8  # of which there is an aligned mean each

Perms = dict[str, Int64[Tensor, "splits skills"]]


@dataclass(frozen=True)
class _Plan:
    """What of a run goes into the page."""

    layers: list[str]
    heads: int  # of the aligned mean, 0 = only the mean over all
    bits: int
    words: list[str]


def allocation_contents(folder: Folder) -> dict[str, Any] | None:
    """Allocations of every look that fits, the order of skills that aligns layers, the hierarchy.

    The last look's alignment holds for all looks: a column is the same skills at every step.
    None where the run has neither `allocations/` nor `skills.csv`.
    """
    found = looks(folder)
    last, known = _last(folder, found)
    if last is None:
        return None
    try:
        perms = align_skills(last.weights)
        return _contents(folder, last, perms, known=known)
    except ValueError as error:
        folder.note(f"the allocations cannot be drawn: {error}")
        return None


def _last(folder: Folder, found: list[Look]) -> tuple[Snapshot | None, list[Look]]:
    for place in reversed(range(len(found))):
        if (snapshot := read_look(folder, found[place])) is not None:
            return snapshot, found[: place + 1]
    snapshot = table_snapshot(folder)
    if snapshot is not None:
        folder.note(
            "there is no allocations/ to read, so the map shows skills.csv: the end of the run "
            "only, without earlier steps"
        )
    return snapshot, []


def _contents(folder: Folder, last: Snapshot, perms: Perms, *, known: list[Look]) -> dict[str, Any]:
    n_skills = next(iter(last.weights.values())).shape[2]
    chosen, plan = _plan(last, known)
    snapshots = [_packed(last, perms, plan)]
    for look in reversed(chosen[:-1]):
        snapshot = read_look(folder, look)
        if snapshot is None:
            continue
        if snapshot.tasks != last.tasks or not _same_shapes(snapshot, last):
            folder.note(f"allocations/{look.path.name} has other tasks or layers, and is left out")
            continue
        snapshots.insert(0, _packed(snapshot, perms, plan))
    splits = [last.weights[name].shape[1] for name in plan.layers]
    return {
        "tasks": last.tasks,
        "skills": n_skills,
        "layers": plan.layers,
        "splits": splits,
        "heads": plan.heads,
        "bits": plan.bits,
        "perms": [perms[name].tolist() for name in plan.layers],
        "gated": last.gates.keys() >= last.weights.keys(),
        "looks": snapshots,
        "tree": task_tree(last.weights),
        "words": plan.words + _words_of(known),
    }


def _words_of(known: Sequence[Look]) -> list[str]:
    if known and known[-1].input_routed:
        return ["This adapter is routed by its input: a row is the mean over examples of the task."]
    return []


def _same_shapes(one: Snapshot, other: Snapshot) -> bool:
    return {n: w.shape for n, w in one.weights.items()} == {
        n: w.shape for n, w in other.weights.items()
    }


def _plan(last: Snapshot, known: list[Look]) -> tuple[list[Look], _Plan]:
    """Fewer looks while layers would be left out, then fewer layers."""
    names = list(last.weights)
    splits = [last.weights[name].shape[1] for name in names]
    heads = splits[0] if len({*splits}) == 1 and 1 < splits[0] <= HEADS else 0
    tasks, _, skills = last.weights[names[0]].shape
    cells = tasks * skills * (2 if last.gates else 1)
    count = min(len(known), LOOKS) or 1
    fits = 0
    while True:
        left = CELLS // count // cells - 1 - heads
        fits = max(0, left) // max(splits)
        if fits >= min(len(names), _ENOUGH_LAYERS) or count <= _FEWEST_LOOKS:
            break
        count = max(_FEWEST_LOOKS, count // 2)
    layers = [names[i] for i in evenly(len(names), fits)] if fits else []
    total = count * cells * (1 + heads + len(layers) * max(splits))
    kept = [known[i] for i in evenly(len(known), count)]
    words = _words(last, known, kept=len(kept), layers=len(layers), bits=total <= FINE_CELLS)
    return kept, _Plan(layers, heads, 16 if total <= FINE_CELLS else 8, words)


def _words(
    last: Snapshot, known: Sequence[Look], *, kept: int, layers: int, bits: bool
) -> list[str]:
    words = []
    total = known[-1].layers_total if known else len(last.weights)
    if len(last.weights) < total:
        words.append(f"The files hold {len(last.weights)} of {total} layers, evenly spaced.")
    if layers < len(last.weights):
        words.append(
            f"This page holds {layers} of {len(last.weights)} layers, evenly spaced; the aligned "
            "mean is over all of them."
        )
    if known and kept < len(known):
        words.append(f"This page holds {kept} of {len(known)} looks, evenly spaced.")
    if not bits:
        words.append("Values are rounded to 1/255.")
    return words


def _packed(snapshot: Snapshot, perms: Perms, plan: _Plan) -> dict[str, Any]:
    aligned = apply_alignment(snapshot.weights, perms)
    alike = agreement(aligned)
    parts: dict[str, Any] = {
        "tag": snapshot.tag,
        "step": snapshot.step,
        "agreement": None if np.isnan(alike) else round(alike, 4),
    }
    for kind, values in (("weights", snapshot.weights), ("gates", snapshot.gates)):
        if values.keys() >= snapshot.weights.keys():
            means = _means(apply_alignment(values, perms), plan.heads)
            own = [values[name].flatten() for name in plan.layers]
            flat = torch.cat([*[mean.flatten() for mean in means], *own])
            parts[kind] = pack(flat.numpy(), bits=plan.bits)
    return parts


def _means(aligned: Layers, heads: int) -> list[Tensor]:
    """Over all layers and heads, then over the layers for each head."""
    every = torch.cat([*aligned.values()], dim=1)
    of_head = [torch.stack([w[:, q] for w in aligned.values()]).mean(0) for q in range(heads)]
    return [every.mean(1), *of_head]


def task_tree(weights: Layers) -> dict[str, Any] | None:
    """Order of the tasks and merges `[a, b, distance]` of their hierarchy; None for one task.

    No merges where all tasks are routed alike.
    """
    if len(next(iter(weights.values()))) < 2:
        return None
    from polylab.callbacks.figures.order import cluster_tasks, is_flat, tree_order

    similarity = task_similarity({name: w.float() for name, w in weights.items()})
    merges = cluster_tasks(similarity.double().numpy())
    forks = [] if is_flat(merges) else merges
    joined = [[int(a), int(b), round(float(d), 5)] for a, b, d, _ in forks]
    return {"order": [*tree_order(merges)], "merges": joined}
