"""The figures of a routing at one moment, its rows and columns put in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
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
from polylab.callbacks.figures.layers import MOST_HEADS, MOST_PANELS
from polylab.callbacks.places import Places, column_order, first_order
from polylab.callbacks.routing_statistics import evenly_spaced
from polylab.callbacks.subject import Subject
from polylab.callbacks.wording import layer_names, layer_notes, notes, part, weight_words

__all__ = ["Scene", "Start"]


_ALL = ("task_hierarchy", "task_similarity", "change", "layers")  # what may be left out


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
        rows = first_order(subject, before)
        self._tree: np.ndarray | None = None
        if len(rows) > 1:
            self._similarity, self._compared = subject.similarity()
            self._tree = cluster_tasks(self._similarity)
            rows = tree_order(self._tree, rows)
        self._rows = rows
        self._map = subject.aligned()
        columns = column_order(subject, self._map.relative, before)
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
            why = "one router: allocation shows it"
        return f"{', '.join(sorted(names))} ({why})" if names else ""

    def allocation(self) -> Figure:
        """Tasks x skills, the aligned mean."""
        subject = self._subject
        return draw_allocation(
            self._relative[self._rows],
            tasks=self._names(),
            skills=self._skills,
            title=f"Skill allocation {self._words}",
            shown=[self._map.words, *notes(subject), *self._columns()],
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
                *notes(subject),
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
                *notes(subject),
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
            [float(heads.mean()) for heads in subject.entropy.values()],
            layers=[*layer_names(self._subject).values()],
            columns=[*ranks, "private"] if subject.n_private else ranks,
            entropy_of="entropy of means" if subject.of_means else "routing entropy",
            title=f"Skill usage by layer {self._words}",
            shown=[
                f"share of each skill in the {subject.counted} of all tasks x "
                f"{subject.n_usable}{heads}",
                "columns are ranks: each layer's own skills from most to least used",
                *layer_notes(subject),
                *notes(subject),
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
            layers=[*layer_names(self._subject).values()],
            title=f"Change of the routing {self._words}",
            shown=[
                f"share of a task's mixing weight that has moved since {self._start.words}{heads}",
                "layers in the order of the model",
                *layer_notes(self._subject),
                *notes(self._subject),
            ],
            categories=self._categories(),
        )

    def layers(self) -> Figure:
        """Tasks x skills of single layers and heads."""
        subject = self._subject
        layers, heads = self._panels()
        few = sum(len(heads[name]) for name in layers) < len(subject.units)
        names = layer_names(subject)
        return draw_layers(
            {
                names[name]: {
                    f"head {q}" if subject.n_heads > 1 else "": subject.single(name, q)[self._rows]
                    for q in heads[name]
                }
                for name in layers
            },
            tasks=self._names(),
            title=f"Skill allocation, single layers, {self._words}",
            shown=[
                f"{weight_words(subject)}, {part(subject, layers, heads)}"
                + (", evenly spaced" if few else ""),
                "skill k of one map is not skill k of another",
                *layer_notes(subject),
                *notes(subject),
            ],
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
        return None if known is None else [known[i] for i in self._rows]

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

    def _panels(self) -> tuple[list[str], dict[str, list[int]]]:
        """Evenly spaced layers, and of each the heads to show."""
        splits = {name: w.shape[1] for name, w in self._subject.weights.items()}
        most = MOST_PANELS if len(splits) == 1 else MOST_HEADS
        heads = {name: evenly_spaced([*range(n)], most) for name, n in splits.items()}
        return evenly_spaced([*splits], MOST_PANELS // max(map(len, heads.values()))), heads
