"""What-if changes of a trained routing: `model.routing("uniform")` and the like.

Under an intervention no noise is added, in training mode neither.

`drop:SKILL` divides the other weights by their sum plus `EPS`, so that they add up to 1 again: what
it shows is how well the others do without the skill, not what the skill does by itself. Of a task
that uses this skill alone, the others' weights are scaled up however small they are (a sigmoid is
never 0); where they are all 0 (one-hot rows: `private`, `custom`) there is no update, and the task
is left to the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from polylab.poly.alignment import align_skills
from polylab.poly.routers import CPolyRouter, Router, normalise

__all__ = ["Intervention", "Subject", "parse_intervention"]

_Weights = Float[Tensor, "*batch splits skills"]
_Ids = Int64[Tensor, "*batch"]

_VALID = "learned, uniform, rounded, top1, shuffled, task:NAME_OR_ID, drop:SKILL, drop:LAYER/SKILL"


_Reweigh = Callable[[str, Router, _Ids | None, _Weights], _Weights]


@dataclass(frozen=True)
class Intervention:
    """A change of the ids before the router, or of its weights after it.

    `reweigh` gets the layer's name, its router, the (changed) ids and the weights.
    """

    remap: Callable[[_Ids], _Ids] | None = None
    reweigh: _Reweigh | None = None
    needs_task_ids: bool = True
    """False: the result is the same for all ids, so none need be given."""

    def default_ids(self, batch: int) -> Int64[Tensor, " batch"] | None:
        """Ids for a call without any, where they do not matter."""
        return None if self.needs_task_ids else torch.zeros(batch, dtype=torch.int64)


@dataclass(frozen=True)
class Subject:
    """What an intervention must know about the model it changes.

    Args:
        router: Any layer's router: what kind the model has.
        n_tasks: Number of tasks.
        task_names: Names by id, where known.
        skill_counts: Number of skills of each layer, by its name.
        task_weights: Weights of tasks by layer; called for `drop:SKILL` only.
        can_match: Whether there are any, to match the skills of layers by.
    """

    router: Router
    n_tasks: int
    task_names: Sequence[str] | None
    skill_counts: Mapping[str, int]
    task_weights: Callable[[], Mapping[str, Float[Tensor, "tasks splits skills"]]]
    can_match: bool


def parse_intervention(spec: str, subject: Subject) -> Intervention | None:
    """The intervention that `spec` names; None for `learned`.

    Raises:
        ValueError: If `spec` names no intervention, task, layer or skill of this model.
    """
    kind, _, argument = spec.partition(":")
    if spec == "learned":
        return None
    if spec in _FIXED:
        needs_ids = spec != "uniform" or subject.router.uniform_needs_task_ids
        return Intervention(reweigh=_FIXED[spec], needs_task_ids=needs_ids)
    if spec == "shuffled":
        if subject.router.needs_task_ids:
            return Intervention(remap=_table(_derangement(subject.n_tasks)))
        return Intervention(reweigh=_shift_rows)
    if kind == "task" and argument:
        return Intervention(remap=_constant(_find_task(argument, subject)), needs_task_ids=False)
    if kind == "drop" and argument:
        return Intervention(reweigh=_drop(_dropped_skills(argument, subject)))
    raise ValueError(f"routing {spec!r} is unknown. Valid ones: {_VALID}.")


def _uniform(_layer: str, router: Router, ids: _Ids | None, weights: _Weights) -> _Weights:
    return router.uniform(ids, weights)


def _rounded(_layer: str, router: Router, ids: _Ids | None, weights: _Weights) -> _Weights:
    gates = None if ids is None else router.gates(ids)
    # Without gates a skill counts as active where it weighs at least its uniform share.
    active = weights * weights.shape[-1] >= 1 - 1e-6 if gates is None else gates > 0.5
    return normalise(active.to(weights.dtype))


def _top1(_layer: str, _router: Router, _ids: _Ids | None, weights: _Weights) -> _Weights:
    best = weights.argmax(-1, keepdim=True)
    return torch.zeros_like(weights).scatter(-1, best, 1.0)


def _shift_rows(_layer: str, router: Router, _ids: _Ids | None, weights: _Weights) -> _Weights:
    if router.reads is None:  # the same for all
        return weights
    if len(weights) < 2:
        raise ValueError(
            "routing 'shuffled' of a router by input exchanges the weights of a batch's rows, and "
            "this batch has one. Give at least 2 examples."
        )
    return weights.roll(len(weights) // 2, dims=0)  # by half: beams of one prompt stay apart


_FIXED = {"uniform": _uniform, "rounded": _rounded, "top1": _top1}


def _derangement(n: int) -> Int64[Tensor, " tasks"]:
    """A fixed random permutation that leaves no task in place (for n > 1): one long cycle."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    table = torch.empty_like(order)
    table[order] = order.roll(1)
    return table


