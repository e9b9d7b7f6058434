"""A run that goes on in its own folder, and what is refused there."""

import signal
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from polylab.config import requeue
from polylab.config.errors import ConfigError
from polylab.config.files import write_config, write_json
from polylab.config.jobs import pick_up


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("polylab.config.jobs.sweep_folder", lambda: None)


def _cfg(**keys: object) -> DictConfig:
    trainer = {"devices": 2, "num_nodes": 1, "max_steps": 8}
    return OmegaConf.create({"resume": True, "ckpt_path": None, "trainer": trainer, **keys})


def _left(folder: Path, cfg: DictConfig) -> Path:
    write_config(folder / requeue.ASKED, cfg)
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(exist_ok=True)
    last.touch()
    return last


def test_it_goes_on_from_its_own_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = _cfg(ckpt_path="of/another/run.ckpt")
    pick_up(cfg, tmp_path)
    assert cfg.ckpt_path == "of/another/run.ckpt"  # what it starts from the first time
    last = _left(tmp_path, cfg)
    pick_up(cfg, tmp_path)
    assert cfg.ckpt_path == str(last)
    assert capsys.readouterr().out == f"goes on from {last}\n"
    fresh = _cfg(resume=False)
    pick_up(fresh, tmp_path)
    assert fresh.ckpt_path is None


def test_torchrun_restarts_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = _cfg(resume=False)
    last = _left(tmp_path, cfg)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    pick_up(cfg, tmp_path)
    assert cfg.ckpt_path is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    pick_up(cfg, tmp_path)
    assert cfg.ckpt_path == str(last)


def test_only_its_own_run_goes_on(tmp_path: Path) -> None:
    assert not requeue.is_done(_cfg(seed=1), tmp_path)
    _left(tmp_path, _cfg(seed=1, lr=0.1, warmup=3, name="a"))
    moved = _cfg(seed=1, lr=0.1, warmup=3, name="a", ckpt_path="x")
    moved.trainer.devices, moved.trainer.num_nodes = 1, 4
    assert not requeue.is_done(moved, tmp_path)
    other = _cfg(seed=2, lr=0.2, warmup=4, name="b", tags=[7])
    with pytest.raises(ConfigError, match=r"seed=2, not 1; lr=0.2, not 0.1; .* and 2 more · give"):
        requeue.is_done(other, tmp_path)
    assert not requeue.is_done(_cfg(seed=2, resume=False), tmp_path)  # begins anew, as always
    write_json(tmp_path / "metrics.json", {})
    assert requeue.is_done(moved, tmp_path)
    (tmp_path / requeue.ASKED).unlink()
    with pytest.raises(ConfigError, match=r"no record of its configuration.*ckpt_path=.*last.ckpt"):
        requeue.is_done(moved, tmp_path)


def test_the_signal_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requeue.requeue_signal(_cfg()) is None
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    assert requeue.requeue_signal(_cfg()) == signal.SIGUSR1
    assert requeue.requeue_signal(_cfg(resume=False)) is None


def test_what_slurm_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "34")
    monkeypatch.setenv("SLURM_STEP_ID", "2")
    assert requeue.requeue() == "there is no scontrol to requeue job 34 with · sbatch it again"
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\necho "$2 is disabled" >&2; [ "$2" = 35 ]\n')
    fake.chmod(0o755)
    assert requeue.requeue() == "scontrol requeue 34 failed: 34 is disabled · sbatch it again"
    monkeypatch.setenv("SLURM_JOB_ID", "35")
    assert requeue.requeue() == "job 35 is requeued and goes on from here"
