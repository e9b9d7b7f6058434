"""What sources with columns share: tasks by column, file or part; splits; caps; safe names."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from polylab.data.example import Example
from polylab.data.sources.base import FileSource, TaskReader
from polylab.data.sources.columns import Roles, check_columns, find_roles
from polylab.data.sources.notes import Notes
from polylab.data.sources.selecting import (
    Rows,
    capped,
    ignored_columns,
    located,
    safe_names,
)
from polylab.data.sources.tables import Piece, Table
from polylab.data.tasks import SPLITS, quote

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Part:
    """A table and what its place says of it.

    Args:
        table: The table.
        task: The task of its rows, where no column says it.
        split: The split of its rows, as the source names it, where no column says it.
    """

    table: Table
    task: str
    split: str


@dataclass(frozen=True, kw_only=True)
class ColumnSource(FileSource):
    """A source of tables with columns.

    Args:
        columns: The column of a role (`input`, `target`, `task`, `split`, `options`, `references`,
            `instruction`), where it has none of the usual names (`ALIASES`). With an `instruction`
            that is found by its usual name, instruction and input are two halves of one prompt;
            with one that is named here the input stays bare, as in JSONL.
        splits: What train, validation and test are called, where that is not one of `SPLIT_NAMES`.
        tasks: `auto`: by the task column if there is one, else as the source is made; or one of
            the source's own ways.
        max_examples_per_task: Cap on a task's training rows, before any are held out: a random
            subset, in the order of the rows, that depends on the task's name alone. The test and
            validation splits that the data bring stay whole.

    Raises:
        ValueError: If one of these is not valid.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    splits: Mapping[str, str | None] = field(default_factory=dict)
    tasks: str = "auto"
    max_examples_per_task: int | None = None

    WAYS: ClassVar[tuple[str, ...]] = ("auto", "column")
    KEYS: ClassVar[tuple[str, ...]] = ("task", "split")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_columns(self.columns)
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown:
            raise ValueError(
                f"data.splits has {quote(unknown)} · valid: {', '.join(SPLITS)} · rename them."
            )
        if self.tasks not in self.WAYS:
            raise ValueError(
                f"data.tasks={self.tasks!r} · valid: {', '.join(self.WAYS)} · choose one of them."
            )
        if self.tasks not in ("auto", "column") and self.columns.get("task"):
            raise ValueError(
                f"data.tasks={self.tasks} with data.columns.task={self.columns['task']} · a column "
                "names the tasks or it does not · leave one of the two out."
            )
        if self.max_examples_per_task is not None and self.max_examples_per_task < 1:
            raise ValueError(
                f"data.max_examples_per_task={self.max_examples_per_task} · it must be at least 1, "
                "or null for no cap · raise it."
            )

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """The tables.

        Raises:
            FileNotFoundError: If the files are missing.
            ValueError: If they are not what they should be.
        """

    def readers(self) -> Sequence[TaskReader]:
        parts = self.parts()
        roles = [find_roles(part.table.columns, self.columns, part.table.where) for part in parts]
        rows: dict[str, dict[str, list[Rows]]] = defaultdict(lambda: defaultdict(list))
        keys, wanted = self._keys(parts, roles), self.wanted()
        seen: list[Mapping[str, str]] = []
        for part, its in zip(parts, roles, strict=True):
            by = [its.names[key] for key in keys]
            pieces = part.table.pieces(by) if by else {(): Piece(part.table)}
            if "task" not in keys:
                rows[self.task_of({}, part)]  # one without rows is a task too
            for values, piece in pieces.items():
                found = dict(zip(keys, values, strict=True))
                seen.append(found)
                if all(found.get(key) in values for key, values in wanted.items()):
                    split = found.get("split", part.split)
                    rows[self.task_of(found, part)][split].append(Rows(piece, its))
        self._check_wanted(wanted, seen)
        splits = self._find_splits({split for found in rows.values() for split in found})
        names = self.names(rows)
        tasks = [self._reader(names[task], found, splits) for task, found in rows.items()]
        return sorted(tasks, key=lambda task: task.name)

    def wanted(self) -> Mapping[str, Sequence[str]]:
        """For some of `KEYS` the values that are read, where not all are."""
        return {}

    def task_of(self, found: Mapping[str, str], part: Part) -> str:
        """The task of rows with these values in the columns of `KEYS`."""
        return found.get("task", part.task)

    def names(self, tasks: Iterable[str]) -> dict[str, str]:
        """The name of each task.

        Raises:
            ValueError: If two would have the same.
        """
        return safe_names({task: task for task in tasks})

    def load(self, rows: Sequence[Rows], *, task: str, cap: int | None) -> list[Example | None]:
        """The examples of rows, at most `cap` of them.

        Raises:
            ValueError: With the place of the row, if one is malformed.
        """
        kept = rows if cap is None else capped(rows, cap, task)
        return [example for its in kept for example in self.examples(its)]

    def examples(self, rows: Rows) -> Iterator[Example | None]:
        """The examples of rows; None for one without a target.

        Raises:
            ValueError: With the place of the row, if it is malformed.
        """
        table = rows.piece.table
        for where, cells in rows.piece.rows(rows.roles.read):
            cells = rows.roles.from_text(cells, where) if table.is_text else cells
            yield rows.roles.example(cells, where)

    def _keys(self, parts: Sequence[Part], roles: Sequence[Roles]) -> list[str]:
        """The roles whose columns say what rows are, the same in every table."""
        return [key for key in self.KEYS if self._is_used(key, parts, roles)]

    def _is_used(self, key: str, parts: Sequence[Part], roles: Sequence[Roles]) -> bool:
        if key == "task" and self.tasks not in ("auto", "column"):
            return False
        where = {key in its.names: part.table.where for part, its in zip(parts, roles, strict=True)}
        if len(where) == 2:
            raise ValueError(
                f"{where[True]} has a column for the {key} and {where[False]} has none · all "
                f"tables of a source have it or none · add it, or set data.columns.{key}=NAME."
            )
        if key == "task" and self.tasks == "column" and True not in where:
            raise ValueError(
                f"data.tasks=column, and {where[False]} has no column for the task · say which: "
                "data.columns.task=NAME."
            )
        names = sorted({part.split for part in parts})
        if key == "split" and len(names) > 1:
            if self.columns.get("split"):
                raise ValueError(
                    f"data.columns.split={self.columns['split']}, and the tables are of the splits "
                    f"{quote(names)} already · one of the two says it · leave it out."
                )
            return False
        return True in where

    def _check_wanted(
        self, wanted: Mapping[str, Sequence[str]], seen: Sequence[Mapping[str, str]]
    ) -> None:
        for key, values in wanted.items():
            found = {its[key] for its in seen if key in its}
            unknown = sorted(set(values) - found)
            if unknown:
                raise ValueError(
                    f"{self.where} has no rows of the {key} {quote(unknown)} · it has "
                    f"{quote(sorted(found)) or 'no column for it'} · name those."
                )

    def _find_splits(self, names: set[str]) -> dict[str, str]:
        """Train, validation or test of the names of splits that stand for one."""
        found: dict[str, str] = {}
        for split in SPLITS:
            given = self.splits.get(split)
            usual = [name for name in SPLIT_NAMES[split] if name in names - {*self._given_splits}]
            if given is not None and given not in names:
                raise ValueError(
                    f"data.splits.{split}={given!r} is no split of {self.where} · it has "
                    f"{quote(sorted(names))} · name one of them."
                )
            if given is None and len(usual) > 1:
                raise ValueError(
                    f"{self.where}: each of {quote(usual)} could be the {split} split · say which: "
                    f"data.splits.{split}=NAME."
                )
            found |= dict.fromkeys([given] if given else usual, split)
        if "train" not in found.values() and names:
            raise ValueError(
                f"{self.where} has no training split (found: {quote(sorted(names))}) · say which: "
                "data.splits.train=NAME."
            )
        return found

    @property
    def _given_splits(self) -> list[str]:
        return [name for name in self.splits.values() if name is not None]

    def _reader(
        self, name: str, rows: Mapping[str, list[Rows]], splits: Mapping[str, str]
    ) -> _ColumnTask:
        read: dict[str, list[Rows]] = {split: [] for split in splits.values()}
        for given, found in rows.items():
            if given in splits:
                read[splits[given]] += found
        others = {given: found for given, found in rows.items() if given not in splits}
        return _ColumnTask(name, self, read, others)


@dataclass(frozen=True)
class _ColumnTask(TaskReader):
    name: str
    source: ColumnSource
    rows: Mapping[str, Sequence[Rows]]  # by split; without a split that no task has
    others: Mapping[str, Sequence[Rows]]  # of splits that are none of ours

    def read(self, split: str, notes: Notes) -> list[Example] | None:
        if split not in self.rows:
            return None
        is_train = split == "train"
        rows = self.rows[split]
        cap = self.source.max_examples_per_task if is_train else None
        found = self.source.load(rows, task=self.name, cap=cap)
        kept = [example for example in found if example is not None]
        name = self.name if is_train else f"{split}/{self.name}"
        notes.add("rows with an empty target, dropped", name, len(found) - len(kept))
        for column in sorted({column for its in rows for column in ignored_columns(its)}):
            notes.add(f"rows with the column {column!r}, ignored", name, len(found))
        for other, its in self.others.items() if is_train else ():
            count = sum(len(located(each.piece)) for each in its)
            notes.add(f"rows of the split {other!r}, not read", name, count)
        return kept
