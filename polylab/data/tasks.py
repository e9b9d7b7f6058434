"""Examples, tasks and the mapping of task names to ids that never change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from polylab.data.example import Example
from polylab.data.table import as_table

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskData:
    """The examples of one task, already split.

    Args:
        name: Of the task.
        train: To train on.
        validation: To validate on.
        test: To test on.
        categories: Groups of tasks that it belongs to, such as `Question Answering`.
        description: What the task is, in words.
        source: Its part of a combined source.
    """

    name: str
    train: Sequence[Example]
    validation: Sequence[Example] = ()
    test: Sequence[Example] = ()
    categories: tuple[str, ...] = ()
    description: str | None = None
    source: str | None = None

    def split(self, split: str) -> Sequence[Example]:
        """The examples of `split`.

        Raises:
            ValueError: If `split` is none of train, validation, test.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r} · valid: {', '.join(SPLITS)} · choose one of them.")
        return getattr(self, split)

    def compact(self) -> TaskData:
        """The same examples in tables, which take a fraction of the memory of lists."""
        return replace(self, **{split: as_table(self.split(split)) for split in SPLITS})


@dataclass(frozen=True)
class TaskCollection:
    """Tasks sorted by name, their latent skills where these are known, and what was noticed.

    The examples are copied into tables (`ExampleTable`).

    Args:
        tasks: In any order; names are distinct.
        skills: Which skills a task needs, where the source knows.
        notes: Sentences for the user: rows dropped, tasks skipped, splits that do not exist.
        shares: Of the sources of a combined one, by their names: how much of what is drawn comes
            from each, relative to the others.
        fingerprint: Of what lies in a cache: it changes with the tasks.

    Raises:
        ValueError: If there is no task, a name is empty or occurs twice, a task has no examples,
            `skills` names a task that does not exist, or a task's source has no share.
    """

    tasks: list[TaskData]
    skills: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()
    shares: Mapping[str, float] | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        tasks = sorted(self.tasks, key=lambda task: task.name)
        object.__setattr__(self, "tasks", [task.compact() for task in tasks])
        if not self.tasks:
            raise ValueError("0 tasks were given · at least one is needed · check the data source.")
        check_names(self.names)
        empty = [task.name for task in self.tasks if not any(map(task.split, SPLITS))]
        if empty:
            raise ValueError(
                f"no examples in {quote(empty)} · every task needs at least one · "
                "remove these tasks or give them examples."
            )
        unknown = sorted(set(self.skills or {}) - set(self.names))
        if unknown:
            raise ValueError(
                f"skills are given for {quote(unknown)} · the tasks are {quote(self.names)} · "
                "name existing tasks only."
            )
        if self.shares is not None:
            lacking = [task.name for task in self.tasks if task.source not in self.shares]
            if lacking:
                raise ValueError(
                    f"the sources of {quote(lacking)} have no share · shares are given for "
                    f"{quote([*self.shares])} · give one to each source."
                )

    @property
    def names(self) -> list[str]:
        """The sorted task names."""
        return [task.name for task in self.tasks]

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The categories of each task that has some."""
        return {task.name: task.categories for task in self.tasks if task.categories}

    def appended(self, known: Sequence[str] = ()) -> list[str]:
        """Names in the order of their ids: `known` ones keep theirs, new ones follow, sorted.

        A known task without data keeps its id too.

        Raises:
            ValueError: If a known name is empty or occurs twice.
        """
        check_names(known)
        return [*known, *(name for name in self.names if name not in set(known))]


TaskSource = Callable[[], TaskCollection]


def check_names(names: Sequence[str]) -> None:
    """Accept distinct, non-empty names.

    Raises:
        ValueError: If a name is empty or occurs twice.
    """
    if any(not name.strip() for name in names):
        position = next(i for i, name in enumerate(names) if not name.strip())
        raise ValueError(
            f"task name {names[position]!r} at position {position} · a name must not be empty · "
            "give every task a name."
        )
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(
            f"task names {quote(repeated)} occur more than once · names must be distinct · "
            "rename or merge them."
        )


def check_saved_names(saved: Sequence[str], names: Sequence[str]) -> None:
    """Accept names of a checkpoint whose ids are those of `names`, which may go on.

    Raises:
        ValueError: If an id would mean another task.
    """
    if list(names[: len(saved)]) != list(saved):
        raise ValueError(
            f"the checkpoint has the tasks {quote(saved)} and the data {quote(names)} · ids must "
            "stay · use the same data, or start a new run with init_from=."
        )


def check_trainable(sizes: Mapping[str, int]) -> None:
    """Accept tasks that all have training examples.

    Raises:
        ValueError: If one has none.
    """
    untrained = [name for name, size in sizes.items() if size == 0]
    if untrained:
        raise ValueError(
            f"no training examples in {quote(untrained)} · every task needs at least one to train "
            "· leave these tasks out."
        )


def skill_matrix(
    skills: Mapping[str, Sequence[str]], task_names: Sequence[str]
) -> tuple[Bool[Tensor, "tasks skills"], list[str]]:
    """Which task (row, by id) needs which skill (column), and the sorted names of the skills."""
    names = sorted({skill for needed in skills.values() for skill in needed})
    matrix = torch.zeros(len(task_names), len(names), dtype=torch.bool)
    for row, task in enumerate(task_names):
        for skill in skills.get(task, ()):
            matrix[row, names.index(skill)] = True
    return matrix, names


def quote(names: Sequence[str], limit: int = 20) -> str:
    """The names in quotes, at most `limit` of them, with the number of the rest."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
