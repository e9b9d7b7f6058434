"""Several sources as one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

from polylab.data.sources.notes import Notes
from polylab.data.tasks import TaskCollection, TaskData, TaskSource, quote


class Part(NamedTuple):
    """One of the sources.

    Args:
        source: Gives its tasks.
        weight: How much of what is drawn comes from it, relative to the other parts.
    """

    source: TaskSource
    weight: float = 1.0


@dataclass(frozen=True)
class Combined:
    """The tasks of several sources, each of which has its share of what is drawn (see `Mixing`).

    Args:
        parts: By name.
        prefix: Whether tasks are named `PART.TASK`; else names must differ between the parts.

    Raises:
        ValueError: If there is no part, or a weight is not above 0.
    """

    parts: Mapping[str, Part]
    prefix: bool = False

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError(
                "data.sources is empty · give each source a name, "
                "data.sources.NAME={data: OPTION, path: DIR, weight: 1}."
            )
        for name, part in self.parts.items():
            if not (math.isfinite(part.weight) and part.weight > 0):
                raise ValueError(
                    f"data.sources.{name}.weight={part.weight} · it must be above 0 · leave the "
                    "source out if nothing is to be drawn from it."
                )

    @property
    def shares(self) -> dict[str, float]:
        """As `TaskCollection.shares`."""
        return {name: part.weight for name, part in self.parts.items()}

    def __call__(self) -> TaskCollection:
        """Read the tasks of all parts.

        Raises:
            ValueError: As the parts do, with the part's name in front; or if two parts have a task
                of one name.
        """
        notes, tasks, skills = Notes(), [], {}
        for name, part in self.parts.items():
            collection = _called(name, part.source)
            for sentence in collection.notes:
                notes.say(f"{name}: {sentence}")
            tasks += [self._own(task, name) for task in collection.tasks]
            for task, needed in (collection.skills or {}).items():
                skills[self._named(task, name)] = needed
        self._check_names(tasks)
        return TaskCollection(tasks, skills or None, (*notes.sentences(),), self.shares)

    def stream(self, notes: Notes) -> Iterator[TaskData]:
        """The tasks of all parts, one after another.

        Raises:
            ValueError: As `__call__`.
        """
        seen: list[TaskData] = []
        for name, part in self.parts.items():
            own = Notes()
            for task in part.source.stream(own):  # type: ignore[attr-defined]
                named = self._own(task, name)
                seen.append(replace(named, train=(), validation=(), test=()))
                self._check_names(seen)
                yield named
            for sentence in own.sentences():
                notes.say(f"{name}: {sentence}")

    def fingerprint(self) -> str:
        """Changes with any of the parts.

        Raises:
            ValueError: If a part makes its tasks anew whenever they are needed.
        """
        state = [f"{self.prefix} {self.shares}"]
        for name, part in self.parts.items():
            if not hasattr(part.source, "fingerprint"):
                raise ValueError(
                    f"data.sources.{name}: {type(part.source).__name__} makes its tasks anew "
                    "whenever they are needed, and has nothing to cache · set data.cache=null."
                )
            state.append(f"{name} {part.source.fingerprint()}")  # type: ignore[attr-defined]
        return blake2b("\n".join(state).encode(), digest_size=16).hexdigest()

    def _named(self, task: str, part: str) -> str:
        return f"{part}.{task}" if self.prefix else task

    def _own(self, task: TaskData, part: str) -> TaskData:
        return replace(task, name=self._named(task.name, part), source=part)

    def _check_names(self, tasks: list[TaskData]) -> None:
        owners: dict[str, list[str]] = {}
        for task in tasks:
            owners.setdefault(task.name, []).append(str(task.source))
        shared = [name for name, parts in owners.items() if len(parts) > 1]
        if shared:
            parts = ", ".join(owners[shared[0]])
            raise ValueError(
                f"the sources {parts} all have the tasks {quote(shared, 5)} · names must differ · "
                "set data.prefix=true, which names them SOURCE.TASK."
            )


def _called(name: str, source: TaskSource) -> TaskCollection:
    try:
        return source()
    except ValueError as error:
        raise ValueError(f"data.sources.{name}: {error}") from error
