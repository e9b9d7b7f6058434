"""How often each task is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from polylab.data.tasks import TaskCollection, quote

__all__ = ["Mixing", "mixing_probabilities", "planned_rows"]


@dataclass(frozen=True)
class Mixing:
    """The probability of a task among the rows of training batches.

    `p_t = share(source of t) * q_t / (sum of q over the tasks of that source)`, with
    `q_t = weight_t * min(size_t, cap) ** (1 / temperature)`: examples-proportional mixing with an
    artificial limit and a temperature (T5, https://arxiv.org/abs/1910.10683, section 3.5.2). The
    shares are those of a combined source; without one all tasks are of one source.

    Args:
        temperature: 1 is by size, `inf` uniform.
        cap: A larger task counts as one of this size; None has no limit.
        weights: Of some tasks; the others' is 1.

    Raises:
        ValueError: If a number is not valid.
    """

    temperature: float = 1.0
    cap: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mixing_probabilities([1], temperature=self.temperature)
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"data.cap={self.cap} · it must be at least 1, or null · raise it.")
        if not isinstance(self.weights, Mapping):
            raise ValueError(
                f"data.weights={self.weights} · weights are of tasks · give "
                "data.weights={TASK: NUMBER}."
            )
        for name, weight in self.weights.items():
            is_number = isinstance(weight, int | float) and math.isfinite(weight)
            if not (is_number and weight > 0):
                raise ValueError(
                    f"data.weights.{name}={weight} · a weight must be a number above 0 · leave a "
                    "task out of the data, if it is never to be drawn."
                )

    def probabilities(self, tasks: TaskCollection) -> Float[ndarray, " tasks"]:
        """Of every task, in the collection's order.

        Raises:
            ValueError: If a weight is of no task, or a task has no training examples.
        """
        for name in self.weights:
            if name not in tasks.names:
                near = get_close_matches(name, tasks.names, n=1)
                hint = f" · did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"data.weights.{name}: there is no such task{hint} · valid: "
                    f"{quote(tasks.names)}."
                )
        sizes = [len(task.train) for task in tasks.tasks]
        weights = [self.weights.get(task.name, 1.0) for task in tasks.tasks]
        found = mixing_probabilities(
            sizes, temperature=self.temperature, cap=self.cap, weights=weights
        )
        if tasks.shares is None:
            return found
        sources = [task.source for task in tasks.tasks]
        totals: Counter[str | None] = Counter()
        for source, p in zip(sources, found.tolist(), strict=True):
            totals[source] += p
        whole = sum(tasks.shares.values())
        factors = [tasks.shares[str(source)] / whole / totals[source] for source in sources]
        return found * np.asarray(factors)


def planned_rows(
    mixing: Mixing, tasks: TaskCollection, task_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Of each task, by id: where it is from, its training examples and its share of the rows.

    Raises:
        ValueError: If a weight is of no task, or a task has no training examples.
    """
    shares = mixing.probabilities(tasks).tolist()
    rows = [
        {
            "task": task.name,
            "id": task_names.index(task.name),
            "source": task.source,
            "train_examples": len(task.train),
            "target_share": share,
        }
        for task, share in zip(tasks.tasks, shares, strict=True)
    ]
    return sorted(rows, key=lambda row: row["id"])


def mixing_probabilities(
    sizes: Sequence[int],
    *,
    temperature: float,
    cap: int | None = None,
    weights: Sequence[float] | None = None,
) -> Float[ndarray, " tasks"]:
    """`p_t ~ weight_t * min(size_t, cap) ** (1 / temperature)`.

    Raises:
        ValueError: If there are no sizes, one is below 1, or the temperature is not above 0.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"task sizes {list(sizes)[:20]} · every task in the mix needs at least 1 training "
            "example · leave empty tasks out."
        )
    if not temperature > 0:
        raise ValueError(
            f"data.temperature={temperature} · it must be above 0 (1 = by size, inf = uniform) · "
            "choose a positive number."
        )
    counted = np.asarray(sizes, dtype=np.float64)
    counted = counted if cap is None else np.minimum(counted, cap)
    logits = np.log(counted) / temperature
    if weights is not None:
        logits = logits + np.log(np.asarray(weights, dtype=np.float64))
    found = np.exp(logits - logits.max())
    return found / found.sum()
