"""How sure a mean is: bootstrap confidence intervals (Efron, https://doi.org/10.1214/aos/1176344552).

Examples are resampled within each task; the tasks are taken as they are. A macro mean's interval so
says what other examples of the same tasks would give, not other tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

__all__ = ["bootstrap_intervals", "percentiles", "resampled_sums"]

RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 2**22  # drawn at a time

Interval = list[float]


def bootstrap_intervals(
    scores: Mapping[str, Mapping[str, Sequence[float]]], *, seed: int = 0
) -> dict[str, Any]:
    """Percentile intervals of each task's mean and of the macro mean.

    A task's depends on its own scores and name only.

    Args:
        scores: By metric and task, one for each example, in an order that does not change.
        seed: Of the resampling.

    Returns:
        `{"level", "resamples", "macro": {METRIC: [low, high]}, "tasks": {TASK: {METRIC: ...}}}`.
    """
    macro: dict[str, Interval] = {}
    tasks: dict[str, dict[str, Interval]] = {}
    for metric, by_task in scores.items():
        means = {task: _resampled(np.asarray(own), task, seed) for task, own in by_task.items()}
        if not means:
            continue
        for task, own in means.items():
            tasks.setdefault(task, {})[metric] = _interval(own)
        macro[metric] = _interval(np.mean([*means.values()], axis=0))
    return {"level": LEVEL, "resamples": RESAMPLES, "macro": macro, "tasks": tasks}


def resampled_sums(
    values: Float[ndarray, "examples columns"], task: str, *, seed: int = 0
) -> Float[ndarray, "resamples columns"]:
    """Sums of each column over the examples that `bootstrap_intervals` draws for the task.

    All columns are summed over the same draws: the difference of two is a paired one.
    """
    n, parts = len(values), []
    for drawn in _draws(n, task, seed):
        places = drawn + n * np.arange(len(drawn))[:, None]
        times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        parts.append(times @ values)
    return np.concatenate(parts)


def percentiles(
    resampled: Float[ndarray, "resamples columns"],
) -> Float[ndarray, "bounds columns"]:
    """The low and the high end of each column's interval."""
    return np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def _resampled(
    scores: Float[ndarray, " examples"], task: str, seed: int
) -> Float[ndarray, " resamples"]:
    return np.concatenate([scores[drawn].mean(axis=1) for drawn in _draws(len(scores), task, seed)])


def _draws(n: int, task: str, seed: int) -> Iterator[Int[ndarray, "resamples examples"]]:
    """Which examples a task's resamples consist of, a part of the resamples at a time."""
    rng = np.random.default_rng([seed, crc32(task.encode())])
    at_a_time = max(1, _CELLS // n)
    for first in range(0, RESAMPLES, at_a_time):
        yield rng.integers(n, size=(min(at_a_time, RESAMPLES - first), n))


def _interval(means: Float[ndarray, " resamples"]) -> Interval:
    low, high = percentiles(means[:, None])[:, 0]
    return [float(low), float(high)]
