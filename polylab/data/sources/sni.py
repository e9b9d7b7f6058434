"""Super-NaturalInstructions in its original JSON files (https://arxiv.org/abs/2204.07705)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polylab.data.example import Example
from polylab.data.sources.base import About, FileSource, TaskReader
from polylab.data.sources.notes import Notes
from polylab.data.sources.selecting import choose
from polylab.data.sources.sni_files import definition, name_of, read_task, texts
from polylab.data.sources.sni_prompts import Beginning, Prompting, beginning
from polylab.data.tasks import quote

TASKS = ("auto", "train", "test", "all")
N_TEST = 100  # instances of a task that the official evaluation takes: the first ones


@dataclass(frozen=True)
class NaturalInstructions(FileSource):
    """A folder of task files, or a checkout, which holds them in `tasks/`.

    The first 100 instances of a task are its test, as in the official evaluation; of one with fewer
    than 200 the first third. What remains is for training and validation. With `data.prompt=none`
    the input is the instance's alone; with `instruction` it follows the definition and examples as
    in Tk-Instruct.

    One thing differs: Tk-Instruct counts tokens, at most 1,024 with its tokenizer, when it decides
    which examples fit, and a source knows no tokenizer. Words (between white space) are counted
    instead, and the default of 680 is 1,024 at one and a half tokens a word. English tasks have
    1.3 to 1.8 (16 tasks, GPT-2's vocabulary): of 964 inputs, 7 % had an example less than by
    tokens, and none one more. Where words are more tokens (scripts without spaces, say) an example
    stays that Tk-Instruct would leave out, and `data.max_input_length` cuts the end of the input:
    lower `max_words` there.

    Args:
        path: The folder.
        tasks: `train` or `test`: those of the official lists in `splits/TRACK/`, in the checkout or
            beside the folder `tasks`; `all`: all files that are not excluded there; `auto`: `train`
            where there are lists, else `all`.
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
    tasks: str = "auto"
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
                raise ValueError(
                    f"data.sni.{name}={getattr(self, name)} · it must be at least 0 · raise it."
                )

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

    def remarks(self) -> Sequence[str]:
        lists = self._names_by_list()
        if self.tasks == "auto" and not lists:
            return [
                f"data.tasks=auto: no splits/ in {self.path}, so that all "
                f"{len(self._task_files())} tasks are read, official test tasks among them"
            ]
        if self.tasks == "auto":
            return [
                f"data.tasks=auto: the {len(lists['train'])} official training tasks of "
                f"{self._splits() / self.track} are read, its {len(lists['test'])} test tasks are "
                "not (data.tasks=train|test|all)"
            ]
        known = {path.stem for path in self._task_files()} & {*lists.get("test", ())}
        if self.tasks == "all" and known:
            return [f"data.tasks=all: {len(known)} official test tasks are among those read"]
        return []

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

    def _splits(self) -> Path:
        """The folder of the official lists, which may be missing."""
        root = Path(self.path)
        is_inside = not (root / "splits").is_dir() and root.resolve().name == "tasks"
        return (root.resolve().parent if is_inside else root) / "splits"

    def _lists(self) -> dict[str, Path]:
        folder = self._splits() / self.track
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

    def _names_by_list(self) -> dict[str, list[str]]:
        """The names in `train`, `test` and maybe `excluded`; nothing without official lists."""
        found = {split: path.read_text("utf-8").split() for split, path in self._lists().items()}
        both = sorted({*found.get("train", ())} & {*found.get("test", ())})
        if both:
            raise ValueError(
                f"{self._splits() / self.track} lists {quote(both, 3)} for train and for test · a "
                "task is in one of the two · mend the lists."
            )
        return found

    def _chosen(self, files: Mapping[str, Path]) -> list[str]:
        lists = self._names_by_list()
        if self.tasks == "all" or (self.tasks == "auto" and not lists):
            return [name for name in files if name not in set(lists.get("excluded", ()))]
        if not lists:
            raise FileNotFoundError(
                f"data.tasks={self.tasks} needs the official lists, and {self.path} has no splits/ "
                "· set data.tasks=all, or give the whole checkout."
            )
        split = "train" if self.tasks == "auto" else self.tasks
        wanted = lists[split]
        missing = [name for name in wanted if name not in files]
        if missing:
            raise FileNotFoundError(
                f"{self.path} lacks {len(missing)} of the {len(wanted)} {split} tasks, as "
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
        content = read_task(self.path)
        instances = content["Instances"]
        n_test = N_TEST if len(instances) >= 2 * N_TEST else len(instances) // 3
        if split == "test":
            chosen = [*enumerate(instances[:n_test])]
        else:
            left = [*enumerate(instances)][n_test:]
            count = len(left) if self.limit is None else self.limit
            chosen = [left[i] for i in choose(count, len(left), self.name)]
        start = beginning(content, self.prompting, self.path)
        examples = [_example(row, f"{self.path}: {name_of(row, i)}", start) for i, row in chosen]
        name = self.name if split == "train" else f"{split}/{self.name}"
        notes.add("rows with an empty target, dropped", name, examples.count(None))
        return [example for example in examples if example is not None]

    def about(self) -> About:
        content = read_task(self.path)
        categories = texts(content, "Categories", self.path) if "Categories" in content else ()
        return About(definition(content, self.path), (*categories,))


def _example(row: Any, where: str, start: Beginning) -> Example | None:
    if not isinstance(row, dict) or not isinstance(row.get("input"), str):
        raise ValueError(
            f"{where} has no text as its 'input' · an instance has an input, a string · mend or "
            "remove it."
        )
    answers = [text for text in texts(row, "output", where) if text.strip()]
    if not answers:
        return None
    text = row["input"]
    references = tuple(dict.fromkeys(answers))
    return Example(text, answers[0], references, instruction=start.before(text))
