"""What a figure says of its subject: names, layers and heads, what must be known to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from polylab.callbacks.figures.by_layer import short_layer_names

if TYPE_CHECKING:
    from polylab.callbacks.subject import Subject

__all__ = ["layer_names", "layer_notes", "notes", "over", "part", "skill_names", "weight_words"]

_Layers = Mapping[str, Float[Tensor, "tasks splits skills"]]


def skill_names(subject: Subject) -> list[str]:
    """Columns of a map; a task's own skills are one."""
    # the numbers of align_skills, so that `routing=drop:SKILL` takes them
    names = [f"skill {k}" for k in range(subject.n_shared)]
    return [*names, "private"] if subject.n_private else names


def weight_words(subject: Subject) -> str:
    """What a map shows."""
    times = f"normalised weight x {subject.n_usable}"
    return f"mean {times} of validation inputs" if subject.is_mean else times


def notes(subject: Subject) -> list[str]:
    """What must be known to read any figure of it."""
    if subject.given:
        return [*subject.remarks, subject.given]
    if subject.n_usable == 1:
        return [*subject.remarks, "there is one skill, so nothing to choose"]
    if not subject.n_private:
        return [*subject.remarks]
    own = "its own one ('private')"
    if subject.n_private > 1:
        own = f"its {subject.n_private} own ones ('private' is their mean)"
    return [*subject.remarks, f"a task may use {subject.n_shared} shared skills and {own}"]


def layer_names(subject: Subject) -> dict[str, str]:
    """Of each router a short name: its layer, or what its layers have in common."""
    groups: dict[str, list[list[str]]] = {name: [] for name in subject.weights}
    for layer, own in subject.of_layers.items():
        groups[own].append(layer.split("."))
    common = [_shared_part(own) for own in groups.values()]
    short = short_layer_names(common) if len({*common}) == len(common) else [*subject.weights]
    return {
        name: f"{words or 'all layers'} ({len(own)})" if len(own) > 1 else words
        for (name, own), words in zip(groups.items(), short, strict=True)
    }


def layer_notes(subject: Subject) -> list[str]:
    """What must be known of the names of layers."""
    if 1 < len(subject.weights) < subject.n_layers:
        return ["(n) behind a name: so many layers share one router"]
    return []


def part(subject: Subject, layers: Sequence[str], heads: Mapping[str, Sequence[int]]) -> str:
    """Which of the layers and heads these are."""
    words, total = _all_layers(subject), len(subject.weights)
    if 1 < total != len(layers):
        words = f"{len(layers)} of {words}"
    shown = max(len(heads[name]) for name in layers)
    if subject.n_heads == 1:
        return words
    some = f"{shown} of" if shown < subject.n_heads else "all"
    return f"{words}, {some} {subject.n_heads} heads"


def over(subject: Subject, layers: _Layers) -> str:
    """Of which layers and heads a number is that was made from `layers`."""
    shown, every = sum(w.shape[1] for w in layers.values()), len(subject.units)
    if shown < every:
        return f"{shown} of {every:,} (layer, head) pairs, evenly spaced"
    heads = f" x {subject.n_heads} heads" if subject.n_heads > 1 else ""
    return _all_layers(subject) + heads


def _all_layers(subject: Subject) -> str:
    routers, layers = len(subject.weights), subject.n_layers
    if layers == 1:
        return f"layer {next(iter(subject.weights))}"
    if routers == 1:
        return f"the one router of {layers} layers"
    return f"{routers} routers of {layers} layers" if routers < layers else f"{layers} layers"


def _shared_part(layers: Sequence[Sequence[str]]) -> str:
    """The dotted parts that all names begin with."""
    parts = []
    for own in zip(*layers, strict=False):
        if len({*own}) > 1:
            break
        parts.append(own[0])
    return ".".join(parts)
