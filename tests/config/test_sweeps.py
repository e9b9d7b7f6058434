"""Whole sweeps of jobs that take no time: as processes, killed, continued, and with plug-ins."""

import csv
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from polylab.config import jobs
from polylab.config.files import read_json
from polylab.config.results import job_lock
from tests.config.light import app
from tests.train.conftest import _restored

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]
EXTRA = "needs the extra: pip install -e .[sweep]"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the light command in `tmp_path`."""

    def run_in(*arguments: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "tests.config.light.app", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run_in


@pytest.fixture
def here(tmp_path: Path) -> Run:
    """Runs it in this process, which is quicker and survives nothing."""

    def run_here(*arguments: str) -> Ended:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with _restored(), redirect_stdout(out), redirect_stderr(err):
            os.chdir(tmp_path)
            sys.argv = ["light", *arguments]
            try:
                app.main()
            except SystemExit as end:
                code = int(end.code or 0)
        return Ended(code, out.getvalue(), err.getvalue())

    return run_here


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def _same(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "started")} for row in rows]


def test_a_failed_job_is_recorded_and_run_again(here: Run, tmp_path: Path) -> None:
    done = here("-m", "x=1,2", "does=fail,nothing")
    assert done.code == 1
    rows = _table(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["failed", "completed"] * 2
    assert rows[0]["error"] == "x=1 is · not valid"
    lines = done.out.splitlines()
    assert "sweep of 4 jobs: 2 completed, 2 failed" in lines
    assert "  job 2 failed: x=2 is · not valid · sweep/2" in lines
    assert "best val/score: 2 · x=2 does=nothing" in lines
    assert lines[-1] == "results of the sweep: sweep/results.csv"
    progress = [line for line in lines if line.startswith("sweep: ")]
    assert [line.split(" · ")[:2] for line in progress[::3]] == [
        ["sweep: 1 of 4 jobs", "0 completed, 1 failed, 3 left"],
        ["sweep: 4 of 4 jobs", "2 completed, 2 failed, 0 left"],
    ]

    again = here("-m", "x=1,2", "does=fail,nothing", "hydra.sweep.dir=sweep")
    assert again.code == 1
    assert _same(_table(tmp_path / "sweep")) == _same(rows)
    assert _calls(tmp_path) == ["1 0", "1 0", "2 0", "2 0", "1 0", "2 0"]
    assert "job 3 is done already" in again.out
    again_lines = [line for line in again.out.splitlines() if line.startswith("sweep: ")]
    assert again_lines[0].startswith("sweep: 3 of 4 jobs · 2 completed, 1 failed, 1 left")


def test_a_killed_sweep_goes_on(run: Run, here: Run, tmp_path: Path) -> None:
    given = ("-m", "x=1,2", "seed=0,3", "does=rough")
    assert run(*given, "hydra.sweep.dir=cut").code == -9
    rows = _table(tmp_path / "cut")
    assert [(row["job"], row["status"]) for row in rows] == [("0", "completed"), ("1", "running")]
    assert here(*given, "hydra.sweep.dir=cut").code == 1
    statuses = [row["status"] for row in _table(tmp_path / "cut")]
    assert statuses == ["completed", "failed", "completed", "completed"]
    done = here(*given, "hydra.sweep.dir=cut")
    assert done.code == 0
    assert _calls(tmp_path) == ["1 0", "1 3", "1 3", "2 0", "2 3", "1 3"]
    assert here(*given, "hydra.sweep.dir=whole").code == 0
    assert _same(_table(tmp_path / "cut")) == _same(_table(tmp_path / "whole"))
    assert "best val/score: 2.15 (mean of 2 seeds) · x=2" in done.out


def test_jobs_of_another_configuration_are_not_taken(here: Run, tmp_path: Path) -> None:
    """A file that the command names has changed: what its job was is not what it would be."""
    files = [tmp_path / "conf" / name for name in ("kind/a.yaml", "kind/b.yaml", "all/c.yaml")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("setting: 1\n")
    given = ("--config-dir", f"{tmp_path}/conf", "-m", "+kind=a,b", "+all=c")
    given += ("hydra.sweep.dir=sweep",)
    assert here(*given).code == 0
    files[1].write_text("setting: 2\n")
    before = (tmp_path / "sweep" / "results.csv").read_bytes()
    done = here(*given)
    assert done.code == 1
    assert "job 0 is done already" in done.out
    assert f"{tmp_path}/sweep/1: its configuration is not that of its earlier attempt" in done.err
    assert (tmp_path / "sweep" / "results.csv").read_bytes() == before
    assert len(_calls(tmp_path)) == 2
    # what is the same for all jobs is known before the first one
    files[2].write_text("setting: 2\n")
    assert "holds another sweep: its overrides are these" in here(*given).err
    assert len(_calls(tmp_path)) == 2


def test_another_sweep_is_refused(here: Run, tmp_path: Path) -> None:
    assert here("-m", "x=1,2").code == 0
    before = (tmp_path / "sweep" / "results.csv").read_bytes()
    done = here("-m", "x=1,2,3", "hydra.sweep.dir=sweep")
    assert done.code == 1
    assert "holds another sweep, with overrides x=1,2, not x=1,2,3" in done.err
    assert "Traceback" not in done.err
    assert (tmp_path / "sweep" / "results.csv").read_bytes() == before
    (tmp_path / "sweep" / "sweep.json").unlink()
    assert "holds jobs without sweep.json" in here("-m", "x=1,2", "hydra.sweep.dir=sweep").err


def test_one_process_leads_a_sweep(here: Run, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "sweep").mkdir()
    with FileLock(tmp_path / "sweep" / ".sweep.lock"):
        done = here("-m", "x=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 1
    assert f"hydra.sweep.dir={tmp_path}/sweep: another process runs this sweep" in done.err


def test_a_disk_without_locks_takes_no_sweep(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    def acquire(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    done = here("-m", "x=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 1
    assert done.err == (
        f"hydra.sweep.dir={tmp_path}/sweep: its disk has no file locks (flock), which keep jobs "
        "apart · give a folder on another disk\n"
    )
    (tmp_path / "file").touch()
    done = here("-m", "x=1,2", "hydra.sweep.dir=file/sweep")
    assert done.err.startswith(f"hydra.sweep.dir={tmp_path}/file/sweep: ")
    assert "Not a directory" in done.err
    assert not (tmp_path / "calls").exists()


def test_a_look_at_a_lock_is_not_taken_for_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever gathers the table holds the locks of jobs for an instant."""
    from polylab.config.jobs import _held

    held = threading.Event()

    def look() -> None:
        with job_lock(tmp_path):
            held.set()
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    (tmp_path / ".hydra").mkdir()
    thread.start()
    held.wait()
    with _held(tmp_path):
        assert capsys.readouterr().out == ""
    thread.join()


