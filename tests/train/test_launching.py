"""Runs that SLURM or torchrun start: one folder, the same numbers, and going on after an end."""

import csv
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polylab.callbacks import Throughput
from polylab.config.files import read_json, read_json_lines

TWO_NODES = Path(__file__).with_name("two_nodes.sh")
ROOT = Path(__file__).resolve().parents[2]
BARE = ["logger=none", "callbacks.figures=null", "callbacks.table=null", "callbacks.use=null"]
RANKS = ["launch=two_ranks", "trainer.accelerator=cpu"]
EXTRA = "needs the extra: pip install -e .[sweep]"
NAMESPACES = ["unshare", "--user", "--map-root-user", "--net"]

Launch = Callable[..., Any]


def _losses(folder: Path) -> dict[int, float]:
    lines = [line for line in read_json_lines(folder / "history.jsonl") if "train/loss" in line]
    found = {line["step"]: line["train/loss"] for line in lines}
    assert len(found) == len(lines)  # once, not once a rank
    return found


def _check_same_run(folder: Path, other: Path) -> None:
    """Every loss and every bit of the weights."""
    assert _losses(folder) == _losses(other)
    ours, theirs = (
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for f in (folder, other)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.fixture(scope="session")
def sweep_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, small: list[str], run_process: Launch
) -> Launch:
    """Sweeps of one job on two ranks, by Hydra's launcher."""
    sweeps: dict[str, Any] = {}

    def run(launcher: str) -> Any:
        if launcher not in sweeps:
            given = [*small, *BARE, *RANKS, f"hydra/launcher={launcher}"]
            cwd = tmp_path_factory.mktemp(launcher)
            sweeps[launcher] = run_process("-m", *given, "seed=3", cwd=cwd)
        return sweeps[launcher]

    return run


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_two_ranks_under_a_launcher(launcher: str, sweep_of_ranks: Launch) -> None:
    """Its workers run arguments of their own, which Lightning would start the second rank with."""
    package = f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher"
    pytest.importorskip(package, reason=EXTRA)
    done = sweep_of_ranks(launcher)
    assert done.code == 0, done.err
    (table,) = done.cwd.glob("runs/*/*/results.csv")  # one tree
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert (row["status"], row["seed"]) == ("completed", "3")
    assert "sweep: 1 of 1 jobs · 1 completed, 0 failed, 0 left" in done.out
    assert read_json(done.folder / "environment.json")["devices"] == 2
    assert len(list(done.cwd.rglob("config.yaml"))) == 2  # the job's, and Hydra's unresolved one
    assert len(_losses(done.folder)) == 4


def test_two_nodes_are_one_run(small: list[str], sweep_of_ranks: Launch, tmp_path: Path) -> None:
    """Of torchrun, in two network namespaces with a cable between them; as two ranks of one."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("two nodes are two network namespaces: needs Linux with unshare and ip")
    allowed = subprocess.run([*NAMESPACES, "ip", "link"], capture_output=True, text=True)
    if allowed.returncode:
        pytest.skip(f"network namespaces are not allowed here: {allowed.stderr.strip()}")
    given = [*small, *BARE, "trainer=ddp", "trainer.accelerator=cpu", "seed=3"]
    torchrun = (
        f"{sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank "
        "$NODE_RANK --master-addr $MASTER_ADDR --master-port $MASTER_PORT -m polylab.train "
    )
    done = subprocess.run(
        [*NAMESPACES, "bash", str(TWO_NODES), torchrun + " ".join(given)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    second = (tmp_path / "second.log").read_text()
    assert done.returncode == 0, done.stderr + second
    # torch's own lines, of sockets and of a store that ends before it, are no words of ours
    assert not [words for words in ("Traceback", "backbone ", "training:") if words in second]
    assert done.stdout.count("all scores") == 1
    assert "2 x cpu, DDPStrategy" in done.stdout
    (folder,) = tmp_path.glob("runs/*/*")
    assert {path.name for path in folder.glob("*.log")} <= {"train.log"}
    where = read_json(folder / "environment.json")
    assert (where["devices"], where["nodes"]) == (2, 2)
    has_joblib = importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    _check_same_run(folder, sweep_of_ranks("joblib" if has_joblib else "basic").folder)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A job of SLURM with one task, whose `scontrol` notes what it is asked; returns its notes."""
    notes = tmp_path / "scontrol.txt"
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {notes}\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "512")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    return notes


def _stop_at(step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Any, trainer: Any, *_rest: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Throughput, "on_train_batch_end", stop)


def test_a_requeued_job_goes_on_where_it_was(
    small: list[str], run_here: Launch, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*small, *BARE, "trainer.max_steps=11", "trainer.val_check_interval=4"]
    whole = run_here(*given, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.code == 0, whole.err
    folder = tmp_path / "runs" / "train" / "slurm_512"
    with monkeypatch.context() as patch:
        _stop_at(6, signal.SIGUSR1, patch)
        cut = run_here(*given, "launch=slurm", cwd=tmp_path)
    assert cut.code == 128 + signal.SIGUSR1
    assert cut.err.splitlines() == [
        f"stopped by a signal after 7 steps · go on with ckpt_path={folder}/checkpoints/last.ckpt",
        "job 512 is requeued and goes on from here",
    ]
    assert slurm.read_text() == "requeue 512\n"
    assert not (folder / "metrics.json").exists()
    again = run_here(*given, "launch=slurm", cwd=tmp_path)
    assert again.code == 0, again.err
    assert f"goes on from {folder}/checkpoints/last.ckpt" in again.out
    _check_same_run(folder, tmp_path / "whole")

    done = run_here(*given, "launch=slurm", cwd=tmp_path)
    assert (done.code, done.out) == (0, f"this run is done already · {folder}\n")
    other = run_here(*given, "launch=slurm", "seed=3", "optim.lr=0.5", cwd=tmp_path)
    assert other.code == 1
    (line,) = other.err.splitlines()
    assert line.startswith(f"{folder} holds another run: here seed=3, not 0; optim.lr=0.5, not ")


def test_a_job_that_comes_no_further_is_not_requeued(
    small: list[str], run_here: Launch, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Throughput, "on_fit_start", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    cut = run_here(*small, *BARE, "launch=slurm", cwd=tmp_path)
    assert cut.code == 128 + signal.SIGUSR1
    assert "not requeued: no step was made since the job was started" in cut.err
    assert not slurm.exists()


def test_the_other_commands_are_one_process(
    run_here: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NTASKS": "5", "PROCID": "0", "NNODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    done = run_here("run=x", cwd=tmp_path, command="evaluate")
    assert done.err == (
        "polylab.evaluate is one process, but srun started 5 · start it without srun\n"
    )


@pytest.mark.parametrize(
    ("tasks", "creates", "expected"),
    [(None, None, None), (1, False, "Lightning"), (5, True, "SLURM")],
)
def test_who_starts_the_ranks_of_a_slurm_job(
    tasks: int | None, creates: bool | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would take the one process of a job with one task for the whole run."""
    from polylab.trainers import slurm_environment

    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    if tasks is not None:
        for name, value in {"NTASKS": tasks, "NTASKS_PER_NODE": tasks, "PROCID": 0}.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
    found = slurm_environment()
    assert len(found) == (tasks is not None)
    for environment in found:
        assert type(environment).__name__ == f"{expected}Environment"
        assert environment.creates_processes_externally is creates
        assert not getattr(environment, "auto_requeue", False)
