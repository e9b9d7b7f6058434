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
        "hydra/job_logging=none",
    ]  # fmt: skip
    monkeypatch.setenv("NODE_RANK", "2")
    assert "hydra.job.name=node2_rank3" in ddp.child_command(3)[0]


def test_children_of_a_later_node_read_a_configuration_of_its_own(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert ddp.starts_children_alone()
    assert ddp.children_config(job) == job / ".hydra" / "node2.yaml"
    command, _ = ddp.child_command(1)
    at = command.index("--config-path")
    assert command[at : at + 4] == [
        "--config-path", str(job / ".hydra"), "--config-name", "node2",
    ]  # fmt: skip
    monkeypatch.setenv("LOCAL_RANK", "1")  # one that was started
    assert not ddp.starts_children_alone()


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


_TASK = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"NODE_RANK": "1"}, True),
        (_TASK, True),
        ({**_TASK, "SLURM_PROCID": "0"}, False),
        ({**_TASK, "NODE_RANK": "0"}, True),
        ({**_TASK, "RANK": "0", "LOCAL_RANK": "0"}, False),  # torchrun on the second node
        ({**_TASK, "SLURM_JOB_NAME": "interactive"}, False),  # Lightning ignores SLURM as well
        ({"SLURM_PROCID": "1"}, False),
    ],
)
def test_who_is_a_child(
    given: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_JOB_NAME", *_TASK):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert ddp.is_child() is expected