def test_single_runs_are_left_alone(here: Run, tmp_path: Path) -> None:
    assert here("x=4").code == 0
    assert not list(tmp_path.rglob("result*"))


def test_jobs_side_by_side(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason=EXTRA)
    done = run(
        "-m", "x=range(4)", "seed=7", "does=wait", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = _table(tmp_path / "sweep")
    assert [(row["job"], row["x"], row["status"]) for row in rows] == [
        (str(i), str(i), "completed") for i in range(4)
    ]
    assert done.out.count("\nsweep: ") == 4
    assert "sweep: 4 of 4 jobs · 4 completed, 0 failed, 0 left" in done.out


def test_jobs_of_another_machine(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason=EXTRA)
    done = run("-m", "x=1", "does=fail,nothing", "hydra/launcher=submitit_local")
    assert done.code == 1
    statuses = [row["status"] for row in _table(tmp_path / "sweep")]
    assert statuses == ["failed", "completed"]
    assert done.out.count("\nsweep: ") == 2  # of the leading process: the jobs have their own logs
    assert "sweep of 2 jobs: 1 completed, 1 failed" in done.out


STUDY = [
    *("-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=tpe", "hydra.sweeper.n_jobs=1"),
    *("hydra.sweeper.direction=maximize", "hydra.sweeper.storage='sqlite:///sweep/study.db'"),
    *("hydra.sweeper.study_name=polylab", "hydra.sweeper.max_failure_rate=1.0"),
    *("hydra.sweeper.sampler.seed=0", "hydra.sweep.dir=sweep"),
]


def test_a_killed_study_goes_on(run: Run, here: Run, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason=EXTRA)
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=EXTRA)
    given = [*STUDY, "x=interval(0.0,1.0)", "does=rough"]
    assert run(*given, "hydra.sweeper.n_trials=4").code == -9
    done = here(*given, "hydra.sweeper.n_trials=4")
    assert done.code == 1
    rows = _table(tmp_path / "sweep")
    assert [(row["job"], row["folder"], row["status"]) for row in rows] == [
        ("0", "0", "completed"),
        ("1", "1", "killed"),  # another trial takes its place
        ("2", "2", "failed"),  # and stops no other
        ("3", "3", "completed"),
        ("4", "4", "completed"),
    ]
    assert len({row["x"] for row in rows}) == 5  # a continued sampler does not repeat itself
    study = optuna.load_study(study_name="polylab", storage=f"sqlite:///{tmp_path}/sweep/study.db")
    told = {str(trial.params["x"]): trial.value for trial in study.trials}
    assert told == {
        row["x"]: float(row["test/score"]) if row["test/score"] else None for row in rows
    }
    assert here(*given, "hydra.sweeper.n_trials=5").code == 0  # one more
    assert len(_table(tmp_path / "sweep")) == 6


