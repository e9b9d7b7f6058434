"""What each example of a split scored under several routings, and what the routings change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from polylab.training.evaluation import RANKED, Metrics
from polylab.training.intervals import RESAMPLES, percentiles, resampled_sums
from polylab.training.journal import Answers
from polylab.training.ranking import is_right

__all__ = ["LOSS", "Asked", "Effects", "Estimate", "Scores", "effects", "metric_names"]

LOSS = "loss"  # of label tokens, in nats; the one that is better when lower


class Asked(NamedTuple):
    """What is known of a batch before it is answered."""

    task_ids: list[int]
    rows: list[int]
    references: list[list[str]]
    has_options: bool

    @staticmethod
    def of(batch: Mapping[str, Any], *, ranks: bool) -> Asked:
        """From an evaluation batch of the data module; `ranks` says whether options are scored."""
        ids, rows = batch["task_ids"].tolist(), batch["rows"].tolist()
        return Asked(ids, rows, batch["references"], ranks and "ranked" in batch)


@dataclass(frozen=True)
class Scores:
    """Sums of scores over an example's parts, and how many those are.

    A mean over examples is the quotient of the sums of both: of the loss an example has as many
    parts as label tokens, of other metrics one, or none where it does not count.

    Args:
        routings: Whose they are; `learned` comes first.
        metrics: Which; `loss` comes first.
        sums: By routing.
        counts: The same for all routings.
        tasks: The id of each example's task.
        names: Of the tasks, by id.
    """

    routings: list[str]
    metrics: list[str]
    sums: Float[ndarray, "routings metrics examples"]
    counts: Float[ndarray, "metrics examples"]
    tasks: Int[ndarray, " examples"]
    names: list[str]

    @staticmethod
    def of(
        asked: Sequence[Asked],
        answers: Mapping[str, Callable[[int], Answers]],
        *,
        metrics: Metrics,
        names: Sequence[str],
    ) -> Scores:
        """Score the answers to batches.

        Args:
            asked: The batches.
            answers: By routing: the answers to the batch of a number.
            metrics: Of answers; empty where there are losses only.
            names: Of the tasks, by id.
        """
        found = metric_names(asked, metrics)
        order = np.argsort([row for batch in asked for row in batch.rows], kind="stable")
        tasks = np.array([task for batch in asked for task in batch.task_ids])[order]
        shape = (len(answers), len(found), len(order))
        sums, counts = np.zeros(shape), np.zeros(shape[1:])
        for r, find in enumerate(answers.values()):
            columns = [
                _score(batch, find(i), metrics=metrics, names=found)
                for i, batch in enumerate(asked)
            ]
            sums[r], counts = np.concatenate(columns, axis=2)[:, :, order]
        return Scores([*answers], found, sums, counts, tasks, list(names))


def metric_names(asked: Iterable[Asked], metrics: Iterable[str]) -> list[str]:
    """The loss, the metrics of answers, and where examples have options how often theirs is right.

    Args:
        asked: The batches.
        metrics: Of answers; empty where there are losses only.
    """
    names = [LOSS, *metrics]
    ranks = len(names) > 1 and any(batch.has_options for batch in asked)
    return [*names, RANKED] if ranks else names


def _score(
    batch: Asked, answers: Answers, *, metrics: Metrics, names: Sequence[str]
) -> Float[ndarray, "2 metrics examples"]:
    ones = [1.0] * len(batch.rows)
    found: dict[str, tuple[list[float], list[float]]] = {
        LOSS: (answers.losses.tolist(), answers.tokens.tolist())
    }
    for name, metric in metrics.items():
        pairs = zip(answers.texts, batch.references, strict=True)
        found[name] = [metric(*pair) for pair in pairs], ones
    if RANKED in names:
        options = [*zip(answers.choices, batch.references, strict=True)]
        right = [float(is_right(*pair)) if pair[0] else 0.0 for pair in options]
        found[RANKED] = right, [float(bool(pair[0])) for pair in options]
    return np.stack([[found[name][part] for name in names] for part in (0, 1)])


@dataclass(frozen=True)
class Estimate:
    """A number, or an array of them, with its interval."""

    value: ndarray
    low: ndarray
    high: ndarray

    @property
    def numbers(self) -> tuple[ndarray, ndarray, ndarray]:
        """The value and its bounds."""
        return self.value, self.low, self.high


@dataclass(frozen=True)
class Effects:
    """What routings score and change; a task without a metric has NaN.

    Args:
        macro: Means over tasks, `[routings, metrics]`.
        change: Of `macro` to the learned routing, paired by example, `[routings, metrics]`.
        task_change: The same of each task, `[tasks, routings, metrics]`.
        tasks: Names of those that have examples.
    """

    macro: Estimate
    change: Estimate
    task_change: Estimate
    tasks: list[str]


def effects(scores: Scores) -> Effects:
    """Means over the examples of each task and over tasks, and their changes, with intervals.

    The intervals are those of `polylab.training.intervals`: examples are resampled within their
    tasks, the tasks are taken as they are; and in the same way under every routing, so that the
    interval of a change is a paired one.
    """
    present = np.unique(scores.tasks)
    shape = (len(scores.routings), len(scores.metrics))
    drawn = np.zeros((RESAMPLES, *shape))
    task_change = np.full((3, len(present), *shape), np.nan)
    values = np.full((len(present), *shape), np.nan)
    for i, task in enumerate(present):
        for columns, means, resampled in _task_means(scores, int(task)):
            drawn[..., columns] += resampled
            values[i][:, columns] = means
            moved = resampled - resampled[:, :1]
            task_change[0, i][:, columns] = means - means[:1]
            bounds = percentiles(moved.reshape(RESAMPLES, -1)).reshape(2, *means.shape)
            task_change[1:, i][..., columns] = bounds
    drawn /= (~np.isnan(values[:, 0])).sum(0)
    macro = np.nanmean(values, axis=0)
    names = [scores.names[task] for task in present]
    return Effects(
        _estimate(macro, drawn),
        _estimate(macro - macro[:1], drawn - drawn[:, :1]),
        Estimate(*task_change),
        names,
    )


def _task_means(
    scores: Scores, task: int
) -> Iterable[tuple[list[int], Float[ndarray, "routings some"], Float[ndarray, ...]]]:
    """Metrics that the same examples of the task have: which, their means, and resampled means."""
    own = scores.tasks == task
    counts = scores.counts[:, own]
    groups: dict[bytes, list[int]] = {}
    for m, has in enumerate(counts > 0):
        if has.any():
            groups.setdefault(has.tobytes(), []).append(m)
    for columns in groups.values():
        kept = np.flatnonzero(own)[counts[columns[0]] > 0]
        sums = scores.sums[:, columns][:, :, kept]
        parts = scores.counts[columns][:, kept]
        flat = np.concatenate([sums.reshape(-1, len(kept)), parts]).T
        drawn = resampled_sums(flat, scores.names[task])
        tops = drawn[:, : -len(columns)].reshape(RESAMPLES, -1, len(columns))
        yield columns, sums.sum(2) / parts.sum(1), tops / drawn[:, None, -len(columns) :]


def _estimate(value: ndarray, resampled: Float[ndarray, "resamples routings metrics"]) -> Estimate:
    return Estimate(value, *percentiles(resampled.reshape(RESAMPLES, -1)).reshape(2, *value.shape))
