"""`init_from=RUN_DIR`: more tasks and skills, and old tasks that compute what they did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from polylab import PolyModel

FAST = ["logger=none", "callbacks=none", "optim.lr=0.3", "optim.router_lr=1"]


@pytest.fixture(scope="session")
def first(trained: Callable[..., Path]) -> Path:
    return trained()


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A task of the run and a new one whose name sorts first."""
    folder = tmp_path / "more"
    folder.mkdir()
    for name in ("again", "copy"):
        rows = [{"input": f"{name} {i}", "target": str(i)} for i in range(30)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _logits(t5_folder: Path, adapter: Path, task: int) -> torch.Tensor:
    base = AutoModelForSeq2SeqLM.from_pretrained(t5_folder)
    model = PolyModel.from_pretrained(base, adapter).eval()
    ids = torch.arange(3, 23).view(4, 5)
    with torch.no_grad():
        return model(input_ids=ids, labels=ids, task_ids=torch.full((4,), task)).logits


def _again(first: Path, more: Path, small: list[str], *overrides: str) -> list[str]:
    return [*small, *FAST, f"data.path={more}", f"init_from={first}", *overrides]


@pytest.mark.parametrize("n_skills", [3, 5])
def test_old_ids_and_outputs_stay(
    n_skills: int,
    first: Path,
    more: Path,
    small: list[str],
    t5_folder: Path,
    run_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    frozen = [
        "optim.lr=0",
        "optim.router_lr=0",
        "optim.weight_decay=0",
        f"adapter.n_skills={n_skills}",
    ]
    done = run_here(*_again(first, more, small, *frozen), "trainer.max_steps=1", cwd=tmp_path)
    assert done.code == 0, done.err
    adapter = done.folder / "adapter"
    names = json.loads((adapter / "tasks.json").read_text())
    assert names == {"copy": 0, "first": 1, "upper": 2, "again": 3}
    assert json.loads((adapter / "adapter_config.json").read_text())["n_skills"] == n_skills
    for task in range(3):
        found, before = (_logits(t5_folder, a, task) for a in (adapter, first / "adapter"))
        if n_skills == 3:
            assert torch.equal(found, before)
        else:  # skills that are shut add zeros, in another order of sums
            torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)
    assert not torch.equal(_logits(t5_folder, adapter, 3), _logits(t5_folder, adapter, 0))


def test_it_trains_on(
    first: Path,
    more: Path,
    small: list[str],
    t5_folder: Path,
    run_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    done = run_here(*_again(first, more, small), "trainer.max_steps=2", cwd=tmp_path)
    assert done.code == 0, done.err
    adapter = done.folder / "adapter"
    found, before = (_logits(t5_folder, place, 0) for place in (adapter, first / "adapter"))
    assert not torch.equal(found, before)
    assert {*json.loads((done.folder / "metrics.json").read_text())["test"]["tasks"]} == {
        "again",
        "copy",
    }


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["adapter.r=3"], "adapter.r was 2 and is 3"),
        (["adapter.n_skills=2"], "adapter.n_skills=2, and the run has 3"),
        (["adapter=mope"], "adapter.poly_type was poly and is mope"),
        (["backbone=tiny"], "its backbone is"),
        (["init_from=nowhere"], "init_from=nowhere: there is no adapter/ in it"),
    ],
)
def test_mistakes(
    first: Path,
    more: Path,
    small: list[str],
    run_here: Callable[..., Any],
    tmp_path: Path,
    overrides: list[str],
    says: str,
) -> None:
    given = _again(first, more, small)
    if overrides == ["backbone=tiny"]:
        given = [o for o in given if not o.startswith("backbone")]
    done = run_here(*given, *overrides, "trainer.max_steps=1", cwd=tmp_path)
    assert done.code == 1
    assert says in done.err
    assert done.err.count("\n") == 1
