"""Several sources as one, with their shares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from polylab.data import Combined, DataModule, JsonlFolder, Part, TaskCollection
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
    with pytest.raises(ValueError, match=r"sources a, b all have the tasks 'big', 'mid' .*prefix"):
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
    with pytest.raises(ValueError, match=r"all have the tasks 'big', 'mid'|'big'"):
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
    (folders[0] / "big.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"data\.sources\.a: .*big\.jsonl:1"):
        combined(folders)()
