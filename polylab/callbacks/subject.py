"""What a figure is of: the routing of some tasks at one moment, in the tasks' given order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from polylab.callbacks.figures import Truth
from polylab.callbacks.routers import Routers
from polylab.callbacks.seen import Allocations
from polylab.callbacks.wording import over, skill_names, weight_words
from polylab.poly.alignment import N_COMPARED, agreement, align_skills, apply_alignment
from polylab.poly.statistics import skill_usage

__all__ = ["Layers", "Map", "Subject"]

Layers = dict[str, Float[Tensor, "tasks splits skills"]]

_ALIGNED_CELLS = 20_000_000  # more are too much to align: so many (layer, head) pairs stand for all
_COMPARISONS = 2_000_000_000  # task pairs x weights: about a second


@dataclass(frozen=True)
class Map:
    """Tasks x skills of several (layer, head) pairs.

    Args:
        relative: `[tasks, columns]`, weight x number of skills that a task may use; 1 = uniform.
        skills: Names of the columns.
        words: What it is of, for a heading.
    """

    relative: np.ndarray
    skills: list[str]
    words: str


@dataclass(frozen=True)
class Subject:
    """A routing, reduced to what can be shown.

    Args:
        weights: Of the skills that a task may use, by the first layer of each router.
        used: Gates where there are some, else the weights, of the same form.
        entropy: Of each router and head, 0 to 1.
        of_layers: Of each layer in model order its router, named by the first layer that has it.
        n_shared: Of the columns, those of skills that all tasks share; then come the task's own.
        tasks: Names.
        task_ids: Ids.
        given: What is allocated where nothing is learned, in words.
        is_mean: Weights are means over inputs.
        counted: What `used` is.
        truth: The true skills where known.
        categories: The first category of each task; None = has none.
        of_means: The entropy is that of means over inputs, not of single inputs.
        remarks: Lines for every heading.
    """

    weights: Layers
    used: Layers
    entropy: dict[str, Float[Tensor, " splits"]]
    of_layers: dict[str, str]
    n_shared: int
    tasks: list[str]
    task_ids: list[int]
    given: str = ""
    is_mean: bool = False
    counted: str = "weights"
    truth: Truth | None = None
    categories: Sequence[str | None] | None = None
    of_means: bool = False
    remarks: Sequence[str] = ()

    @staticmethod
    def of(
        seen: Allocations,
        routers: Routers,
        *,
        tasks: list[str],
        truth: Truth | None = None,
        categories: Mapping[str, Sequence[str]] | None = None,
    ) -> Subject:
        """From allocations; `categories` by the names of the tasks."""
        first: dict[str, str] = {}  # of the layers that were seen
        routed = {n: own for n, own in routers.of_layers.items() if n in seen.weights}
        of_layers = {name: first.setdefault(own, name) for name, own in routed.items()}
        names = dict.fromkeys(of_layers.values())
        weights, used = seen.open_weights, seen.used
        choices = next(iter(seen.choices.values()), None)
        n_shared = next(iter(weights.values())).shape[2]
        if choices is not None:
            n_shared = int((choices == choices[0]).all(0).sum())
        if routers.is_private:
            weights = used = {n: w.amax(-1, keepdim=True) for n, w in weights.items()}
            n_shared = 0
        heads = slice(0, 1) if routers.given else slice(None)  # which all do the same
        entropy = seen.heads["entropy"]
        groups = [(categories or {}).get(name, ()) for name in tasks]
        return Subject(
            {name: weights[name][:, heads] for name in names},
            {name: used[name][:, heads] for name in names},
            {n: torch.ones(1) if routers.is_private else entropy[n][heads] for n in names},
            of_layers,
            n_shared,
            tasks,
            seen.task_ids,
            routers.given,
            seen.examples is not None,
            "gates" if seen.gates else "weights",
            truth,
            [own[0] if own else None for own in groups] if any(groups) else None,
        )

    @property
    def n_usable(self) -> int:
        """Skills that a task may use: shared ones and its own."""
        return next(iter(self.weights.values())).shape[2]

    @property
    def n_private(self) -> int:
        return self.n_usable - self.n_shared

    @property
    def n_heads(self) -> int:
        return max(w.shape[1] for w in self.weights.values())

    @property
    def n_layers(self) -> int:
        return len(self.of_layers)

    @property
    def is_trivial(self) -> bool:
        """Whether all tasks can only be alike, or only be different."""
        return self.n_usable == 1 or "uniform" in self.given

    @property
    def units(self) -> list[tuple[str, int]]:
        """All pairs of a router (by its first layer) and a head, in model order."""
        return [(name, q) for name, w in self.weights.items() for q in range(w.shape[1])]

    def given_order(self) -> list[int]:
        """By category, then by name (`task 2` before `task 10`)."""
        groups = self.categories or [None] * len(self.tasks)

        def key(i: int) -> tuple[bool, str, list[tuple[int, str]]]:
            parts = re.split(r"(\d+)", self.tasks[i])
            natural = [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]
            return not groups[i], groups[i] or "", natural

        return sorted(range(len(self.tasks)), key=key)

    def only(self, *, layer: str | None = None, split: int | None = None) -> Subject:
        """The same of one router (by its first layer), or of one head."""
        heads = slice(None) if split is None else slice(split, split + 1)
        names = [*self.weights] if layer is None else [layer]
        return replace(
            self,
            weights={name: self.weights[name][:, heads] for name in names},
            used={name: self.used[name][:, heads] for name in names},
            of_layers={n: own for n, own in self.of_layers.items() if own in names},
            entropy={name: self.entropy[name][heads] for name in names},
        )

    def similarity(self) -> tuple[Float[np.ndarray, "tasks tasks"], str]:
        """`polylab.poly.statistics.task_similarity` over all layers, and of which it is.

        A task's own skills are never in common. Very many weights of very many tasks are
        represented by evenly spaced (layer, head) pairs.
        """
        most = _COMPARISONS // (len(self.tasks) ** 2 * self.n_usable)
        layers = _spread(self.weights, max(1, most))
        counts = Counter(self.of_layers.values())
        shared, own, heads = [], torch.zeros(len(self.tasks)), 0
        for name, w in layers.items():
            n = counts[name]
            shared.append(w[..., : self.n_shared].flatten(1) * n)
            own += n * w[..., self.n_shared :].sum((1, 2))
            heads += n * w.shape[1]
        distance = squareform(pdist(torch.cat(shared, 1).double().numpy(), "cityblock"))
        distance += own[:, None].numpy() + own[None].numpy()
        np.fill_diagonal(distance, 0)
        return 1 - distance / (2 * heads), over(self, layers)

    def aligned(self) -> Map:
        """The aligned mean over all layers and heads, its columns in the order of `align_skills`.

        A task's own skills are one column, their mean.
        """
        layers = self.weights
        if sum(w.numel() for w in layers.values()) > _ALIGNED_CELLS:
            layers = _spread(layers, N_COMPARED)
        shared = {name: w[..., : self.n_shared] for name, w in layers.items()}
        of, agree = over(self, layers), float("nan")
        if self.n_shared:
            # every layer counts in the choice of a reference, as for `routing=drop:SKILL`
            perms = align_skills({n: shared[o] for n, o in self.of_layers.items() if o in shared})
            shared = apply_alignment(shared, {name: perms[name] for name in shared})
            agree = agreement(shared)
        maps = {n: torch.cat([shared[n], layers[n][..., self.n_shared :]], -1) for n in shared}
        mean = torch.cat(list(maps.values()), 1).mean(1)
        words = of if np.isnan(agree) else f"aligned mean of {of}, agreement {agree:.2f}"
        if len(self.tasks) == 1 and len(self.units) > 1:
            words = f"mean of {of}: with one task their skills cannot be aligned"
        return Map(self._relative(mean), skill_names(self), f"{weight_words(self)}, {words}")

    def single(self, layer: str, split: int) -> np.ndarray:
        """`[tasks, columns]` of one (layer, head), its own skills in their own order."""
        return self._relative(self.weights[layer][:, split])

    def usage(self) -> np.ndarray:
        """`[routers, columns]`: each one's usage x skills, sorted, the private column last."""
        ranked = []
        for usage in skill_usage(self.used).values():
            shared = usage[:, : self.n_shared].sort(-1, descending=True)[0]
            ranked.append(torch.cat([shared, usage[:, self.n_shared :]], -1).mean(0))
        return self._relative(torch.stack(ranked))

    def _relative(self, weights: Float[Tensor, "rows usable"]) -> np.ndarray:
        columns = [weights[:, : self.n_shared]]
        if self.n_private:
            columns.append(weights[:, self.n_shared :].mean(-1, keepdim=True))
        return (torch.cat(columns, -1) * self.n_usable).double().numpy()


def _spread(layers: Layers, most: int) -> Layers:
    """At most `most` (layer, head) pairs, evenly spaced as in `align_skills`."""
    units = [(name, q) for name, w in layers.items() for q in range(w.shape[1])]
    if len(units) <= most:
        return layers
    chosen: dict[str, list[int]] = {}
    for i in np.unique(np.linspace(0, len(units) - 1, most).astype(int)):
        name, q = units[i]
        chosen.setdefault(name, []).append(q)
    return {name: layers[name][:, heads] for name, heads in chosen.items()}
