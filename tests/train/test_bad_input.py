"""Bad input: one clear line, exit code 1, nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.wandb_reader import read_run

# an override that replaces one of `small`, and what the one line says
CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (
        ["adapter.n_skils=2"],
        ["unknown key 'adapter.n_skils'", "did you mean adapter.n_skills?"],
    ),
    "key without its group": (["n_skills=2"], ["'n_skills'", "did you mean adapter.n_skills?"]),
    "unknown group": (["adaptr=mhr"], ["'adaptr'", "did you mean adapter?", "backbone"]),
    "unknown option": (
        ["adapter=mrh"],
        ["adapter=mrh: no such option", "did you mean mhr?", "valid: c_poly, lora, mhr, mope"],
    ),
    "unknown experiment": (
        ["experiment=flan_polly"],
        ["experiment=flan_polly", "did you mean flan_poly?"],
    ),
    "wrong type": (["adapter.r=abc"], ["adapter.r=abc", "Integer"]),
    "bad syntax": (["data.path=[a"], ["'data.path=[a'", "KEY=VALUE"]),
    "several values": (["seed=1,2"], ["seed=1,2: several values", "-m"]),
    "unknown flag": (["--mutirun"], ["--mutirun", "did you mean --multirun?"]),
    "key below null": (["adapter=none", "adapter.r=2"], ["adapter.r: adapter is null"]),
    "an adapter again": (
        ["experiment=flan_poly", "adapter=none"],
        ["adapter=none with keys of adapter in experiment=flan_poly", "adapter=lora"],
    ),
    "another way to shard": (
        ["trainer.strategy={_target_:lightning.pytorch.strategies.ModelParallelStrategy}"],
        ["trainer.strategy: ModelParallelStrategy", "routers", "trainer=fsdp"],
    ),
    "argument of a strategy": (
        ["trainer=fsdp", "trainer.strategy.shard_skill=false"],
        ["trainer.strategy.shard_skill", "did you mean", "shard_skills"],
    ),
    "trainer argument": (["trainer.max_stepz=3"], ["did you mean trainer.max_steps?"]),
    "appended argument": (
        ["+callbacks.table.max_row=3"],
        ["callbacks.table.max_row", "did you mean max_rows?"],
    ),
    "target": (
        ["module._target_=polylab.training.PolyModul"],
        ["module._target_=polylab.training.PolyModul", "did you mean PolyModule?"],
    ),
    "several bad values": (
        ["data.batch_size=0", "adapter.r=0", "ckpt_path=no.ckpt"],
        ["data.batch_size=0 must be at least 1", "adapter.r=0", "ckpt_path=no.ckpt"],
    ),
    "missing folder": (["data.path=no/such/folder"], ["data.path=no/such/folder"]),
    "missing path": (["data.path=???"], ["data.path is not set"]),
    "missing backbone": (
        ["backbone.name_or_path=./no/model"],
        ["backbone.name_or_path=./no/model"],
    ),
    "prompt": (["data.prompt=nam"], ["data.prompt='nam'", "none, name, instruction"]),
    "learning rate": (["optim.lr=-1"], ["optim.lr=-1.0"]),
    "schedule": (
        ["optim.schedule=linear", "trainer.max_steps=-1"],
        ["optim.schedule=linear", "trainer.max_steps"],
    ),
    "poly type": (["adapter.poly_type=polly"], ["poly_type='polly'", "mope"]),
    "splits": (["adapter.n_splits=5"], ["n_splits=5", "encoder.block.0.layer.0.SelfAttention.q"]),
    "targets": (["adapter.target_modules=[qq]"], ["qq"]),
    "accelerator": (["trainer.accelerator=gpuu"], ["trainer: ", "gpuu"]),
    "warm start": (["init_from=old"], ["init_from=old"]),
}


def _no_half_written(done: Any) -> None:
    for folder in done.folders:
        names = {path.name for path in folder.iterdir()}
        assert names <= {".hydra", "train.log"}
    assert not list(done.cwd.rglob("wandb"))


def _one_line(done: Any) -> str:
    assert done.code == 1, done.out
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) == 1, done.err
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_half_written(
    case: str, small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    overrides, expected = CASES[case]
    done = run_here(*small, *overrides, cwd=tmp_path)
    line = _one_line(done)
    for part in expected:
        assert part in line
    _no_half_written(done)


def test_a_training_without_an_adapter(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    given = [override for override in small if not override.startswith("adapter")]
    line = _one_line(run_here(*given, "adapter=none", cwd=tmp_path))
    assert "module=multitask with adapter=none: it trains an adapter" in line
    assert "adapter=lora" in line


def test_a_malformed_row_names_file_and_line(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [json.dumps({"input": "a", "target": "b"}), '{"input": "a", "target"']
    (folder / "task.jsonl").write_text("\n".join(rows) + "\n")
    done = run_here(*small, f"data.path={folder}", cwd=tmp_path)
    assert f"{folder / 'task.jsonl'}:2" in _one_line(done)
    _no_half_written(done)


def test_an_empty_task_is_named(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "full.jsonl").write_text('{"input": "a", "target": "b"}\n')
    (folder / "bare.jsonl").write_text("")
    done = run_here(*small, f"data.path={folder}", cwd=tmp_path)
    assert "'bare'" in _one_line(done)
    _no_half_written(done)


def test_a_users_recipe_with_a_typo_is_named(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\nadapter:\n  n_skils: 3\n")
    options = ["--config-dir", str(folder.parent), "experiment=typo"]
    line = _one_line(run_here(*options, *small, cwd=tmp_path))
    assert "'adapter.n_skils' (in experiment/typo.yaml) · did you mean adapter.n_skills?" in line


def test_a_real_process_exits_with_1(
    small: list[str], run_process: Callable[..., Any], tmp_path: Path
) -> None:
    done = run_process(*small, "data.path=no/such/folder", cwd=tmp_path)
    assert "data.path=no/such/folder" in _one_line(done)
    _no_half_written(done)


def test_a_defect_fails_the_tracked_run_too(
    small: list[str],
    run_here: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from polylab.training import PolyModule

    def explode(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(PolyModule, "validation_step", explode)
    with pytest.raises(RuntimeError, match="a defect"):
        run_here(*small, cwd=tmp_path)
    assert read_run(tmp_path).exit_code == 1


def test_a_diverged_training_ends_with_one_line(
    run_here: Callable[..., Any], small: list[str], tmp_path: Path
) -> None:
    wild = [
        "optim.lr=1e30",
        "optim.router_lr=1e30",
        "trainer.log_every_n_steps=1",
        "callbacks=none",
    ]
    done = run_here(*small, *wild, "logger=none", cwd=tmp_path)
    assert done.code == 1
    assert "train/loss is nan at step" in done.err
    assert "lower optim.lr" in done.err
    assert not (done.folder / "metrics.json").exists()
