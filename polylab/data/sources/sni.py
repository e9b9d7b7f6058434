"""Super-NaturalInstructions in its original JSON files (https://arxiv.org/abs/2204.07705)."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from polylab.data.example import Example
from polylab.data.sources.base import About, FileSource, TaskReader
from polylab.data.sources.notes import Notes
from polylab.data.sources.selecting import choose
from polylab.data.tasks import quote

TASKS = ("all", "train", "test")
N_TEST = 100  # instances of a task that the official evaluation takes: the first ones


@dataclass(frozen=True)
class Prompting:
    """What an input with its instruction holds, in Tk-Instruct's form.

    Args:
        positive: Positive examples at most.
        negative: Negative examples at most.
        explanations: Whether examples come with theirs.
        max_words: An example that would make the whole longer is left out, with all after it.
    """

    positive: int
    negative: int
    explanations: bool
    max_words: int


@dataclass(frozen=True)
class NaturalInstructions(FileSource):
    """A folder of task files, or one that holds them in `tasks/`.

    The first 100 instances of a task are its test, as in the official evaluation; of one with fewer
    than 200 the first third. What remains is for training and validation. With `data.prompt=none`
    the input is the instance's alone; with `instruction` it follows the definition and examples as
    in Tk-Instruct, whose limit is 1,024 tokens: tokens are not known here, so that words are
    counted.

    Args:
        path: The folder.
        tasks: `train` or `test` for those of the official lists in `splits/TRACK/`, else `all`
            that are not excluded there.
        track: `default` (English) or `xlingual`.
        positive_examples: At most so many before an input.
        negative_examples: The same of examples of what not to do.
        explanations: Whether examples come with theirs.
        max_words: Of an input with its instruction; examples that do not fit are left out.
        max_examples_per_task: Training and validation instances of a task; all if None.

    Raises:
        ValueError: If an argument is not valid.
    """

    path: str | Path
    tasks: str = "all"
    track: str = "default"
    positive_examples: int = 2
    negative_examples: int = 0
    explanations: bool = False
    max_words: int = 680
    max_examples_per_task: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks not in TASKS:
            raise ValueError(
                f"data.tasks={self.tasks!r} · valid: {', '.join(TASKS)} · choose one of them."
            )
        for name in ("positive_examples", "negative_examples", "max_words"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.sni.{name}={getattr(self, name)} · it must be at least 0.")

    @property
    def where(self) -> str:
        return str(self.path)

    def readers(self) -> Sequence[TaskReader]:
        prompting = Prompting(
            self.positive_examples, self.negative_examples, self.explanations, self.max_words
        )
        return [
            _Task(path.stem, path, prompting, self.max_examples_per_task)
            for path in self._task_files()
        ]

    def files(self) -> Sequence[Path]:
        return [*self._task_files(), *self._lists().values()]

    def _task_files(self) -> list[Path]:
        root = Path(self.path)
        folder = root / "tasks" if (root / "tasks").is_dir() else root
        found = {path.stem: path for path in sorted(folder.glob("task*.json"))}
        if not found:
            raise FileNotFoundError(
                f"data.path={root} holds no task*.json, nor does a folder tasks/ in it · give a "
                "checkout of natural-instructions, or a folder of its task files."
            )
        return [found[name] for name in self._chosen(found)]

    def _lists(self) -> dict[str, Path]:
        folder = Path(self.path) / "splits" / self.track
        if not folder.parent.is_dir():
            return {}
        found = {path.stem.removesuffix("_tasks"): path for path in folder.glob("*_tasks.txt")}
        if not {"train", "test"} <= set(found):
            tracks = sorted(path.name for path in folder.parent.iterdir() if path.is_dir())
            raise FileNotFoundError(
                f"{folder} holds no train_tasks.txt and test_tasks.txt · the tracks here are "
                f"{quote(tracks)} · set data.sni.track."
            )
        return found

    def _chosen(self, files: Mapping[str, Path]) -> list[str]:
        lists = {split: path.read_text("utf-8").split() for split, path in self._lists().items()}
        if self.tasks == "all":
            return [name for name in files if name not in set(lists.get("excluded", ()))]
        if not lists:
            raise FileNotFoundError(
                f"data.tasks={self.tasks} needs the official lists, and {self.path} has no splits/ "
                "· set data.tasks=all, or give the whole checkout."
            )
        wanted = lists[self.tasks]
        missing = [name for name in wanted if name not in files]
        if missing:
            raise FileNotFoundError(
                f"{self.path} lacks {len(missing)} of the {len(wanted)} {self.tasks} tasks, as "
                f"{quote(missing, 3)} · complete the checkout, or set data.tasks=all."
            )
        return sorted(set(wanted))


@dataclass(frozen=True)
class _Task(TaskReader):
    name: str
    path: Path
    prompting: Prompting
    limit: int | None

    def read(self, split: str, notes: Notes) -> list[Example] | None:
        if split == "validation":
            return None
        content = _content(self.path)
        instances = content["Instances"]
        n_test = N_TEST if len(instances) >= 2 * N_TEST else len(instances) // 3
        if split == "test":
            chosen = [*enumerate(instances[:n_test])]
        else:
            left = [*enumerate(instances)][n_test:]
            count = len(left) if self.limit is None else self.limit
            chosen = [left[i] for i in choose(count, len(left), self.name)]
        start = _beginning(content, self.prompting, self.path)
        examples = [_example(row, f"{self.path}: instance {i}", start) for i, row in chosen]
        name = self.name if split == "train" else f"{split}/{self.name}"
        notes.add("rows with an empty target, dropped", name, examples.count(None))
        return [example for example in examples if example is not None]

    def about(self) -> About:
        content = _content(self.path)
        categories = _texts(content, "Categories", self.path) if "Categories" in content else ()
        return About(_definition(content, self.path), (*categories,))


def _content(path: Path) -> dict[str, Any]:
    found = path.stat()
    return _parsed(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)  # a task is read split by split
def _parsed(path: Path, _time: int, _size: int) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        line = getattr(error, "lineno", None)
        where = str(path) if line is None else f"{path}:{line}"
        raise ValueError(f"{where}: not valid JSON ({error}) · mend or remove the file.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON {type(content).__name__} · it must be one object.")
    for key in ("Definition", "Instances"):
        if key not in content:
            raise ValueError(
                f"{path}: no {key!r} among the keys {sorted(content)} · it must be a task of "
                "Super-NaturalInstructions · mend or remove the file."
            )
    if not isinstance(content["Instances"], list):
        raise ValueError(f"{path}: 'Instances' must be a list · mend or remove the file.")
    _check_ids(content["Instances"], path)
    return content


def _check_ids(instances: Sequence[Any], path: Path) -> None:
    ids = Counter(str(row["id"]) for row in instances if isinstance(row, dict) and "id" in row)
    repeated = [id for id, count in ids.items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: instances share the ids {repeated[:3]} · ids must be distinct.")


def _example(row: Any, where: str, start: _Beginning) -> Example | None:
    if not isinstance(row, dict) or not isinstance(row.get("input"), str):
        raise ValueError(f"{where} has no text as its 'input' · mend or remove it.")
    answers = [text for text in _texts(row, "output", where) if text.strip()]
    if not answers:
        return None
    text = row["input"]
    references = tuple(dict.fromkeys(answers))
    return Example(text, answers[0], references, instruction=start.before(text))


def _texts(row: Mapping[str, Any], key: str, where: object) -> list[str]:
    """A list of strings; altered copies have one string in its place."""
    value = row.get(key)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}: {key!r} must be a list of strings · mend or remove it.")
    return value


def _definition(content: Mapping[str, Any], path: Path) -> str:
    texts = _texts(content, "Definition", path)
    if not texts:
        raise ValueError(f"{path}: 'Definition' is empty · mend or remove the file.")
    return texts[0]


@dataclass(frozen=True)
class _Beginning:
    """What is before every input of a task."""

    definition: str
    examples: tuple[str, ...]
    max_words: int

    def before(self, text: str) -> str:
        """The whole input: definition, as many examples as fit, the instance."""
        end = f"Now complete the following example -\nInput: {_ended(text)}\nOutput: "
        words = len(self.definition.split()) + len(end.split())
        kept = []
        for example in self.examples:
            words += len(example.split())
            if words > self.max_words:
                break
            kept.append(example)
        return "".join([self.definition, *kept, end])


def _beginning(content: Mapping[str, Any], prompting: Prompting, path: Path) -> _Beginning:
    examples = []
    for kind, count in (("Positive", prompting.positive), ("Negative", prompting.negative)):
        found = content.get(f"{kind} Examples") or []
        if not isinstance(found, list):
            raise ValueError(f"{path}: '{kind} Examples' must be a list · mend or remove the file.")
        for number, row in enumerate(found[:count], 1):
            lines = [f" {kind} Example {number} -"]
            lines.append(f"Input: {_ended(_first(row, 'input', path))}")
            lines.append(f" Output: {_ended(_first(row, 'output', path))}")
            if prompting.explanations and row.get("explanation"):
                lines.append(f" Explanation: {_ended(_first(row, 'explanation', path))}")
            examples.append("\n".join(lines) + "\n\n")
    definition = f"Definition: {_ended(_definition(content, path))}\n\n"
    return _Beginning(definition, tuple(examples), prompting.max_words)


def _first(row: Any, key: str, path: Path) -> str:
    texts = _texts(row, key, f"{path}: an example") if isinstance(row, dict) else []
    if not texts:
        raise ValueError(f"{path}: an example has no {key!r} · mend or remove it.")
    return texts[0]


def _ended(text: str) -> str:
    """Stripped, with a full stop unless it ends with punctuation."""
    text = text.strip()
    return text if text and text[-1] in string.punctuation else f"{text}."
