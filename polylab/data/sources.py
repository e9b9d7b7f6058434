"""Local folders of task files into tasks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from polylab.data.example import Example
from polylab.data.prompts import choose_paraphrase
from polylab.data.rows import RowReport, join_instruction, read_examples
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

SUFFIX = ".jsonl"
ON_EMPTY = ("error", "skip")
HELD_OUT = ("validation", "test")


@dataclass
class _Notes:
    """Counts per task of what was left out, turned into sentences."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, what: str, name: str, number: int) -> None:
        if number:
            self.counts.setdefault(what, Counter())[name] += number

    def sentences(self) -> list[str]:
        return [
            f"{what}: {sum(counts.values())} ("
            + ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
            + ")"
            for what, counts in self.counts.items()
        ]


@dataclass(frozen=True)
class _HeldOut:
    """What the files of `validation/` and `test/` hold, by task, and the pairs of all of them."""

    validation: dict[str, list[Example]]
    test: dict[str, list[Example]]
    pairs: set[tuple[str, str]]
    test_pairs: set[tuple[str, str]]

    @classmethod
    def read(cls, folder: Path, files: dict[str, Path], notes: _Notes) -> _HeldOut:
        validation, test = (
            {
                name: _read(path, f"{split}/{name}", notes)
                for name, path in _held_out_files(folder / split, files).items()
            }
            for split in HELD_OUT
        )
        test_pairs = pairs_of(chain.from_iterable(test.values()))
        pairs = test_pairs | pairs_of(chain.from_iterable(validation.values()))
        return cls(validation, test, pairs, test_pairs)

    def removed_from(self, task: TaskData, notes: _Notes) -> TaskData:
        """The task with its held-out rows, and without them among those to train on."""
        given, test = self.validation.get(task.name, []), self.test.get(task.name, [])
        validation = without_held_out(given, test, self.test_pairs)
        train = without_held_out(task.train, [*given, *test], self.pairs)
        notes.add(
            "training rows that occur in a validation or test file, removed",
            task.name,
            len(task.train) - len(train),
        )
        notes.add(
            "validation rows that occur in a test file, removed",
            task.name,
            len(given) - len(validation),
        )
        return TaskData(task.name, train, validation, test)


@dataclass(frozen=True)
class JsonlFolder:
    """A folder of `TASK.jsonl` files, read when called.

    Rows are `{"input": ..., "target": ...}` with optional `references`, `options` and
    `instruction`. Sub-folders `test/` and `validation/` hold those splits under the same file
    names; what has no folder is carved from the training rows by a hash of the input.
    `instructions.json` maps a task to paraphrases of its instruction.

    Args:
        path: The folder.
        validation_share: Share of the training rows to hold out, without a `validation/` folder.
        test_share: The same for `test/`.
        min_rows_to_split: A task with fewer distinct inputs keeps all its rows in training.
        on_empty: Whether a task without usable rows is an `error` or `skip`ped.

    Raises:
        ValueError: If a share or `on_empty` is not valid.
    """

    path: str | Path
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

    def __call__(self) -> TaskCollection:
        """Read and split the tasks.

        Raises:
            FileNotFoundError: If the folder or its task files are missing.
            ValueError: If a row is malformed (with `FILE:LINE`) or a task is empty.
        """
        folder = Path(self.path)
        notes = _Notes()
        files = task_files(folder)
        held_out = _HeldOut.read(folder, files, notes)
        instructions = _read_instructions(folder / "instructions.json")
        tasks: list[TaskData] = []
        empty: list[str] = []
        for name, path in files.items():  # one at a time: no task's rows but its own are objects
            task = held_out.removed_from(TaskData(name, _read(path, name, notes)), notes)
            if task.train:
                task = self._finish(task, folder, notes)
                tasks.append(_instructed(task, instructions.get(name, [])).compact())
            else:
                empty.append(name)
        skipped = self._refuse_empty(empty, folder)
        return TaskCollection(tasks, notes=(*skipped, *notes.sentences(), *_missing_splits(tasks)))

    def _refuse_empty(self, names: Sequence[str], folder: Path) -> list[str]:
        if not names:
            return []
        if self.on_empty == "skip" and len(names) < len(task_files(folder)):
            return [f"tasks without usable rows, skipped: {', '.join(names)}"]
        everything = " (that is every task)" if len(names) == len(task_files(folder)) else ""
        raise ValueError(
            f"no usable training rows in {quote(names)} of {folder}{everything} · every task needs "
            "a row with a non-empty target · remove the files or set data.on_empty=skip."
        )

    def _finish(self, task: TaskData, folder: Path, notes: _Notes) -> TaskData:
        train = dedupe(task.train)
        notes.add("exact duplicates, removed", task.name, len(task.train) - len(train))
        targets = {example.target for example in train}
        notes.add("tasks with one distinct target", task.name, int(len(targets) == 1))
        task = split_task(
            replace(task, train=train),
            validation_share=0.0 if (folder / "validation").is_dir() else self.validation_share,
            test_share=0.0 if (folder / "test").is_dir() else self.test_share,
            min_inputs=self.min_rows_to_split,
        )
        return _map_splits(task, share_references)


