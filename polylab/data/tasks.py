"""Examples, tasks and the mapping of task names to ids that never change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One text-to-text pair.

    `input` is the bare content. `instruction`, where there is one, is the whole input with the
    instruction already in it. Any of `references` is a correct answer; training uses `target`.
    """

    input: str
    target: str
    references: tuple[str, ...] = ()
    options: tuple[str, ...] | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.target,))


@dataclass(frozen=True)
class TaskData:
    """The examples of one task, already split."""

    name: str
    train: list[Example]
    validation: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)

    def split(self, split: str) -> list[Example]:
        """The examples of `split`.

        Raises:
            ValueError: If `split` is none of train, validation, test.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split!r} · valid: {', '.join(SPLITS)} · choose one of them.")
        return getattr(self, split)


@dataclass(frozen=True)
class TaskCollection:
    """Tasks sorted by name, their latent skills where these are known, and what was noticed.

    `notes` are sentences for the user: rows dropped, tasks skipped, splits that do not exist.

    Raises:
        ValueError: If there is no task, a name is empty or occurs twice, a task has no examples,
            or `skills` names a task that does not exist.
    """

    tasks: list[TaskData]
    skills: Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", sorted(self.tasks, key=lambda task: task.name))
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

    @property
    def names(self) -> list[str]:
        """The sorted task names."""
        return [task.name for task in self.tasks]

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
