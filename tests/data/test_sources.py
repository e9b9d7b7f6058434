"""Folders of JSONL files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polylab.data import Example, JsonlFolder, TaskCollection
from polylab.data.sources.jsonl import task_files

Rows = list[dict[str, Any]]
Write = Callable[..., Path]
MakeRows = Callable[..., Rows]


def _notes_with(collection: TaskCollection, words: str) -> list[str]:
    return [note for note in collection.notes if words in note]


def test_task_names_are_file_names_without_the_suffix(write_tasks: Write) -> None:
    row = [{"input": "a", "target": "b"}]
    folder = write_tasks({"squad1.1_qa": row, "en-de": row, "x.jsonl": row})
    (folder / "README.md").write_text("no task")
    (folder / "folder.jsonl").mkdir()
    (folder / "nested").mkdir()
    (folder / "nested" / "c.jsonl").write_text("not read")
    assert list(task_files(folder)) == ["en-de", "squad1.1_qa", "x.jsonl"]
    assert JsonlFolder(folder)().names == ["en-de", "squad1.1_qa", "x.jsonl"]


def test_without_folders_both_splits_are_carved(write_tasks: Write, make_rows: MakeRows) -> None:
    folder = write_tasks({"a": make_rows(200), "b": make_rows(120), "few": make_rows(49)})
    collection = JsonlFolder(folder, validation_share=0.2, test_share=0.1)()
    a, b, few = collection.tasks
    assert len(a.train) + len(a.validation) + len(a.test) == 200
    assert 25 < len(a.validation) < 55
    assert 10 < len(a.test) < 32
    assert {e.input for e in b.train} <= {e.input for e in a.train}
    assert (len(few.train), few.validation, few.test) == (49, [], [])
    assert collection.notes == (
        "tasks without a validation split of their own: few",
        "tasks without a test split of their own: few",
    )


def test_with_a_test_folder_only_validation_is_carved(
    write_tasks: Write, make_rows: MakeRows
) -> None:
    test = [*make_rows(5, "held-out"), *make_rows(1)]
    folder = write_tasks({"a": make_rows(100), "b": make_rows(60), "test/a": test})
    collection = JsonlFolder(folder)()
    a, b = collection.tasks
    assert [example.input for example in a.test] == [row["input"] for row in test]
    assert len(a.train) + len(a.validation) == 99
    assert a.validation
    assert b.test == []
    assert collection.notes == (
        "training rows that occur in a validation or test file, removed: 2 (a 1, b 1)",
        "tasks without a test split of their own: b",
    )


def test_with_a_validation_folder_only_the_test_is_carved(
    write_tasks: Write, make_rows: MakeRows
) -> None:
    validation = make_rows(3, "valid")
    folder = write_tasks({"a": make_rows(100), "validation/a": validation})
    (task,) = JsonlFolder(folder)().tasks
    assert len(task.validation) == 3
    assert len(task.train) + len(task.test) == 100
    assert task.test


def test_validation_rows_do_not_occur_in_the_test(write_tasks: Write, make_rows: MakeRows) -> None:
    folder = write_tasks(
        {"a": make_rows(4), "validation/a": make_rows(5, "v"), "test/a": make_rows(2, "v")}
    )
    collection = JsonlFolder(folder)()
    assert len(collection.tasks[0].validation) == 3
    assert _notes_with(collection, "occur in a test file, removed: 2 (a 2)")


def test_duplicates_and_conflicting_targets(write_tasks: Write) -> None:
    rows = [{"input": "a", "target": t} for t in ("x", "y", "x", "x")]
    collection = JsonlFolder(write_tasks({"t": rows}))()
    assert collection.tasks[0].train == [
        Example("a", "x", ("x", "y")),
        Example("a", "y", ("y", "x")),
    ]
    assert _notes_with(collection, "exact duplicates, removed: 2 (t 2)")


def test_what_was_noticed_is_said(write_tasks: Write, make_rows: MakeRows) -> None:
    rows = [{**row, "target": "same", "id": 1} for row in make_rows(3)]
    empty = [{"input": "z", "target": ""}]
    collection = JsonlFolder(write_tasks({"t": rows + empty, "u": make_rows(2) + empty}))()
    assert _notes_with(collection, "rows with an empty target, dropped: 2 (t 1, u 1)")
    assert _notes_with(collection, "tasks with one distinct target: 1 (t 1)")
    assert _notes_with(collection, "rows with the key 'id', ignored: 3 (t 3)")


def test_instructions_are_rendered_after_the_split(write_tasks: Write, make_rows: MakeRows) -> None:
    own = [{"input": "q", "target": "r", "instruction": "My own."}]
    folder = write_tasks({"a": make_rows(80) + own, "b": make_rows(80), "c": make_rows(2)})
    plain = JsonlFolder(folder)()
    texts = {"a": ["First.", "Second."], "b": ["Third."], "elsewhere": ["Fourth."]}
    (folder / "instructions.json").write_text(json.dumps(texts))
    a, b, c = JsonlFolder(folder)().tasks
    assert [e.input for e in a.train] == [e.input for e in plain.tasks[0].train]
    rendered = {e.input: e.instruction for e in (*a.train, *a.validation, *a.test)}
    assert rendered.pop("q") == "My own.\nq"
    assert {text.split("\n")[0] for text in rendered.values() if text} == {"First.", "Second."}
    assert all(text == f"{text.split(chr(10))[0]}\n{key}" for key, text in rendered.items() if text)
    assert b.test[0].instruction == f"Third.\n{b.test[0].input}"
    assert c.train[0].instruction is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"instructions\.json: not valid JSON \(Expecting property name"),
        ("[1]", r"instructions\.json: a JSON list · it must map a task"),
        ('{"a": "text"}', r"instructions\.json: task 'a' has text · it must be a list"),
        ('{"a": ["b", " "]}', r"task 'a' has \['b', ' '\] · it must be a list of non-empty"),
    ],
)
def test_wrong_instructions(write_tasks: Write, content: str, message: str) -> None:
    folder = write_tasks({"a": [{"input": "a", "target": "b"}]})
    (folder / "instructions.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        JsonlFolder(folder)()


def test_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data.path=\S*/task/x is not .*folders 'tasks'\)"):
        JsonlFolder(tmp_path / "task" / "x")()


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl is not a folder \(it is a file\)"):
        JsonlFolder(tmp_path / "a.jsonl")()


def test_a_folder_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no TASK.jsonl file \(found: nothing\)"):
        JsonlFolder(tmp_path)()
    (tmp_path / "train").mkdir()
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(FileNotFoundError, match=r"\(found: 'a.csv', 'train/'\)"):
        JsonlFolder(tmp_path)()


def test_test_files_without_training_files(write_tasks: Write, make_rows: MakeRows) -> None:
    folder = write_tasks({"a": make_rows(1), "test/b": make_rows(1)})
    with pytest.raises(ValueError, match=r"/test has 'b' without .* training files are 'a'"):
        JsonlFolder(folder)()


def test_empty_tasks_are_an_error_or_skipped(write_tasks: Write, make_rows: MakeRows) -> None:
    folder = write_tasks({"a": make_rows(3), "none": [], "void": [{"input": "a", "target": ""}]})
    with pytest.raises(ValueError, match=r"no usable training rows in 'none', 'void' of \S*tasks "):
        JsonlFolder(folder)()
    collection = JsonlFolder(folder, on_empty="skip")()
    assert collection.names == ["a"]
    assert _notes_with(collection, "tasks without usable rows, skipped: none, void")


def test_when_every_task_is_empty_none_can_be_skipped(write_tasks: Write) -> None:
    with pytest.raises(ValueError, match=r"'a', 'b' of .* \(that is every task\)"):
        JsonlFolder(write_tasks({"a": [], "b": []}), on_empty="skip")()


def test_a_task_whose_rows_are_all_held_out_is_empty(
    write_tasks: Write, make_rows: MakeRows
) -> None:
    with pytest.raises(ValueError, match="no usable training rows in 'a'"):
        JsonlFolder(write_tasks({"a": make_rows(3), "test/a": make_rows(3)}))()


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.on_empty='drop' · valid: error, skip"):
        JsonlFolder(tmp_path, on_empty="drop")
    with pytest.raises(ValueError, match=r"validation_share=0.5 and data.test_share=0.5"):
        JsonlFolder(tmp_path, validation_share=0.5, test_share=0.5)


def test_a_malformed_row_is_named_as_the_user_spelled_the_folder(
    write_tasks: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tasks({"a": [{"input": "a", "target": "b"}, {"input": "a"}]})
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ValueError, match=r"^tasks/a\.jsonl:2: no \"target\" among"):
        JsonlFolder("tasks")()