def task_files(folder: Path) -> dict[str, Path]:
    """Task name -> file, sorted by name; a name is the file's without `.jsonl`.

    Raises:
        FileNotFoundError: If the folder is missing or holds no task file.
    """
    if not folder.is_dir():
        kind = "it is a file" if folder.exists() else _nearest_existing(folder)
        raise FileNotFoundError(
            f"data.path={folder} is not a folder ({kind}) · it must hold TASK{SUFFIX} files · "
            "correct the path."
        )
    files = {
        path.name[: -len(SUFFIX)]: path for path in folder.glob(f"*{SUFFIX}") if path.is_file()
    }
    if not files:
        found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        raise FileNotFoundError(
            f"data.path={folder} holds no TASK{SUFFIX} file (found: "
            f"{quote(found, 8) or 'nothing'}) · one file a task is needed · correct the path."
        )
    return dict(sorted(files.items()))


def _nearest_existing(folder: Path) -> str:
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    found = sorted(path.name for path in parent.iterdir() if path.is_dir())
    return f"{parent} exists and has the folders {quote(found, 8) or 'none'}"


def _held_out_files(folder: Path, train: dict[str, Path]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = task_files(folder)
    unknown = sorted(set(files) - set(train))
    if unknown:
        raise ValueError(
            f"{folder} has {quote(unknown)} without training files of that name · the training "
            f"files are {quote(list(train), 8)} · rename or remove them."
        )
    return files


def _read(path: Path, name: str, notes: _Notes) -> list[Example]:
    report: RowReport = read_examples(path)
    notes.add("rows with an empty target, dropped", name, report.empty_targets)
    for key, number in report.ignored_keys.items():
        notes.add(f"rows with the key {key!r}, ignored", name, number)
    return report.examples


def _missing_splits(tasks: Sequence[TaskData]) -> list[str]:
    return [
        f"tasks without a {split} split of their own: {', '.join(missing)}"
        for split in HELD_OUT
        if (missing := [task.name for task in tasks if not task.split(split)])
    ]


def _map_splits(
    task: TaskData, change: Callable[[Sequence[Example]], Sequence[Example]]
) -> TaskData:
    return TaskData(task.name, change(task.train), change(task.validation), change(task.test))


def _instructed(task: TaskData, paraphrases: list[str]) -> TaskData:
    def instruct(example: Example) -> Example:
        if example.instruction is not None:
            return example
        chosen = choose_paraphrase(paraphrases, split_text(example))
        return replace(example, instruction=join_instruction(chosen, example.input))

    return _map_splits(task, lambda rows: [*map(instruct, rows)]) if paraphrases else task


def _read_instructions(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}) · it must map a task to a list of instructions · "
            "mend the file."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: a JSON {type(content).__name__} · it must map a task to a list of "
            "instructions · mend the file."
        )
    for name, texts in content.items():
        if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError(
                f"{path}: task {name!r} has {str(texts)[:60]} · it must be a list of non-empty "
                "strings · mend the file."
            )
    return content