def _table(table: Int64[Tensor, " tasks"]) -> Callable[[_Ids], _Ids]:
    return lambda ids: table.to(ids.device)[ids]


def _constant(task: int) -> Callable[[_Ids], _Ids]:
    return lambda ids: torch.full_like(ids, task)


def _find_task(name: str, subject: Subject) -> int:
    if not subject.router.needs_task_ids:
        raise ValueError(f"routing 'task:{name}': this adapter is not routed by task.")
    names = [*(subject.task_names or ())]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < subject.n_tasks:
        return int(name)
    near = get_close_matches(name, names, n=3) or names[:8]
    valid = f"a name (such as {near}) or an id" if names else "an id"
    raise ValueError(
        f"routing 'task:{name}': no task {name!r}. Give {valid} from 0 to {subject.n_tasks - 1}."
    )


def _dropped_skills(
    argument: str, subject: Subject
) -> dict[str, int] | dict[str, Int64[Tensor, " splits"]]:
    """The skill to drop in each layer concerned: one index, or one for each head."""
    where, _, skill = argument.rpartition("/")
    if where:
        layer = _find_layer(where, subject)
        return {layer: _skill_index(skill, subject.skill_counts[layer])}
    if not subject.can_match:
        raise ValueError(
            f"routing 'drop:{skill}': skills of different layers are matched by their tasks, and "
            "this adapter is routed by the input. Give drop:LAYER/SKILL, or task_weights=, mean "
            "weights of some tasks' examples."
        )
    if isinstance(subject.router, CPolyRouter):
        raise ValueError(
            f"routing 'drop:{skill}': matching skills over layers would mix shared and private "
            "ones of c-poly. Give drop:LAYER/SKILL."
        )
    index = _skill_index(skill, min(subject.skill_counts.values()))
    return {layer: perm[:, index] for layer, perm in align_skills(subject.task_weights()).items()}


def _find_layer(name: str, subject: Subject) -> str:
    layers = [*subject.skill_counts]
    if name in layers:
        return name
    found = [layer for layer in layers if layer.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    reason = f"layer {name!r} is ambiguous" if found else f"no layer {name!r}"
    near = found or get_close_matches(name, layers, n=4, cutoff=0.3) or layers
    raise ValueError(f"routing 'drop:{name}/...': {reason}. Give one of {near[:8]}.")


def _skill_index(text: str, n_skills: int) -> int:
    if not text.isdecimal() or int(text) >= n_skills:
        raise ValueError(
            f"routing 'drop:{text}': no skill {text!r}. Give an index from 0 to {n_skills - 1}."
        )
    return int(text)


def _drop(skills: Mapping[str, int] | Mapping[str, Int64[Tensor, " splits"]]) -> _Reweigh:
    def reweigh(layer: str, _router: Router, _ids: _Ids | None, weights: _Weights) -> _Weights:
        if layer not in skills:
            return weights
        dropped = torch.as_tensor(skills[layer], device=weights.device).expand(weights.shape[-2])
        keep = torch.ones(weights.shape[-2:], dtype=weights.dtype, device=weights.device)
        return normalise(weights * keep.scatter(-1, dropped[:, None], 0.0))

    return reweigh
