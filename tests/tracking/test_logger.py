"""A tracker that fails ends no run: no server, one that goes away, a process that is killed."""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.sdk.mailbox import MailboxClosedError

from polylab.tracked import finished_logger
from polylab.tracking import PatientWandbLogger
from tests.tracking.fake_server import fake_server
from tests.wandb_reader import read_run, read_runs

Make = Callable[..., PatientWandbLogger]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings and no service of another test, and none left to the next."""
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_BASE_URL", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(mode: str = "offline", **arguments: Any) -> PatientWandbLogger:
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        return PatientWandbLogger(
            project="polylab", save_dir=tmp_path, mode=mode, settings=settings, **arguments
        )

    return build


def _ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("polylab")]


def _use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_no_server_makes_it_an_offline_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _use(monkeypatch, _closed_port())
    logger, began = make("online", init_timeout=2), time.monotonic()
    with finished_logger(logger, folder=tmp_path):
        logger.log_metrics({"train/loss": 1.5}, step=3)
    assert time.monotonic() - began < 15
    (record,) = _ours(caplog)
    assert "W&B did not begin the run" in record.message
    assert "offline instead, to be uploaded later with wandb sync" in record.message
    run = read_run(tmp_path)
    assert run.exit_code == 0
    assert run.series("train/loss") == [(3, 1.5)]


def test_a_server_that_goes_away_ends_no_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_server() as server:
        _use(monkeypatch, server.server_address[1])
        logger = make("online", init_timeout=10, finish_timeout=2)
        with finished_logger(logger, folder=tmp_path):
            logger.log_metrics({"train/loss": 1.5}, step=3)
            server.shutdown()
            server.server_close()
            logger.log_metrics({"train/loss": 0.5}, step=4)
            began = time.monotonic()
    assert time.monotonic() - began < 15
    (record,) = _ours(caplog)
    (folder,) = (tmp_path / "wandb").glob("run-*")
    assert record.message == (
        f"W&B took too long to take all data · upload the rest with: wandb sync {folder}"
    )
    assert [file.name for file in folder.glob("*.wandb")] == [f"run-{logger.version}.wandb"]
    assert read_runs(tmp_path, patience=0) == []  # no offline run: an online one with a log
    wandb.teardown()  # as at the end of the process: W&B's own writes what it holds
    assert next(folder.glob("*.wandb")).stat().st_size > 1000


def test_a_killed_service_ends_the_tracking_alone(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = make()
    with finished_logger(logger, folder=tmp_path):
        logger.log_metrics({"train/loss": 1.5}, step=1)
        os.kill(_service(), signal.SIGKILL)
        until = time.monotonic() + 20
        while not logger.is_lost and time.monotonic() < until:
            logger.log_metrics({"train/loss": 0.5}, step=2)
            time.sleep(0.05)
        logger.log_metrics({"train/loss": 0.5}, step=3)
        logger.log_hyperparams({"a": 1})
    (record,) = _ours(caplog)
    assert record.message.startswith("W&B stopped (")
    assert "its numbers are in history.jsonl" in record.message
    # the next run of the process is tracked again
    second = make()
    with finished_logger(second, folder=tmp_path):
        second.log_metrics({"train/loss": 0.25}, step=1)
    found = [run.series("train/loss") for run in read_runs(tmp_path, patience=1)]
    assert [(1, 0.25)] in found  # folders of one second are in no order


def _service() -> int:
    """The only child of this process that is W&B's."""
    lines = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True
    ).stdout.splitlines()
    (pid,) = [int(line.split()[0]) for line in lines if "wandb" in line]
    return pid


def test_a_folder_that_takes_no_files_ends_the_tracking_alone(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb").write_text("a file where the folder should be")
    logger = make()
    with finished_logger(logger, folder=tmp_path):
        logger.log_metrics({"train/loss": 1.5}, step=1)
        logger.log_metrics({"train/loss": 1.5}, step=2)
    (record,) = _ours(caplog)
    assert record.message.startswith("W&B stopped (")
    assert logger.is_lost


def test_a_service_that_was_gone_before_the_end_ends_no_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def closed(**_: Any) -> None:
        raise MailboxClosedError("closed")

    monkeypatch.setattr(wandb, "finish", closed)
    with finished_logger(make(), folder=tmp_path):
        pass
    (record,) = _ours(caplog)
    assert record.message.startswith("W&B stopped (closed)")


def test_an_error_passes_and_marks_the_run(make: Make, tmp_path: Path) -> None:
    logger = make()
    logger.log_metrics({"train/loss": 1.5}, step=1)
    with pytest.raises(KeyboardInterrupt), finished_logger(logger, folder=tmp_path):
        raise KeyboardInterrupt
    run = read_run(tmp_path)
    assert run.exit_code == 1
    assert run.series("train/loss") == [(1, 1.5)]


@pytest.mark.parametrize("is_set", [True, False])
def test_what_waits_for_a_sync_lies_in_the_folder_of_the_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_set: bool
) -> None:
    staged = tmp_path / "run" / "wandb" / "data"
    if is_set:
        staged = tmp_path / "mine"
        monkeypatch.setenv("WANDB_DATA_DIR", str(staged))
    logger = make()
    with finished_logger(logger, folder=tmp_path / "run"):
        table: Any = wandb.Table(columns=["a"], data=[[i] for i in range(500)])
        logger.log_metrics({"skills/table": table}, step=1)
    files = [path for path in staged.rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) < 50_000
    assert os.environ.get("WANDB_DATA_DIR") == (str(staged) if is_set else None)


@pytest.mark.parametrize("name", ["init_timeout", "finish_timeout"])
def test_wrong_timeouts(make: Make, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be above 0 seconds"):
        make(**{name: 0})
