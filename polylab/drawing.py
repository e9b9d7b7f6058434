"""Figures of a finished run's routing, for notebooks: `run.figure`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from polylab.callbacks.allocations import Allocations, AllocationSource
from polylab.callbacks.routers import Routers
from polylab.callbacks.scene import Scene
from polylab.callbacks.subject import Subject
from polylab.config.suggest import hint, listing
from polylab.reporting.reading import Folder
from polylab.reporting.snapshots import final_snapshot

if TYPE_CHECKING:
    from polylab.runs import Run

__all__ = ["KINDS", "draw"]

KINDS = ("allocation", "by_layer", "task_hierarchy", "task_similarity", "layers")


def draw(run: Run, kind: str, *, layer: str | None, split: int | None) -> Figure:
    """As `Run.figure`.

    Raises:
        ValueError: As `Run.figure`.
    """
    from polylab.runs import find_layer

    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is no figure{hint(kind, KINDS)} · valid: {listing(KINDS)}")
    subject = _subject(run)
    if layer is not None:
        name = find_layer(layer, list(subject.of_layers))
        subject = subject.only(layer=subject.of_layers[name])
    if split is not None:
        heads = min(w.shape[1] for w in subject.weights.values())
        if not 0 <= split < heads:
            raise ValueError(f"split={split}: give a head from 0 to {heads - 1}.")
        subject = subject.only(split=split)
        subject = replace(subject, remarks=[*subject.remarks, f"head {split} of {heads}"])
    return getattr(Scene(subject, f"of {run.folder.resolve().name}"), kind)()


def _subject(run: Run) -> Subject:
    routers = Routers.of(run.model)
    source = AllocationSource.of(run.model)
    seen = None if source.is_input_routed else source.read()
    if seen is not None:
        return Subject.of(seen, routers, tasks=run.tasks)
    folder = Folder(run.folder)
    kept = final_snapshot(folder)
    if kept is None:
        raise ValueError(
            f"{run.folder} is routed by the input, and holds no allocation that was seen in its "
            "validations (allocations/*.safetensors, skills.csv) · train with callbacks.history "
            f"or callbacks.table · {'; '.join(folder.notes) or 'neither is there'}"
        )
    seen = Allocations(kept.weights, kept.gates, [*range(len(kept.tasks))])
    subject = Subject.of(seen, routers, tasks=kept.tasks)
    remarks = [f"of the {len(routers.of_layers)} layers {len(kept.weights)} were kept"]
    remarks = remarks if len(kept.weights) < len(routers.of_layers) else []
    return replace(subject, is_mean=True, of_means=True, remarks=remarks)
