"""The figures of a routing at one moment, its rows and columns put in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from polylab.callbacks.figures import (
    cluster_tasks,
    draw_allocation,
    draw_by_layer,
    draw_change,
    draw_hierarchy,
    draw_layers,
    draw_task_matrix,
    tree_order,
)
from polylab.callbacks.figures.layers import ACROSS, MOST_PANELS
from polylab.callbacks.routing_statistics import evenly_spaced
from polylab.callbacks.subject import Subject
from polylab.poly.recovery import match_to_truth
from polylab.poly.statistics import match_columns

__all__ = ["Places", "Scene", "Start"]


_ALL = ("task_hierarchy", "task_similarity", "change", "layers")  # what may be left out


@dataclass(frozen=True)
class Places:
    """Where the rows and columns of a picture stood, for the next one.

    Args:
        rows: Task ids from top to bottom.
        relative: `[rows, columns]` as they stood.
    """

    rows: list[int]
    relative: np.ndarray


@dataclass(frozen=True)
class Start:
    """A routing that others are compared with, and when it was."""

    subject: Subject
    words: str


class Scene:
    """Draws a subject.

    Rows of every map of tasks stand in the order of the hierarchy, near to where they were
    `before`; columns are matched with the true skills where these are known, else with the picture
    before.

    Args:
        subject: What to draw.
        words: When, for titles.
        before: Of the picture before.
        start: For `change`.
    """

    def __init__(
        self,
        subject: Subject,
        words: str,
        *,
        before: Places | None = None,
        start: Start | None = None,
    ) -> None:
        self._subject, self._words, self._start = subject, words, start
        rows = _first_order(subject, before)
        self._tree: np.ndarray | None = None
        if len(rows) > 1:
            self._similarity, self._compared = subject.similarity()
            self._tree = cluster_tasks(self._similarity)
            rows = tree_order(self._tree, rows)
        self._rows = rows
        self._map = subject.aligned()
        columns = _column_order(subject, self._map.relative, before)
        self._relative = self._map.relative[:, columns]
        self._skills = [self._map.skills[k] for k in columns]

    @property
    def places(self) -> Places:
        """For the next picture."""
        return Places([self._subject.task_ids[i] for i in self._rows], self._relative[self._rows])

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """What there is to draw, by name; what could only repeat itself is left out."""
        subject = self._subject
        found = {"allocation": self.allocation, "by_layer": self.by_layer}
        if self._tree is not None:
            found["task_hierarchy"] = self.task_hierarchy
            if not subject.is_trivial:
                found["task_similarity"] = self.task_similarity
        if not subject.given and subject.n_usable > 1:
            if self._start is not None:
                found["change"] = self.change
            if len(subject.units) > 1:
                found["layers"] = self.layers
        return found

    @property
    def left_out(self) -> str:
        """Names of the figures that are not among `figures`, and why; empty if all are."""
        subject = self._subject
        names = {n for n in _ALL if n not in self.figures()}
        names -= {"change"} if self._start is None else set()
        why = subject.given or (
            "there is one skill" if subject.n_usable == 1 else "there is one task"
        )
        if names == {"layers"} and not subject.given:
            why = f"{subject.over()}: allocation shows it"
        return f"{', '.join(sorted(names))} ({why})" if names else ""

    def allocation(self) -> Figure:
        """Tasks x skills, the aligned mean."""
        subject = self._subject
        return draw_allocation(
            self._relative[self._rows],
            tasks=self._names(),
            skills=self._skills,
            title=f"Skill allocation {self._words}",
            shown=[self._map.words, *subject.notes(), *self._columns()],
            truth=subject.truth and subject.truth.ordered(self._rows),
            categories=self._categories(),
        )

    def task_hierarchy(self) -> Figure:
        """Dendrogram beside the allocation.

        Raises:
            ValueError: If there is one task only.
        """
        subject = self._subject
        return draw_hierarchy(
            self._known_tree(),
            self._relative,
            tasks=subject.tasks,
            skills=self._skills,
            title=f"Task hierarchy {self._words}",
            shown=[
                f"tree: average linkage of the weights in {self._compared}, unaligned",
                f"map: {self._map.words}",
                *subject.notes(),
            ],
            truth=subject.truth,
            order=self._rows,
            categories=subject.categories,
        )

    def task_similarity(self) -> Figure:
        """Tasks x tasks.

        Raises:
            ValueError: If there is one task only.
        """
        self._known_tree()
        subject = self._subject
        return draw_task_matrix(
            self._similarity,
            tasks=subject.tasks,
            title=f"Task similarity {self._words}",
            shown=[
                "share of mixing weight that two tasks have in common",
                f"mean of {self._compared}, unaligned; tasks in the order of their hierarchy",
                *subject.notes(),
            ],
            order=self._rows,
            categories=subject.categories,
        )

    def by_layer(self) -> Figure:
        """Layers x ranks of skills."""
        subject = self._subject
        heads = f", mean of {subject.n_heads} heads" if subject.n_heads > 1 else ""
        usage = subject.usage()
        ranks = [str(k + 1) for k in range(subject.n_shared)]
        return draw_by_layer(
            usage,
            list(subject.entropy.values()),
            layers=[*self._subject.layer_names().values()],
            columns=[*ranks, "private"] if subject.n_private else ranks,
            title=f"Skill usage by layer {self._words}",
            shown=[
                f"share of each skill in the {subject.counted} of all tasks x "
                f"{subject.n_usable}{heads}",
                "columns are ranks: each layer's own skills from most to least used",
                *subject.notes(),
            ],
        )

    def change(self) -> Figure:
        """Tasks x layers: how much has moved since the start.

        Raises:
            ValueError: If there is no start to compare with.
        """
        if self._start is None:
            raise ValueError("no earlier allocation is known; give start=.")
        heads = f", mean of {self._subject.n_heads} heads" if self._subject.n_heads > 1 else ""
        return draw_change(
            self._moved(self._start.subject)[self._rows],
            tasks=self._names(),
            layers=[*self._subject.layer_names().values()],
            title=f"Change of the routing {self._words}",
            shown=[
                f"share of a task's mixing weight that has moved since {self._start.words}{heads}",
                "layers in the order of the model",
                *self._subject.notes(),
            ],
            categories=self._categories(),
        )

    def layers(self) -> Figure:
        """Tasks x skills of single layers and heads."""
        units, words = self._panels()
        names = self._subject.layer_names()
        heads = self._subject.n_heads
        return draw_layers(
            [self._subject.single(*unit)[self._rows] for unit in units],
            [names[n] + (f" head {q}" if heads > 1 else "") for n, q in units],
            tasks=self._names(),
            title=f"Skill allocation of single layers {self._words}",
            shown=[words, "skill k of one map is not skill k of another", *self._subject.notes()],
            across=_across(Counter(n for n, _ in units)),
            categories=self._categories(),
        )

    def _known_tree(self) -> np.ndarray:
        if self._tree is None:
            raise ValueError(f"{len(self._rows)} task has no hierarchy; it takes at least 2.")
        return self._tree

    def _names(self) -> list[str]:
        return [self._subject.tasks[i] for i in self._rows]

    def _categories(self) -> list[str | None] | None:
        known = self._subject.categories
        return known and [known[i] for i in self._rows]

    def _columns(self) -> list[str]:
        if self._subject.truth is None:
            return []
        return ["columns stand in the order of the true skills that they match best"]

    def _moved(self, start: Subject) -> np.ndarray:
        """`[tasks, routers]`: half the sum of the differences, mean over the heads."""
        subject = self._subject
        place = {task: i for i, task in enumerate(start.task_ids)}
        both = [i for i, task in enumerate(subject.task_ids) if task in place]
        there = [place[subject.task_ids[i]] for i in both]
        moved = np.full((len(subject.tasks), len(subject.weights)), np.nan)
        for k, (name, w) in enumerate(subject.weights.items()):
            difference = (w[both] - start.weights[name][there]).abs().sum(-1) / 2
            moved[both, k] = difference.mean(1).double().numpy()
        return moved

    def _panels(self) -> tuple[list[tuple[str, int]], str]:
        """Evenly spaced (layer, head) pairs, all heads of a layer or the same ones, and words."""
        subject = self._subject
        splits = {name: w.shape[1] for name, w in subject.weights.items()}
        heads = {name: evenly_spaced([*range(n)], ACROSS) for name, n in splits.items()}
        most = max(1, MOST_PANELS // max(map(len, heads.values())))
        if len(splits) == 1:
            heads = {name: evenly_spaced([*range(n)], MOST_PANELS) for name, n in splits.items()}
        layers = evenly_spaced([*splits], most)
        units = [(name, q) for name in layers for q in heads[name]]
        what = "routers" if len(splits) < subject.n_layers else "layers"
        words = f"{len(layers)} of {len(splits)} {what}"
        if subject.n_heads > 1:
            words += f", {max(len(heads[n]) for n in layers)} of {subject.n_heads} heads each"
        return units, f"normalised weight x {subject.n_usable}, {words}" + (
            ", evenly spaced" if len(units) < len(subject.units) else ""
        )


def _across(heads: Counter[str]) -> int:
    """Maps in a line: whole layers, as many as fit."""
    most = max(heads.values())
    return max(1, ACROSS // most) * most if most <= ACROSS else ACROSS


def _first_order(subject: Subject, before: Places | None) -> list[int]:
    """Where rows stand before the hierarchy has its say: as in the last picture, or as given."""
    given = subject.given_order()
    if before is None:
        return given
    rank = {task: row for row, task in enumerate(before.rows)}
    return sorted(given, key=lambda i: rank.get(subject.task_ids[i], len(rank)))


def _column_order(subject: Subject, relative: np.ndarray, before: Places | None) -> list[int]:
    """Shared skills where they belong; the private column stays last."""
    shared = relative[:, : subject.n_shared]
    first: list[int] = []
    if subject.truth is not None and subject.n_shared:
        matched = match_to_truth(torch.from_numpy(shared), torch.from_numpy(subject.truth.matrix))
        first = [k for k in matched if k is not None]
    elif before is not None and before.relative.shape[1] == relative.shape[1]:
        row = {task: i for i, task in enumerate(before.rows)}
        both = [i for i, task in enumerate(subject.task_ids) if task in row]
        there = before.relative[[row[subject.task_ids[i]] for i in both]]
        scores = there[:, : subject.n_shared].T @ shared[both]
        # the closest in squares: sum over |before - now|^2 is least
        first = [k for _, k in sorted(match_columns(scores))]
    return [*first, *(k for k in range(relative.shape[1]) if k not in first)]