def test_a_value_that_the_study_did_not_hear_of(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason=EXTRA)
    from polylab.config.studies import continue_study

    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="a", storage=storage, direction="maximize")
    params = [{"x": study.ask().suggest_float("x", 0, 1)} for _ in range(3)]
    results = [
        {"job": job, "status": status, "value": value, "overrides": {"x": str(params[job]["x"])}}
        for job, status, value in ((0, "completed", 0.25), (1, "killed", None))
    ]
    sweeper = {"storage": storage, "study_name": "a", "n_trials": 7, "sampler": {"seed": 5}}
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "S"}, "sweeper": sweeper}})
    again = {"job": -1, "status": "killed", "value": None, "overrides": {"x": str(params[0]["x"])}}
    assert continue_study(config, [again, *results]) == 2
    assert (config.hydra.sweeper.n_trials, config.hydra.sweeper.sampler.seed) == (6, 7)
    study = optuna.load_study(study_name="a", storage=storage)
    states = [(trial.state.name, trial.value) for trial in study.trials]
    assert states == [("COMPLETE", 0.25), ("FAIL", None), ("RUNNING", None)]  # the last: not ours


def test_a_study_in_memory_does_not_go_on(here: Run, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=EXTRA)
    given = ["-m", "hydra/sweeper=optuna", "hydra.sweep.dir=sweep", "x=interval(0,1)"]
    assert here(*given, "hydra.sweeper.n_trials=1").code == 0
    assert read_json(tmp_path / "sweep" / "sweep.json")["jobs"] == 1
    done = here(*given, "hydra.sweeper.n_trials=2")
    assert done.code == 1
    assert "hydra.sweeper.storage is null" in done.err


def test_a_study_without_a_choice_is_refused(here: Run, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason=EXTRA)
    done = here(*STUDY, "x=3", "hydra.sweeper.n_trials=5")
    assert done.code == 1
    assert "hydra.sweeper.n_trials=5 trials without anything to choose · add KEY=inter" in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


@pytest.fixture
def second_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process the second of two that srun started."""
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")


@pytest.mark.usefixtures("second_task")
def test_a_second_task_of_slurm_neither_waits_nor_writes(here: Run, tmp_path: Path) -> None:
    with job_lock(tmp_path / "sweep" / "0"):  # the first one holds it
        done = here("-m", "x=5", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert _calls(tmp_path) == ["5 0"]
    assert "waiting" not in done.out
    assert not list(tmp_path.rglob("result.json"))


def test_a_second_task_skips_what_the_first_skips(
    here: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert here("-m", "x=5,6", "does=nothing,fail", "hydra.sweep.dir=sweep").code == 1
    before = _calls(tmp_path)
    request.getfixturevalue("second_task")
    done = here("-m", "x=5,6", "does=nothing,fail", "hydra.sweep.dir=sweep")
    assert "done already" not in done.out
    assert _calls(tmp_path)[len(before) :] == ["5 0", "6 0"]  # those that failed


@pytest.mark.usefixtures("second_task")
def test_a_second_task_goes_on_where_the_first_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "sweep_folder", lambda: tmp_path)
    cfg = OmegaConf.create({"ckpt_path": None})
    (tmp_path / "history.jsonl").write_text("{}")
    jobs.pick_up(cfg, tmp_path)
    assert cfg.ckpt_path is None
    assert (tmp_path / "history.jsonl").exists()  # the first one's to delete
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    jobs.pick_up(cfg, tmp_path)
    assert cfg.ckpt_path == str(last)
    assert capsys.readouterr().out == ""


def test_a_lock_is_held_by_a_living_job_alone(tmp_path: Path) -> None:
    from polylab.config.files import write_json
    from polylab.config.results import read_results

    record = {"job": 0, "status": "running", "overrides": {}, "metrics": {}}
    write_json(tmp_path / "0" / ".hydra" / "result.json", record)
    assert [r["status"] for r in read_results(tmp_path)] == ["killed"]
    with job_lock(tmp_path / "0"):
        assert [r["status"] for r in read_results(tmp_path)] == ["running"]
    assert [r["status"] for r in read_results(tmp_path)] == ["killed"]
