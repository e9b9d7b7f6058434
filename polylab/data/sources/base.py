"""What all sources that read files share: held-out rows, duplicates, splits, empty tasks.

A source says which tasks there are and how the rows of one are read (`TaskReader`). Tasks are then
finished one at a time, so that no task's rows but its own are in memory as objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path

from polylab.data.example import Example
from polylab.data.prompts import choose_paraphrase
from polylab.data.sources.notes import Notes
from polylab.data.splitting import (
    check_shares,
    dedupe,
    pairs_of,
    share_references,
    split_task,
    split_text,
    without_held_out,
)
from polylab.data.tasks import TaskCollection, TaskData, quote
from polylab.data.texts import join_instruction

ON_EMPTY = ("error", "skip")
HELD_OUT = ("validation", "test")
# in every fingerprint: raise it when the same files and settings give other tasks than before
_READING = 2


@dataclass(frozen=True)
class About:
    """What is known of a task beside its rows.

    Args:
        description: What the task is, in words.
        categories: Groups that it belongs to, such as `Question Answering`.
        paraphrases: Of its instruction; one is put before each input that comes without one.
    """

    description: str | None = None
    categories: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()


class TaskReader(ABC):
    """Reads the rows of one task.

    Attributes:
        name: Of the task.
    """

    name: str

    @abstractmethod
    def read(self, split: str, notes: Notes) -> list[Example] | None:
        """The rows of `train`, `validation` or `test`, in their order.

        Args:
            split: Which.
            notes: Takes what was left out.

        Returns:
            None where the source has no such split, so that it is carved from the training rows.

        Raises:
            ValueError: If a row is malformed, with `FILE:LINE` as far as the format has lines.
        """

    def about(self) -> About:
        """What else is known of the task."""
        return About()


@dataclass(frozen=True, kw_only=True)
class FileSource(ABC):
    """A source of tasks that are read from files, whenever it is called.

    Args:
        validation_share: Share of the training rows to hold out where there is no validation split.
        test_share: The same of the test.
        min_rows_to_split: A task with fewer distinct inputs keeps all its rows in training.
        on_empty: Whether a task without usable rows is an `error` or `skip`ped.

    Raises:
        ValueError: If a share or `on_empty` is not valid.
    """

    validation_share: float = 0.1
    test_share: float = 0.1
    min_rows_to_split: int = 50
    on_empty: str = "error"

    def __post_init__(self) -> None:
        check_shares(self.validation_share, self.test_share)
        if self.on_empty not in ON_EMPTY:
            raise ValueError(
                f"data.on_empty={self.on_empty!r} · valid: {', '.join(ON_EMPTY)} · "
                "choose one of them."
            )

    shares = None  # all tasks are of this source

    @abstractmethod
    def readers(self) -> Sequence[TaskReader]:
        """One for each task.

        Raises:
            FileNotFoundError: If the files are missing.
            ValueError: If they are not what they should be.
        """

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """All files that are read."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The place, as errors name it."""

    def remarks(self) -> Sequence[str]:
        """Sentences on which tasks are read, where that is not simply what was asked for."""
        return ()

    def fingerprint(self) -> str:
        """Changes with the settings and the files (their paths, sizes and times of change)."""
        state = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self)]
        for path in self.files():
            found = path.stat()
            state.append(f"{path.resolve()} {found.st_size} {found.st_mtime_ns}")
        text = "\n".join([f"{type(self).__qualname__} {_READING}", *state])
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def __call__(self) -> TaskCollection:
        """Read and split the tasks.

        Raises:
            FileNotFoundError: If files are missing.
            ValueError: If a row is malformed or a task is empty.
        """
        notes = Notes()
        tasks = [*self.stream(notes)]
        return TaskCollection(tasks, notes=(*notes.sentences(),))

    def stream(self, notes: Notes) -> Iterator[TaskData]:
        """The tasks, one after another.

        Args:
            notes: Takes what was noticed.

        Raises:
            FileNotFoundError: As `__call__`.
            ValueError: As `__call__`, for empty tasks at the end.
        """
        readers = self.readers()
        for sentence in self.remarks():
            notes.say(sentence, first=True)
        pairs, test_pairs = _held_out_pairs(readers)
        empty: list[str] = []
        missing: dict[str, list[str]] = {split: [] for split in HELD_OUT}
        for reader in readers:
            task = self._finish(reader, notes, pairs=pairs, test_pairs=test_pairs)
            if not task.train:
                empty.append(task.name)
                continue
            for split, names in missing.items():
                if not task.split(split):
                    names.append(task.name)
            yield task.compact()
        self._refuse_empty(empty, len(readers), notes)
        for split, names in missing.items():
            if names:
                notes.say(f"tasks without a {split} split of their own: {', '.join(names)}")

    def _finish(
        self,
        reader: TaskReader,
        notes: Notes,
        *,
        pairs: set[bytes],
        test_pairs: set[bytes],
    ) -> TaskData:
        given = {split: reader.read(split, notes) for split in HELD_OUT}
        about = reader.about()
        task = TaskData(
            reader.name,
            reader.read("train", notes) or [],
            given["validation"] or [],
            given["test"] or [],
            categories=about.categories,
            description=about.description,
        )
        task = _without_overlaps(task, notes, pairs=pairs, test_pairs=test_pairs)
        if not task.train:
            return task
        train = dedupe(task.train)
        notes.add("exact duplicates, removed", task.name, len(task.train) - len(train))
        is_constant = len({example.target for example in train}) == 1
        notes.add("tasks with one distinct target", task.name, int(is_constant))
        task = split_task(
            replace(task, train=train),
            validation_share=self.validation_share if given["validation"] is None else 0.0,
            test_share=self.test_share if given["test"] is None else 0.0,
            min_inputs=self.min_rows_to_split,
        )
        return _instructed(_map_splits(task, share_references), about.paraphrases)

    def _refuse_empty(self, names: Sequence[str], n_tasks: int, notes: Notes) -> None:
        if not names:
            return
        if self.on_empty == "skip" and len(names) < n_tasks:
            notes.say(f"tasks without usable rows, skipped: {', '.join(names)}", first=True)
            return
        everything = " (that is every task)" if len(names) == n_tasks else ""
        raise ValueError(
            f"no usable training rows in {quote(names)} of {self.where}{everything} · every task "
            "needs a row with a non-empty target · remove the files or set data.on_empty=skip."
        )


