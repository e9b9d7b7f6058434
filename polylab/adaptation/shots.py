"""The few rows of a task that an adaptation sees: drawn by seed, apart from all held-out rows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from polylab.data import Example, TaskData
from polylab.data.evaluation import choose_examples
from polylab.data.splitting import split_text

__all__ = ["Shots", "draw_shots"]


@dataclass(frozen=True, kw_only=True)
class Shots:
    """How many rows of each split an adaptation sees.

    Args:
        train: Rows to train on.
        validation: Rows for the selection, of a task without a validation split: taken from the
            training rows that are no shots. 0 takes none.
        max_validation: Of the task's own validation split at most so many; None is all.
        max_test: Of its test split at most so many; None is all.
        eval_seed: Chooses these, the same for every draw of the shots.
    """

    train: int
    validation: int
    max_validation: int | None
    max_test: int | None
    eval_seed: int


def draw_shots(task: TaskData, shots: Shots, *, seed: int) -> TaskData:
    """The task with `shots.train` training rows, drawn by `seed`, and what it is evaluated on.

    No two drawn rows have the same text, and none has that of a held-out row. Which ones they are
    depends on the seed, the task's name and its rows only.

    Raises:
        ValueError: If the task has too few rows, or nothing to select or test on.
    """
    if not task.test:
        raise ValueError(
            f"task {task.name!r} has no test rows · an adaptation is tested on rows that it never "
            "saw · give the task some (data.source.test_share, where the source has it), or leave "
            "it out with adapt.tasks=[...]."
        )
    own = _chosen(task, "validation", limit=shots.max_validation, seed=shots.eval_seed)
    test = _chosen(task, "test", limit=shots.max_test, seed=shots.eval_seed)
    rows = _distinct(task, seed=seed)
    train = _take(rows, shots.train, task=task, what=f"adapt.shots={shots.train}")
    if not shots.validation:
        return replace(task, train=train, validation=[], test=test)
    if not own:
        what = f"adapt.shots={shots.train} and adapt.validation_rows={shots.validation}"
        own = _take(rows, shots.validation, task=task, what=what)
    return replace(task, train=train, validation=own, test=test)


def _chosen(task: TaskData, split: str, *, limit: int | None, seed: int) -> list[Example]:
    rows = task.split(split)
    return [rows[i] for i in choose_examples(len(rows), limit=limit, seed=seed, name=task.name)]


def _distinct(task: TaskData, *, seed: int) -> Iterator[Example]:
    """Training rows in the order of `seed`, one for each text that is not held out."""
    seen = {split_text(example) for split in (task.validation, task.test) for example in split}
    rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
    for row in rng.permutation(len(task.train)).tolist():
        example = task.train[row]
        text = split_text(example)
        if text not in seen:
            seen.add(text)
            yield example


def _take(rows: Iterator[Example], count: int, *, task: TaskData, what: str) -> list[Example]:
    taken = [example for _, example in zip(range(count), rows, strict=False)]
    if len(taken) < count:
        raise ValueError(
            f"{what}: task {task.name!r} has too few of its {len(task.train)} training rows left "
            "that are distinct and not held out · lower the numbers, give adapt.select=last to "
            "need no validation rows, or leave the task out with adapt.tasks=[...]."
        )
    return taken
