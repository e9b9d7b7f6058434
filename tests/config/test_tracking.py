"""W&B without a prompt."""

import os
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from polylab.config.errors import ConfigError
from polylab.config.tracking import has_credentials, offline_run, told_apart, wandb_mode
from polylab.tracked import finished_logger


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_offline_without_credentials() -> None:
    assert not has_credentials()
    assert wandb_mode() == "offline"


def test_online_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode() == "online"


def test_online_with_an_entry_of_the_right_host(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody.write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443")
    assert wandb_mode() == "offline"


def test_a_broken_netrc_is_no_credential(nobody: Path) -> None:
    nobody.write_text("machine\n")
    assert not has_credentials()


def test_the_variable_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    for mode in ("offline", "disabled", "online"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert wandb_mode() == mode


def test_asking_for_the_network_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match="WANDB_MODE=online but W&B has no credentials"):
        wandb_mode()


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    assert wandb_mode() == "offline"
    assert "WANDB_MODE" not in os.environ  # W&B itself reads it too, and refuses an empty one


def test_other_loggers_end_without_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with (
        pytest.raises(ValueError, match="the run's own error"),
        finished_logger(CSVLogger(tmp_path), folder=tmp_path),
    ):
        raise ValueError("the run's own error")


def test_the_run_that_waits_for_a_sync(tmp_path: Path) -> None:
    assert offline_run(tmp_path) is None
    run = tmp_path / "wandb" / "offline-run-20260101_000000-abc"
    run.mkdir(parents=True)
    assert offline_run(tmp_path) == run


def test_names_tell_the_jobs_of_a_sweep_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["-m", "experiment=flan_poly", "adapter.n_skills=2,4", "optim.lr=1e-3", "seed=0,1"]
    monkeypatch.setattr(sys, "argv", ["polylab-train", *command])
    job = ["experiment=flan_poly", "adapter.n_skills=4", "optim.lr=1e-3", "seed=1", "data.path=/a"]
    assert told_apart("flan_poly-s1", job, sweep=Path("x")) == "flan_poly-s1 n_skills=4"
    assert told_apart("flan_poly-s1", job, sweep=None) == "flan_poly-s1"
    assert told_apart(None, job, sweep=Path("x")) is None
    long = told_apart("n", [f"a.key_{i}={i}" for i in range(40)], sweep=Path("x"))
    assert long is not None
    assert len(long) == 120
    assert long.startswith("n key_0=0 key_1=1 ")
