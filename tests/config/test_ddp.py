"""The children of Lightning's DDP launcher."""

import importlib
import os
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from polylab.config import ddp


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    runtime = {"output_dir": str(tmp_path / "a=1,b"), "cwd": "/somewhere"}
    config = OmegaConf.create({"runtime": runtime})
    monkeypatch.setattr(HydraConfig, "get", lambda: config)
    return tmp_path / "a=1,b"


def test_a_child_joins_one_job(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1"])
    command, cwd = ddp.child_command(3)
    assert cwd == "/somewhere"
    assert command == [
        sys.executable, "-m", "polylab.train", "--config-path", str(job), "--config-name",
        "config", f'hydra.run.dir="{job}"', "hydra.output_subdir=null", "hydra.job.name=rank3",
    ]  # fmt: skip


def test_both_of_lightnings_references_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [importlib.import_module(name) for name in ddp._LAUNCHERS]
    for module in modules:
        monkeypatch.setattr(module, "_hydra_subprocess_cmd", "stock")
    ddp.patch_launchers()
    assert [module._hydra_subprocess_cmd for module in modules] == [ddp.child_command] * 2


def test_a_lightning_without_the_hook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(ddp._LAUNCHERS[0])
    monkeypatch.delattr(module, "_hydra_subprocess_cmd")
    with pytest.raises(RuntimeError, match=r"fabric.*_hydra_subprocess_cmd · install lightning"):
        ddp.patch_launchers()


def test_the_next_job_finds_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with ddp.clean_environment():
        os.environ.update(MASTER_PORT="2", LOCAL_RANK="0")
    assert os.environ["MASTER_PORT"] == "1"
    assert "LOCAL_RANK" not in os.environ


@pytest.mark.parametrize(("rank", "expected"), [(None, False), ("0", False), ("1", True)])
def test_who_is_a_child(rank: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert ddp.is_child() is expected
