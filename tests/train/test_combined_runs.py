"""`data=combined` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

FAST = ["trainer.max_steps=2", "logger=none", "callbacks=none"]


@pytest.fixture
def overrides(small: list[str]) -> list[str]:
    """Those of a tiny run without data."""
    dropped = ("data=", "data.path", "data.source")
    return [*(o for o in small if not o.startswith(dropped)), *FAST, "data=combined"]


def test_two_sources(
    overrides: list[str], task_folder: Path, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    given = [
        f"data.sources.a={{data: jsonl, path: {task_folder}, weight: 2}}",
        "data.sources.b.data=jsonl",
        f"data.sources.b.path={task_folder}",
        "data.sources.b.source.test_share=0.3",
        "data.prefix=true",
        f"data.cache={tmp_path / 'cache'}",
    ]
    done = run_here(*overrides, *given, cwd=tmp_path)
    assert done.code == 0, done.err
    tasks = json.loads((done.folder / "adapter" / "tasks.json").read_text())
    assert [*tasks] == ["a.copy", "a.first", "a.upper", "b.copy", "b.first", "b.upper"]
    config = OmegaConf.load(done.folder / "config.yaml")
    assert config.data.sources.a.weight == 2
    again = tmp_path / "again"
    again.mkdir()
    done = run_here(
        f"run={done.folder}", f"hydra.run.dir={again}", cwd=tmp_path, command="evaluate"
    )
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "data.sources is empty"),
        (["data.sources.a={path: x}"], "data.sources.a: it has no option"),
        (["data.sources.a={data: jsnl}"], "data.sources.a: "),
        (["data.sources.a={data: jsonl}"], "data.sources.a: "),
        (["data.sources.a={data: jsonl, path: x, pth: y}"], "pth"),
        (["data.sources.a={data: jsonl, path: nowhere}"], "nowhere is not a folder"),
    ],
)
def test_mistakes(
    overrides: list[str], run_here: Callable[..., Any], tmp_path: Path, given: list[str], says: str
) -> None:
    done = run_here(*overrides, *given, cwd=tmp_path)
    assert done.code == 1
    assert says in done.err
    assert done.err.count("\n") == 1
