"""CrossFit's NLP Few-shot Gym (https://arxiv.org/abs/2104.08835): TSV files, a few shots a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from polylab.data.example import Example
from polylab.data.rows import parse_row
from polylab.data.sources.base import FileSource, TaskReader
from polylab.data.sources.crossfit_files import (
    LISTS,
    Files,
    Samples,
    read_partition,
    read_rows,
    samples_of,
    task_folders,
)
from polylab.data.sources.notes import Notes
from polylab.data.splitting import split_text
from polylab.data.tasks import quote

TASKS = ("auto", *LISTS, "all")
SUFFIXES = {"train": "train", "validation": "dev", "test": "test"}


@dataclass(frozen=True)
class CrossFitSource(FileSource):
    """A folder with `TASK/TASK_SHOTS_SEED_train.tsv`, `..._dev.tsv` and `..._test.tsv`.

    A line is an input, a tab and a target; further targets are further references. Nothing is
    quoted, lines end at a line feed (a carriage return before it is no text), blank ones are
    skipped.

    A seed is a sample of a task's rows. Training pools the files of the seeds, as CrossFit's
    upstream learning does; validation and test are the union of theirs, in which a row is as often
    as in the one file that has it most often. A validation row whose input is trained on, in
    another seed mostly, is left out.

    A classification task has its shots for every label, another task in all. Where a training file
    has more rows than shots, and its most frequent target as many, the targets are the options.

    Args:
        path: The folder.
        tasks: `train`, `dev` or `test`: those of this list of the partition; `all`: of all its
            lists, or without a partition all folders; `auto`: `train` if there is a partition, else
            `all`.
        partition: A JSON file, `{"train": [TASK, ...], "dev": [...], "test": [...]}`.
        shots: Those of the files to read, where there are several in a folder.
        seeds: The same of seeds; all if None, and then all tasks must have the same.

    Raises:
        ValueError: If an argument is not valid.
    """

    path: str | Path
    tasks: str = "auto"
    partition: str | Path | None = None
    shots: int | None = None
    seeds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks not in TASKS:
            raise ValueError(
                f"data.tasks={self.tasks!r} · valid: {', '.join(TASKS)} · choose one of them."
            )
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"data.shots={self.shots} · it must be at least 1 · raise it.")
        if self.seeds is not None and len(set(self.seeds)) < max(1, len(self.seeds)):
            raise ValueError(
                f"data.seeds={[*self.seeds]} · one or more distinct seeds are needed · name each "
                "once, or set data.seeds=null for all."
            )
        if self.partition is None and self.tasks in LISTS:
            raise ValueError(
                f"data.tasks={self.tasks} without data.partition · the lists of tasks are in a "
                "file of CrossFit · set data.partition=FILE, or data.tasks=all."
            )

    @property
    def where(self) -> str:
        return str(self.path)

    def readers(self) -> Sequence[TaskReader]:
        found = {name: self._of_shots(name, samples) for name, samples in self._chosen().items()}
        seeds = self._seeds({name: by_seed for name, (_, by_seed) in found.items()})
        return [
            _Task(
                name,
                shots,
                {split: [by_seed[seed][SUFFIXES[split]] for seed in seeds] for split in SUFFIXES},
            )
            for name, (shots, by_seed) in found.items()
        ]

    def files(self) -> Sequence[Path]:
        partition = [] if self.partition is None else [Path(self.partition)]
        samples = [its for task in self._chosen().values() for its in task.values()]
        return [*partition, *(path for files in samples for path in files.values())]

    def remarks(self) -> Sequence[str]:
        lists, found = self._lists(), self._chosen()
        said = []
        if self.tasks == "auto" and not lists:
            said.append(
                f"data.tasks=auto: no data.partition, so that all {len(found)} tasks are read"
            )
        elif self.tasks == "auto":
            left = " and ".join(f"{len(lists[name])} {name}" for name in LISTS if name != "train")
            said.append(
                f"data.tasks=auto: the {len(found)} training tasks of {self.partition} are read, "
                f"its {left} tasks are not (data.tasks=train|dev|test|all)"
            )
        elif self.tasks == "all" and lists:
            others = sum(len(lists[name]) for name in LISTS if name != "train")
            said.append(
                f"data.tasks=all: {others} dev and test tasks of {self.partition} are among those "
                "read"
            )
        keys = {key for samples in found.values() for key in samples}
        seeds = sorted({seed for shots, seed in keys if self.shots in (None, shots)})
        if self.seeds is None and len(seeds) > 1:
            said.append(f"data.seeds=null: the files of the seeds {_listed(seeds)} are pooled")
        return said

    def _lists(self) -> dict[str, list[str]]:
        return {} if self.partition is None else read_partition(Path(self.partition))

    def _chosen(self) -> dict[str, Samples]:
        """The files of the tasks that are read, by name."""
        folders, lists = task_folders(Path(self.path)), self._lists()
        if not lists:
            return {name: samples_of(folder) for name, folder in folders.items()}
        names = LISTS if self.tasks == "all" else ["train" if self.tasks == "auto" else self.tasks]
        wanted = sorted(task for name in names for task in lists[name])
        if not wanted:
            raise ValueError(
                f"{self.partition}: no task in its list {quote(names)} (data.tasks={self.tasks}) · "
                "choose another list, or another partition."
            )
        missing = [name for name in wanted if name not in folders]
        if missing:
            raise FileNotFoundError(
                f"{self.path} lacks {len(missing)} of the {len(wanted)} tasks of {self.partition} "
                f"(data.tasks={self.tasks}), as {quote(missing, 3)} · build them, or give a "
                "partition of the tasks that are there."
            )
        return {name: samples_of(folders[name]) for name in wanted}

    def _of_shots(self, name: str, samples: Samples) -> tuple[int, dict[int, Files]]:
        """The number of shots of a task that is read, and the files by seed."""
        known = sorted({shots for shots, _ in samples})
        folder = Path(self.path) / name
        if self.shots is None and len(known) > 1:
            raise ValueError(
                f"{folder} has files of {_listed(known)} shots · one of these is read · set "
                "data.shots."
            )
        shots = known[0] if self.shots is None else self.shots
        if shots not in known:
            raise ValueError(
                f"data.shots={shots}: {folder} has files of {_listed(known)} shots · in CrossFit "
                "classification has 16 and other tasks have 32 · set data.shots=null for those "
                "that each task has."
            )
        return shots, {seed: files for (its, seed), files in samples.items() if its == shots}

    def _seeds(self, found: Mapping[str, Mapping[int, Files]]) -> list[int]:
        """The seeds that are read, once it is known that all tasks have them."""
        seeds = self.seeds or sorted({seed for by_seed in found.values() for seed in by_seed})
        for name, by_seed in found.items():
            folder = Path(self.path) / name
            missing = [seed for seed in seeds if seed not in by_seed]
            if missing:
                given = "null (all)" if self.seeds is None else [*self.seeds]
                raise ValueError(
                    f"data.seeds={given}: {folder} has the seeds {_listed(sorted(by_seed))} and "
                    f"lacks {_listed(missing)} · all tasks need the same · build the files, or "
                    "name seeds that all tasks have."
                )
            for seed in seeds:
                _check_whole(by_seed[seed])
        return [*seeds]


@dataclass(frozen=True)
class _Task(TaskReader):
    name: str
    shots: int
    paths: Mapping[str, Sequence[Path]]  # by split, one of each seed

    def read(self, split: str, notes: Notes) -> list[Example]:
        found = [
            [parse_row({"input": cells[0], "target": cells[1:], **self._options}, where)
             for where, cells in read_rows(path)]
            for path in _distinct(self.paths[split])
        ]  # fmt: skip
        kept = [[example for example in rows if example is not None] for rows in found]
        name = self.name if split == "train" else f"{split}/{self.name}"
        dropped = sum(map(len, found)) - sum(map(len, kept))
        notes.add("rows with an empty target, dropped", name, dropped)
        if split == "train":
            return [example for rows in kept for example in rows]
        union = _union(kept)
        if split == "test":
            return union
        apart = [example for example in union if split_text(example) not in self._trained]
        removed = len(union) - len(apart)
        notes.add("validation rows with an input that is trained on, removed", name, removed)
        return apart

    @cached_property
    def _trained(self) -> set[str]:
        """The texts of all training rows."""
        return {split_text(example) for example in self.read("train", Notes())}

    @cached_property
    def _options(self) -> dict[str, list[str]]:
        """The labels of a classification task."""
        labels: set[str] = set()
        for path in self.paths["train"]:
            targets = [cells[1:] for _, cells in read_rows(path)]
            counts = Counter(target for target, *_ in targets)
            is_single = all(len(its) == 1 and its[0].strip() for its in targets)
            if not is_single or len(targets) <= self.shots or max(counts.values()) != self.shots:
                return {}
            labels.update(counts)
        return {"options": sorted(labels)}


def _check_whole(files: Files) -> None:
    there = next(iter(files.values()))
    for suffix in SUFFIXES.values():
        if suffix not in files:
            path = there.with_name(f"{there.stem.rpartition('_')[0]}_{suffix}.tsv")
            raise FileNotFoundError(
                f"{path} is missing, and {there.name} is there · a seed has files of train, dev "
                "and test · build it, or choose other data.seeds."
            )


def _distinct(paths: Sequence[Path]) -> list[Path]:
    """Without files that another one equals: the tests of all seeds do, and are the largest."""
    found: dict[bytes, Path] = {}
    for path in paths:
        found.setdefault(blake2b(path.read_bytes()).digest(), path)
    return [*found.values()]


def _union(files: Sequence[Sequence[Example]]) -> list[Example]:
    """Each example as often as in the one file that has it most often."""
    union: list[Example] = []
    there: Counter[Example] = Counter()
    for rows in files:
        own: Counter[Example] = Counter()
        for example in rows:
            own[example] += 1
            if own[example] > there[example]:
                there[example] += 1
                union.append(example)
    return union


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
