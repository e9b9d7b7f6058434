"""A folder of JSONL files, one a task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polylab.data.example import Example
from polylab.data.rows import RowReport, read_examples
from polylab.data.sources.base import HELD_OUT, About, FileSource, TaskReader
from polylab.data.sources.notes import Notes
from polylab.data.tasks import quote

SUFFIX = ".jsonl"
INSTRUCTIONS = "instructions.json"


@dataclass(frozen=True)
class JsonlFolder(FileSource):
    """A folder of `TASK.jsonl` files, read when called.

    Rows are `{"input": ..., "target": ...}` with optional `references`, `options` and
    `instruction`. Sub-folders `test/` and `validation/` hold those splits under the same file
    names; what has no folder is carved from the training rows by a hash of the input.
    `instructions.json` maps a task to paraphrases of its instruction.

    Args:
        path: The folder. Further arguments are those of `FileSource`.
    """

    path: str | Path

    @property
    def where(self) -> str:
        return str(self.path)

    def readers(self) -> Sequence[TaskReader]:
        splits = self._files()
        instructions = _read_instructions(Path(self.path) / INSTRUCTIONS)
        return [
            _JsonlTask(
                name,
                {split: files.get(name) for split, files in splits.items()},
                instructions.get(name, ()),
            )
            for name in splits["train"]
        ]

    def files(self) -> Sequence[Path]:
        found = [path for files in self._files().values() for path in files.values()]
        instructions = Path(self.path) / INSTRUCTIONS
        return [*found, *([instructions] if instructions.is_file() else [])]

    def _files(self) -> dict[str, dict[str, Path]]:
        """By split and task; without a split that has no folder."""
        folder = Path(self.path)
        train = task_files(folder)
        held_out = {
            split: _held_out_files(folder / split, train)
            for split in HELD_OUT
            if (folder / split).is_dir()
        }
        return {"train": train, **held_out}


@dataclass(frozen=True)
class _JsonlTask(TaskReader):
    name: str
    files: Mapping[str, Path | None]
    paraphrases: tuple[str, ...]

    def read(self, split: str, notes: Notes) -> list[Example] | None:
        if split not in self.files:
            return None
        path = self.files[split]
        if path is None:
            return []
        name = self.name if split == "train" else f"{split}/{self.name}"
        report: RowReport = read_examples(path)
        notes.add("rows with an empty target, dropped", name, report.empty_targets)
        for key, number in report.ignored_keys.items():
            notes.add(f"rows with the key {key!r}, ignored", name, number)
        return report.examples

    def about(self) -> About:
        return About(paraphrases=self.paraphrases)


def task_files(folder: Path, suffix: str = SUFFIX) -> dict[str, Path]:
    """Task name -> file, sorted by name; a name is the file's without the suffix.

    Raises:
        FileNotFoundError: If the folder is missing or holds no task file.
    """
    if not folder.is_dir():
        kind = "it is a file" if folder.exists() else _nearest_existing(folder)
        raise FileNotFoundError(
            f"data.path={folder} is not a folder ({kind}) · it must hold TASK{suffix} files · "
            "correct the path."
        )
    files = {
        path.name[: -len(suffix)]: path for path in folder.glob(f"*{suffix}") if path.is_file()
    }
    if not files:
        found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        raise FileNotFoundError(
            f"data.path={folder} holds no TASK{suffix} file (found: "
            f"{quote(found, 8) or 'nothing'}) · one file a task is needed · correct the path."
        )
    return dict(sorted(files.items()))


def _nearest_existing(folder: Path) -> str:
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    found = sorted(path.name for path in parent.iterdir() if path.is_dir())
    return f"{parent} exists and has the folders {quote(found, 8) or 'none'}"


def _held_out_files(folder: Path, train: dict[str, Path]) -> dict[str, Path]:
    files = task_files(folder)
    unknown = sorted(set(files) - set(train))
    if unknown:
        raise ValueError(
            f"{folder} has {quote(unknown)} without training files of that name · the training "
            f"files are {quote(list(train), 8)} · rename or remove them."
        )
    return files


def _read_instructions(path: Path) -> dict[str, tuple[str, ...]]:
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
    return {name: (*texts,) for name, texts in content.items()}
