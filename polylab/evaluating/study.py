"""Does the picture of the allocations mean anything? What changes when the routing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from polylab.evaluating.scores import LOSS, Effects, Estimate
from polylab.poly.alignment import aligned_mean
from polylab.poly.statistics import task_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from polylab.callbacks.seen import Allocations

__all__ = ["Allocation", "Study", "dropped_skills", "sign"]


_NO_DROP = "no drop:SKILL was among the routings"


@dataclass(frozen=True)
class Allocation:
    """Which skills tasks use.

    Args:
        relative: `w * S`, aligned mean over layers and heads.
        agreement: Of the layers and heads about it, at most 1.
        order: The tasks from top to bottom of their hierarchy.
    """

    relative: Float[ndarray, "tasks skills"]
    agreement: float
    order: list[int]

    @staticmethod
    def of(found: Allocations, tasks: Int[ndarray, " tasks"]) -> Allocation:
        """Of the tasks with these ids.

        Raises:
            ValueError: If the layers cannot be aligned.
        """
        mean, agreement = aligned_mean(found.weights)
        rows = [found.task_ids.index(task) for task in tasks.tolist()]
        similarity = task_similarity({name: w[rows] for name, w in found.weights.items()}).numpy()
        relative = (mean[rows] * mean.shape[1]).numpy()
        return Allocation(relative, agreement, _order(similarity))


def _order(similarity: Float[ndarray, "tasks tasks"]) -> list[int]:
    from polylab.callbacks.figures import cluster_tasks, tree_order

    return tree_order(cluster_tasks(similarity)) if len(similarity) > 1 else [0]


@dataclass(frozen=True)
class Study:
    """What a run scores under several routings, on the same examples.

    Args:
        effects: Scores and changes with their intervals.
        routings: `learned` first.
        metrics: `loss` first.
        metric: That the table and the sentences are about.
        cell_metric: That the knock-out of single tasks is about.
        n_examples: Of all tasks together.
        allocation: Of the tasks in `effects.tasks`, if skills were taken away.
        by_input: Whether the router reads the input: `shuffled` exchanges examples then.
        note: Why there is no knock-out, where there is none.
        result: Of the learned routing, in the form of metrics.json.
        predictions: Of the learned routing.
    """

    effects: Effects
    routings: list[str]
    metrics: list[str]
    metric: str
    cell_metric: str
    n_examples: int
    allocation: Allocation | None = None
    by_input: bool = False
    note: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    predictions: list[Any] = field(default_factory=list)

    @cached_property
    def skills(self) -> list[int]:
        """Aligned skills that were taken away."""
        return dropped_skills(self.routings)

    @cached_property
    def interventions(self) -> DataFrame:
        """Means over tasks by routing and metric, and their paired changes to `learned`."""
        from pandas import DataFrame

        macro, change = self.effects.macro, self.effects.change
        rows = [
            (routing, metric, *_cell(macro, r, m), *_cell(change, r, m))
            for r, routing in enumerate(self.routings)
            for m, metric in enumerate(self.metrics)
        ]
        names = ["value", "low", "high", "change", "change_low", "change_high"]
        return DataFrame(rows, columns=["routing", "metric", *names])

    @cached_property
    def knockout(self) -> DataFrame:
        """What taking a skill away changes for each task, beside its allocation `w * S`.

        Raises:
            ValueError: If no skill was taken away.
        """
        from pandas import DataFrame

        if self.allocation is None:
            raise ValueError(f"there is no knock-out: {self.note or _NO_DROP}")
        found, share = self.effects.task_change, self.allocation.relative
        rows = [
            (task, k, metric, *_cell(found, t, r, m), float(share[t, k]))
            for t, task in enumerate(self.effects.tasks)
            for k, r in self._places
            for m, metric in enumerate(self.metrics)
            if not np.isnan(found.value[t, 0, m])
        ]
        names = ["task", "skill", "metric", "change", "change_low", "change_high", "allocation"]
        return DataFrame(rows, columns=names)

    def gain(self, metric: str | None = None) -> Float[ndarray, "tasks skills"]:
        """What each task gains when a skill is taken away: higher is better, of the loss too.

        Args:
            metric: `cell_metric` if None.
        """
        m, places = self.metrics.index(metric or self.cell_metric), [r for _, r in self._places]
        return self.effects.task_change.value[:, places, m] * sign(self.metrics[m])

    @property
    def _places(self) -> list[tuple[int, int]]:
        """Each skill, and where its routing is."""
        return [(k, self.routings.index(f"drop:{k}")) for k in self.skills]

    def correlations(self) -> tuple[float, float, int]:
        """Pearson and Spearman of allocation and loss of score over the cells, and their number.

        NaN where one of both is the same everywhere.
        """
        from scipy.stats import rankdata

        assert self.allocation is not None
        shares = self.allocation.relative[:, self.skills].ravel()
        losses = -self.gain().ravel()
        known = ~np.isnan(losses)
        both = np.stack([shares[known], losses[known]])
        if both.shape[1] < 2 or np.ptp(both, axis=1).min() < 1e-12:
            return float("nan"), float("nan"), both.shape[1]
        ranks = np.stack([rankdata(x) for x in both])
        pearson, spearman = (float(np.corrcoef(x)[0, 1]) for x in (both, ranks))
        return pearson, spearman, both.shape[1]

    def figure(self) -> Figure:
        """The knock-out matrix beside the allocations, rows in the order of the task hierarchy.

        Raises:
            ValueError: If no skill was taken away.
        """
        from polylab.evaluating.picture import draw

        return draw(self)

    def findings(self) -> list[str]:
        """What was found, in sentences."""
        from polylab.evaluating.findings import findings

        return findings(self)


def dropped_skills(routings: Sequence[str]) -> list[int]:
    """The aligned skills that `drop:SKILL` names among them."""
    dropped = [r.removeprefix("drop:") for r in routings if r.startswith("drop:")]
    return [int(skill) for skill in dropped if "/" not in skill]


def _cell(found: Estimate, *at: int) -> tuple[float, float, float]:
    """One value and its bounds."""
    value, low, high = (float(x[at]) for x in found.numbers)
    return value, low, high


def sign(metric: str) -> int:
    """1 where higher is better, else -1."""
    return -1 if metric == LOSS else 1