def _held_out_pairs(readers: Sequence[TaskReader]) -> tuple[set[bytes], set[bytes]]:
    """Texts and targets in validation or test, and in test, of all tasks."""
    found: dict[str, set[bytes]] = {split: set() for split in HELD_OUT}
    for reader in readers:
        for split, pairs in found.items():
            pairs |= pairs_of(reader.read(split, Notes()) or [])  # noted when it is used
    return found["validation"] | found["test"], found["test"]


def _without_overlaps(
    task: TaskData,
    notes: Notes,
    *,
    pairs: set[bytes],
    test_pairs: set[bytes],
) -> TaskData:
    validation = without_held_out(task.validation, task.test, test_pairs)
    train = without_held_out(task.train, [*task.validation, *task.test], pairs)
    removed = len(task.train) - len(train)
    notes.add("training rows that occur in a validation or test file, removed", task.name, removed)
    removed = len(task.validation) - len(validation)
    notes.add("validation rows that occur in a test file, removed", task.name, removed)
    return replace(task, train=train, validation=validation)


def _map_splits(
    task: TaskData, change: Callable[[Sequence[Example]], Sequence[Example]]
) -> TaskData:
    return replace(
        task,
        train=change(task.train),
        validation=change(task.validation),
        test=change(task.test),
    )


def _instructed(task: TaskData, paraphrases: Sequence[str]) -> TaskData:
    def instruct(example: Example) -> Example:
        if example.instruction is not None:
            return example
        chosen = choose_paraphrase(paraphrases, split_text(example))
        return replace(example, instruction=join_instruction(chosen, example.input))

    return _map_splits(task, lambda rows: [*map(instruct, rows)]) if paraphrases else task
