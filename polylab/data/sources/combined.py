"""Several sources as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

from polylab.data.sources.notes import Notes
from polylab.data.splitting import pairs_of, without_held_out
from polylab.data.tasks import TaskCollection, TaskData, TaskSource

Skills = dict[str, Sequence[str]]


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

    No example is trained on that is in validation or test of any of them, as within a source.

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
            FileNotFoundError: As the parts do, with the part's name in front.
            ValueError: The same; or if two parts have a task of one name, or all training rows of a
                task are held out by another (skipped, where the part skips empty tasks).
        """
        notes, skills = Notes(), Skills()
        tasks = [*self._read(notes, skills)]
        kept = [*self._without_overlaps(tasks, *_held_out(tasks), notes)]
        names = {task.name for task in kept}
        skills = {task: needed for task, needed in skills.items() if task in names}
        return TaskCollection(kept, skills or None, (*notes.sentences(),), self.shares)

    def stream(self, notes: Notes) -> Iterator[TaskData]:
        """The tasks of all parts, one after another, read twice: what is held out comes first.

        Raises:
            FileNotFoundError: As `__call__`.
            ValueError: As `__call__`.
        """
        held_out = _held_out(self._read(Notes(), Skills()))
        yield from self._without_overlaps(self._read(notes, Skills()), *held_out, notes)

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
            with _called(name):
                state.append(f"{name} {part.source.fingerprint()}")  # type: ignore[attr-defined]
        return blake2b("\n".join(state).encode(), digest_size=16).hexdigest()

    def _read(self, notes: Notes, skills: Skills) -> Iterator[TaskData]:
        """The tasks of all parts under their names; notes and skills are filled on the way."""
        owners: dict[str, str] = {}
        for part, (source, _) in self.parts.items():
            own_notes, own_skills = Notes(), Skills()
            with _called(part):
                for task in _stream(source, own_notes, own_skills):
                    name = self._named(task.name, part)
                    owner = owners.setdefault(name, part)
                    if owner != part:
                        raise ValueError(
                            f"the task {name!r} is in data.sources.{owner} too · names must differ "
                            "· set data.prefix=true, which names them SOURCE.TASK."
                        )
                    yield replace(task, name=name, source=part)
            for sentence in own_notes.sentences():
                notes.say(f"{part}: {sentence}")
            skills.update((self._named(task, part), its) for task, its in own_skills.items())

    def _named(self, task: str, part: str) -> str:
        return f"{part}.{task}" if self.prefix else task

    def _without_overlaps(
        self, tasks: Iterable[TaskData], pairs: set[bytes], test_pairs: set[bytes], notes: Notes
    ) -> Iterator[TaskData]:
        for task in tasks:
            train = without_held_out(task.train, (), pairs)
            validation = without_held_out(task.validation, (), test_pairs)
            removed = len(task.train) - len(train)
            what = "training rows that occur in validation or test of any source, removed"
            notes.add(what, task.name, removed)
            what = "validation rows that occur in the test of any source, removed"
            notes.add(what, task.name, len(task.validation) - len(validation))
            if removed and not train:
                self._refuse_empty(task)
                notes.add("tasks of which no training row was left, skipped", task.name, 1)
            elif removed or len(validation) < len(task.validation):
                yield replace(task, train=train, validation=validation).compact()
            else:
                yield task

    def _refuse_empty(self, task: TaskData) -> None:
        assert task.source is not None
        if getattr(self.parts[task.source].source, "on_empty", "error") != "skip":
            raise ValueError(
                f"data.sources.{task.source}: all {len(task.train)} training rows of {task.name!r} "
                "occur in validation or test of a source · leave the task out of one of them, or "
                f"set data.sources.{task.source}.on_empty=skip."
            )


def _held_out(tasks: Iterable[TaskData]) -> tuple[set[bytes], set[bytes]]:
    """What is in validation or test, and what is in test, as `pairs_of`."""
    validation, test = set[bytes](), set[bytes]()
    for task in tasks:
        validation |= pairs_of(task.validation)
        test |= pairs_of(task.test)
    return validation | test, test


def _stream(source: TaskSource, notes: Notes, skills: Skills) -> Iterator[TaskData]:
    """The tasks of one source, of those that can one after another."""
    if hasattr(source, "stream"):
        yield from source.stream(notes)  # type: ignore[attr-defined]
        return
    collection = source()
    for sentence in collection.notes:
        notes.say(sentence)
    skills.update(collection.skills or {})
    yield from collection.tasks


@contextmanager
def _called(part: str) -> Iterator[None]:
    """Put the part's name in front of what it raises."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"data.sources.{part}: {error}") from error
