"""The measurements of the input run, on a few tasks."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "speed"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`input.py`, whose runs stay in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    import input as module  # type: ignore[import-not-found]

    monkeypatch.setattr(module, "own_process", lambda name, **given: module.RUNS[name](**given))
    yield module
    for name in ("input", "input_data", "input_runs"):
        sys.modules.pop(name, None)


def test_the_input_is_measured(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYLAB_SHARED_DATA", str(tmp_path / "none"))
    data, saved = tmp_path / "data", tmp_path / "new" / "input.json"
    sizes = ["--tasks=12", "--examples=600", "--batch-size=8", "--group=6", "--workers", "0", "1"]
    script.main([*sizes, f"--folder={data}", f"--save={saved}", "--needed=1e6"])
    files = sorted((data / "tasks").glob("*.jsonl"))
    assert len(files) == 12
    assert sum(len(path.read_text().splitlines()) for path in files) == 600
    out = capsys.readouterr().out
    assert "| workers | grouped | read s |" in out
    assert "padding of real data: not measured, no data" in out
    content = json.loads(saved.read_text())
    assert content["versions"].keys() == set(script.LIBRARIES)
    rows = content["loading"]
    assert [(row["workers"], row["group"]) for row in rows] == [(0, "-"), (0, 6), (1, "-"), (1, 6)]
    assert [len(row["worker_private_mb"]) for row in rows] == [0, 0, 1, 1]
    for drawn, grouped in (rows[:2], rows[2:]):
        assert grouped["padding"] < drawn["padding"]
        assert 0 <= grouped["waiting_share"] <= 1
        assert grouped["of_needed"] == grouped["tokens_per_second"] / 1e6


def test_generated_data_follow_from_the_seed(script: Any, tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        script.write_tasks(tmp_path / name, tasks=3, examples=40, seed=seed)
        files = sorted((tmp_path / name).iterdir())
        texts.append([path.read_text() for path in files])
    assert texts[0] == texts[1] != texts[2]
    assert len({len(text.splitlines()) for text in texts[0]}) > 1
