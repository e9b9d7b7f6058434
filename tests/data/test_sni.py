"""Super-NaturalInstructions: its files, official splits and Tk-Instruct's inputs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polylab.data import NaturalInstructions

NAMES = ["task001_a_generation", "task002_b_classification", "task672_c_one", "task672_c_two"]


def content(n: int, other: int = 1, **changes: Any) -> dict[str, Any]:
    found = {
        "Definition": ["Add the two numbers"],
        "Categories": ["Program Execution", "Mathematics"],
        "Positive Examples": [
            {"input": "1 and 2", "output": "3", "explanation": "One more than 2"},
            {"input": "What is 2 and 2?", "output": "4.", "explanation": "Twice 2"},
            {"input": "3 and 3", "output": "6", "explanation": ""},
        ],
        "Negative Examples": [{"input": "1 and 1", "output": "11", "explanation": "Joined"}],
        "Instances": [
            {"id": f"i-{i}", "input": f" {i} and {other}", "output": [f"{i + other}", "more"]}
            for i in range(n)
        ],
    }
    return found | changes


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., Path]:
    """Writes tasks of 250, 60, 30 and 7 instances, and the official lists."""

    def write(**changes: Any) -> Path:
        (tmp_path / "tasks").mkdir()
        for place, (name, n) in enumerate(zip(NAMES, (250, 60, 30, 7), strict=True)):
            task = content(n, place + 1, **({} if place else changes))
            (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(task))
        (tmp_path / "splits" / "default").mkdir(parents=True)
        lists = {"train": [NAMES[0], NAMES[2]], "test": [NAMES[1]], "excluded": [NAMES[3]]}
        for split, names in lists.items():
            text = "\n".join(names) + "\n"
            (tmp_path / "splits" / "default" / f"{split}_tasks.txt").write_text(text)
        return tmp_path

    return write


def test_the_first_instances_are_the_test(checkout: Callable[..., Path]) -> None:
    tasks = NaturalInstructions(checkout(), tasks="all", validation_share=0.2)().tasks
    assert [task.name for task in tasks] == NAMES[:3]  # the fourth is excluded
    sizes = {task.name: len(task.test) for task in tasks}
    assert sizes == {NAMES[0]: 100, NAMES[1]: 20, NAMES[2]: 10}
    (first, *_) = tasks
    assert [example.input for example in first.test] == [f" {i} and 1" for i in range(100)]
    assert len(first.train) + len(first.validation) == 150
    assert len(first.validation) > 15
    assert first.test[4].references == ("5", "more")
    assert first.test[4].target == "5"
    assert first.categories == ("Program Execution", "Mathematics")
    assert first.description == "Add the two numbers"


@pytest.mark.parametrize(
    ("given", "names", "says"),
    [
        (
            {},
            [0, 2],
            r"data.tasks=auto: the 2 official training tasks of .*splits/default are read",
        ),
        ({"tasks": "train"}, [0, 2], None),
        ({"tasks": "test"}, [1], None),
        ({"tasks": "all"}, [0, 1, 2], "data.tasks=all: 1 official test tasks are among those"),
    ],
)
def test_official_lists(
    checkout: Callable[..., Path], given: dict[str, Any], names: list[int], says: str | None
) -> None:
    collection = NaturalInstructions(checkout(), **given)()
    assert collection.names == [NAMES[i] for i in names]
    official = [note for note in collection.notes if note.startswith("data.tasks=")]
    assert len(official) == (says is not None)
    assert all(re.search(str(says), note) for note in official)


def test_the_lists_beside_a_folder_of_tasks_count(
    checkout: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = checkout() / "tasks"
    assert NaturalInstructions(tasks)().names == [NAMES[0], NAMES[2]]
    monkeypatch.chdir(tasks)
    assert NaturalInstructions(".")().names == [NAMES[0], NAMES[2]]


def test_without_lists_all_tasks_are_read(checkout: Callable[..., Path]) -> None:
    root = checkout()
    shutil.rmtree(root / "splits")
    collection = NaturalInstructions(root)()
    assert collection.names == NAMES
    says = rf"data.tasks=auto: no splits/ in {re.escape(str(root))}, so that all 4 tasks are read"
    assert re.match(says, collection.notes[0])
    with pytest.raises(FileNotFoundError, match=r"needs the official lists.*no splits/ · set"):
        NaturalInstructions(root, tasks="train")()


def test_lists_and_files_that_do_not_agree(checkout: Callable[..., Path]) -> None:
    root = checkout()
    with pytest.raises(
        FileNotFoundError, match=r"tracks here are 'default' · set data\.sni\.track"
    ):
        NaturalInstructions(root, track="xlingual")()
    (root / "tasks" / f"{NAMES[2]}.json").unlink()
    for tasks in ("auto", "train"):
        says = rf"lacks 1 of the 2 train tasks, as '{NAMES[2]}'"
        with pytest.raises(FileNotFoundError, match=says):
            NaturalInstructions(root, tasks=tasks)()
    assert len(NaturalInstructions(root, tasks="all")().tasks) == 2
    lists = root / "splits" / "default"
    (lists / "test_tasks.txt").write_text(f"{NAMES[0]}\n{NAMES[1]}\n")
    with pytest.raises(ValueError, match=rf"lists '{NAMES[0]}' for train and for test · a task is"):
        NaturalInstructions(root)()


def test_inputs_are_those_of_tk_instruct(checkout: Callable[..., Path]) -> None:
    (task, *_) = NaturalInstructions(checkout())().tasks
    assert task.test[3].instruction == (
        "Definition: Add the two numbers.\n\n"
        " Positive Example 1 -\nInput: 1 and 2.\n Output: 3.\n\n"
        " Positive Example 2 -\nInput: What is 2 and 2?\n Output: 4.\n\n"
        "Now complete the following example -\nInput: 3 and 1.\nOutput: "
    )


def test_examples_and_explanations(checkout: Callable[..., Path]) -> None:
    root = checkout()
    settings: dict[str, Any] = {"positive_examples": 1, "negative_examples": 2}
    settings["explanations"] = True
    (task, *_) = NaturalInstructions(root, **settings)().tasks
    assert task.test[0].instruction == (
        "Definition: Add the two numbers.\n\n"
        " Positive Example 1 -\nInput: 1 and 2.\n Output: 3.\n"
        " Explanation: One more than 2.\n\n"
        " Negative Example 1 -\nInput: 1 and 1.\n Output: 11.\n Explanation: Joined.\n\n"
        "Now complete the following example -\nInput: 0 and 1.\nOutput: "
    )
    (task, *_) = NaturalInstructions(root, positive_examples=0)().tasks
    assert "Example 1" not in (task.test[0].instruction or "")


@pytest.mark.parametrize(("max_words", "shown"), [(25, 0), (26, 1), (37, 1), (38, 2), (99, 2)])
def test_examples_that_do_not_fit_are_left_out(
    checkout: Callable[..., Path], max_words: int, shown: int
) -> None:
    (task, *_) = NaturalInstructions(checkout(), max_words=max_words)().tasks
    text = task.test[0].instruction
    assert text is not None
    assert text.count("Positive Example") == shown
    assert len(text.split()) <= max(max_words, 20)


def test_examples_of_either_kind_stay_as_far_as_they_fit(checkout: Callable[..., Path]) -> None:
    """As Tk-Instruct tries them: each kind up to the first that does not fit, whatever the other.

    With positive examples of 10, 50 and 10 words and negative ones of 17 and 10.
    """
    fillers = {"Positive": [0, 40, 0], "Negative": [7, 0]}
    examples: dict[str, Any] = {
        f"{kind} Examples": [{"input": "1 and 2" + " or" * n, "output": "3"} for n in numbers]
        for kind, numbers in fillers.items()
    }
    root = checkout(**examples, Instances=[{"input": f"{i}", "output": "x"} for i in range(3)])

    def input_of(max_words: int) -> str:
        source = NaturalInstructions(
            root, positive_examples=3, negative_examples=2, max_words=max_words
        )
        return source().tasks[0].test[0].instruction or ""

    start, *parts, end = input_of(999).split("\n\n")
    assert [len(part.split()) for part in parts] == [10, 50, 10, 17, 10]
    found = set()
    for max_words in range(20, 120, 2):
        kept: list[str] = []
        for kind in fillers:
            for part in (part for part in parts if part.startswith(f" {kind}")):
                if len(" ".join([start, *kept, part, end]).split()) > max_words:
                    break
                kept.append(part)
        assert input_of(max_words) == "\n\n".join([start, *kept, end])
        found.add(tuple(map(parts.index, kept)))
    assert found == {(), (0,), (0, 3), (0, 3, 4), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)}


def test_a_limit_is_of_what_is_trained_on(checkout: Callable[..., Path]) -> None:
    root = checkout()
    given: dict[str, Any] = {"max_examples_per_task": 40, "validation_share": 0.0, "tasks": "all"}
    found = NaturalInstructions(root, **given)().tasks
    assert [len(task.train) for task in found] == [40, 40, 20]
    assert [len(task.test) for task in found] == [100, 20, 10]
    assert NaturalInstructions(root, **given)().tasks == found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"Instances": "none"}, "'Instances' is a str · it must be a list · mend"),
        (
            {"Instances": [{"input": 3, "output": ["x"]}] * 3},
            "the instance at position 0 has no text as its 'input' · .* · mend",
        ),
        (
            {"Instances": [{"id": "t-7", "input": "x", "output": [3]}]},
            r"the instance 't-7': 'output' has \[3\] · it must be a list of strings · mend",
        ),
        (
            {"Instances": [{"id": "a", "input": "x", "output": ["3"]}] * 3},
            r"share the ids \['a'\] · ids must be distinct · rename",
        ),
        ({"Instances": []}, "no usable training rows"),
        ({"Definition": []}, "'Definition' is empty · .* · mend"),
        ({"Categories": [3]}, r"'Categories' has \[3\] · it must be a list of strings · mend"),
        ({"Positive Examples": ["x"]}, "Positive Example 1 has no 'input' · .* · mend"),
        (
            {"Positive Examples": {"input": "x"}},
            "'Positive Examples' is a dict · it must be a list · mend",
        ),
        ({"Instances": [{"id": ["a"], "input": "x", "output": ["3"]}] * 3}, "share the ids"),
    ],
)
def test_broken_tasks(checkout: Callable[..., Path], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"{NAMES[0]}.*{says}|{says}.*{NAMES[0]}"):
        NaturalInstructions(checkout(**changes))()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[:100], r"task001_a_generation.json:1: not valid JSON"),
        (lambda _text: "[]", "a JSON list · it must be one object, .* · mend"),
        (lambda text: text.replace('"Instances"', '"Rows"'), "no 'Instances' among the keys"),
    ],
)
def test_broken_files(
    checkout: Callable[..., Path], damage: Callable[[str], str], says: str
) -> None:
    root = checkout()
    file = root / "tasks" / f"{NAMES[0]}.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=says):
        NaturalInstructions(root)()


def test_older_and_altered_copies(checkout: Callable[..., Path]) -> None:
    root = checkout(
        Definition="Add them.",
        Categories="Sums",
        Instances=[{"input": f"{i}", "output": f"{i}!"} for i in range(9)]
        + [{"input": "last", "output": [""]}],
    )
    collection = NaturalInstructions(root)()
    (task, *_) = collection.tasks
    assert task.categories == ("Sums",)
    assert task.description == "Add them."
    assert task.test[2].references == ("2!",)
    assert any("rows with an empty target, dropped: 1" in note for note in collection.notes)


def test_no_tasks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no task\*\.json"):
        NaturalInstructions(tmp_path)()
    changes: list[dict[str, Any]] = [
        {"tasks": "some"},
        {"max_words": -1},
        {"positive_examples": -1},
    ]
    for change in changes:
        with pytest.raises(ValueError, match=next(iter(change))):
            NaturalInstructions(tmp_path, **change)


def test_real_files(shared_data: Path) -> None:
    tasks = NaturalInstructions(shared_data / "natural_instructions")().tasks
    assert len(tasks) == 16
    for task in tasks:
        raw = json.loads(
            (shared_data / "natural_instructions" / "tasks" / f"{task.name}.json").read_text()
        )
        rows = raw["Instances"]
        n_test = 100 if len(rows) >= 200 else len(rows) // 3
        kept = [row for row in rows[:n_test] if "".join(row["output"]).strip()]
        assert [example.input for example in task.test] == [row["input"] for row in kept]
        assert len(task.train) + len(task.validation) <= len(rows) - n_test
        assert all(len(category) > 3 for category in task.categories)  # not single characters
        for example, row in zip(task.test, kept, strict=True):
            given = row["output"]
            given = [given] if isinstance(given, str) else given
            assert set(given) - {""} <= {*example.references}
    assert max(len(e.references) for task in tasks for e in task.test) >= 4
