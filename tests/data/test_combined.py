"""Several sources as one, with their shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from polylab.data import Combined, DataModule, JsonlFolder, Part, TaskCollection, TaskData
from polylab.data.cache import cached_tasks


@pytest.fixture
def folders(write_tasks: Any, make_rows: Any) -> tuple[Path, Path]:
    first = {"big": make_rows(200, "big"), "mid": make_rows(70, "mid")}
    second = {
        "other": make_rows(60, "other"),
        "tiny": [*make_rows(5, "tiny"), *make_rows(1, "tiny")],
    }
    return write_tasks(first, folder="first"), write_tasks(second, folder="second")


def combined(folders: tuple[Path, Path], **changes: Any) -> Combined:
    first, second = map(JsonlFolder, folders)
    return Combined({"a": Part(first, 1.0), "b": Part(second, 3.0)}, **changes)


def test_tasks_are_those_of_the_parts(folders: tuple[Path, Path]) -> None:
    found = combined(folders)()
    assert found.names == ["big", "mid", "other", "tiny"]
    assert [task.source for task in found.tasks] == ["a", "a", "b", "b"]
    assert found.shares == {"a": 1.0, "b": 3.0}
    for folder in folders:
        for task in JsonlFolder(folder)().tasks:
            (own,) = (own for own in found.tasks if own.name == task.name)
            assert [own.train, own.validation, own.test] == [task.train, task.validation, task.test]
    assert any(note.startswith("b: exact duplicates, removed: 1") for note in found.notes)


def test_a_prefix_tells_names_apart(folders: tuple[Path, Path]) -> None:
    same = (folders[0], folders[0])
    says = r"^data\.sources\.b: the task 'big' is in data\.sources\.a too · .*data\.prefix=true"
    with pytest.raises(ValueError, match=says):
        combined(same)()
    found = combined(same, prefix=True)()
    assert found.names == ["a.big", "a.mid", "b.big", "b.mid"]


def test_skills_and_prefixes(folders: tuple[Path, Path], collection: TaskCollection) -> None:
    parts = {"known": Part(lambda: collection), "b": Part(JsonlFolder(folders[1]))}
    found = Combined(parts, prefix=True)()
    assert found.skills == {
        "known.big": ("copy", "add"),
        "known.mid": ("add",),
        "known.tiny": ("zip",),
    }
    with pytest.raises(ValueError, match=r"data\.sources\.known: function makes its tasks anew"):
        Combined(parts).fingerprint()


def test_a_cached_one_is_the_same(folders: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = combined(folders)()
    for _ in range(2):
        found = cached_tasks(combined(folders), tmp_path / "cache")
        assert found.tasks == wanted.tasks
        assert found.shares == wanted.shares
        assert found.notes == wanted.notes
    first = combined(folders).fingerprint()
    (folders[1] / "new.jsonl").write_text('{"input": "a", "target": "b"}\n')
    assert combined(folders).fingerprint() != first
    with pytest.raises(ValueError, match=r"^data\.sources\.b: the task 'big' is in"):
        cached_tasks(combined((folders[0], folders[0])), tmp_path / "cache")


def test_draws_follow_the_shares(folders: tuple[Path, Path], byt5: Any) -> None:
    module = DataModule(
        combined(folders), byt5, is_encoder_decoder=True, batch_size=40, steps_per_epoch=10
    )
    names = module.task_names
    rows = Counter(names[i] for batch in module.train_dataloader() for i in batch["task_ids"])
    sizes = module.sizes
    for share, source in ((0.25, ("big", "mid")), (0.75, ("other", "tiny"))):
        whole = sum(sizes[name] for name in source)
        for name in source:
            assert rows[name] == pytest.approx(400 * share * sizes[name] / whole, abs=1)


def test_what_is_not_valid(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        Combined({})
    with pytest.raises(ValueError, match=r"data\.sources\.x\.weight=0\.0 "):
        Combined({"x": Part(JsonlFolder(folders[0]), 0.0)})


READERS: dict[str, Callable[[Combined, Path], Any]] = {
    "whole": lambda source, _: source(),
    "cached": cached_tasks,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda path: (path / "tiny.jsonl").write_text("{"), ValueError, r".*tiny\.jsonl:1: not"),
        (lambda path: path.rename(path.with_name("gone")), FileNotFoundError, r"data\.path=.*gone"),
    ],
)
def test_errors_name_the_part(
    folders: tuple[Path, Path],
    tmp_path: Path,
    damage: Callable[[Path], Any],
    error: type[Exception],
    says: str,
    read: Callable[[Combined, Path], Any],
) -> None:
    damage(folders[1])
    with pytest.raises(error, match=rf"^data\.sources\.b: {says}"):
        read(combined(folders), tmp_path / "cache")


def _pairs(tasks: Iterable[TaskData], *splits: str) -> list[tuple[str, str]]:
    return [(e.input, e.target) for task in tasks for split in splits for e in task.split(split)]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_nothing_is_trained_on_that_another_part_holds_out(
    write_tasks: Any, make_rows: Any, tmp_path: Path, read: Callable[[Combined, Path], Any]
) -> None:
    """One part has files of validation and test, the other ones are carved, by other shares."""
    rows = make_rows(400)
    other_target = [{**row, "target": "no"} for row in rows[:25]]
    files = {
        "x": make_rows(70, "x") + rows[:40],
        "test/x": rows[40:90],
        "validation/x": rows[90:115],
    }
    carved = {"y": rows + other_target, "tiny": rows[36:43]}
    parts = {
        "files": JsonlFolder(write_tasks(files, folder="files")),
        "carved": JsonlFolder(write_tasks(carved, folder="carved"), test_share=0.2),
        "again": JsonlFolder(write_tasks({"z": rows}, folder="again"), validation_share=0.3),
    }
    found = read(Combined({name: Part(source) for name, source in parts.items()}), tmp_path / "c")
    alone = {task.name: task for source in parts.values() for task in source().tasks}

    held_out = {*_pairs(alone.values(), "validation", "test")}
    test = {*_pairs(alone.values(), "test")}
    removed: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
    for task in found.tasks:
        assert task.test == alone[task.name].test
        for split, others in (("train", held_out), ("validation", test)):
            own = _pairs([alone[task.name]], split)
            wanted = [pair for pair in own if pair not in others]
            assert _pairs([task], split) == wanted
            removed[split] += Counter({task.name: len(own) - len(wanted)})
    assert min(removed["train"][name] for name in "xyz") > 5
    assert removed["train"]["tiny"] >= 3
    assert min(removed["validation"][name] for name in "xyz") > 0
    texts = {"train": "training rows that occur in validation or test of any source, removed"}
    texts["validation"] = "validation rows that occur in the test of any source, removed"
    for split, text in texts.items():
        counts = ", ".join(f"{name} {n}" for name, n in sorted((+removed[split]).items()))
        assert f"{text}: {removed[split].total()} ({counts})" in found.notes


def test_a_task_that_another_part_holds_out_altogether(write_tasks: Any, make_rows: Any) -> None:
    rows = make_rows(60)
    held_out = write_tasks({"x": make_rows(9, "x"), "test/x": rows}, folder="held_out")
    same = write_tasks({"y": rows[:30], "z": make_rows(30, "z")}, folder="same")

    def read(**changes: Any) -> TaskCollection:
        return Combined(
            {"a": Part(JsonlFolder(held_out)), "b": Part(JsonlFolder(same, **changes))}
        )()

    says = r"^data\.sources\.b: all 30 training rows of 'y' occur .*data\.sources\.b\.on_empty=skip"
    with pytest.raises(ValueError, match=says):
        read()
    found = read(on_empty="skip")
    assert found.names == ["x", "z"]
    assert "tasks of which no training row was left, skipped: 1 (y 1)" in found.notes
