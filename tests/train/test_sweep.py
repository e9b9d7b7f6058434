"""A sweep: a folder and a W&B run for every job, one group, one table."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polylab.config.files import read_json, read_json_lines, write_json
from tests.wandb_reader import read_runs

QUICK = ["trainer.max_steps=2", "callbacks.figures=null", "callbacks.table=null"]


@pytest.fixture(scope="session")
def sweep(
    tmp_path_factory: pytest.TempPathFactory, small: list[str], run_process: Callable[..., Any]
) -> Any:
    """Two by two jobs, as a process."""
    cwd = tmp_path_factory.mktemp("sweep")
    done = run_process("-m", *small, *QUICK, "adapter.n_skills=2,4", "seed=0,1", cwd=cwd)
    assert done.code == 0, done.err
    return done


def _table(done: Any) -> list[dict[str, str]]:
    (table,) = done.cwd.glob("runs/train/multirun_*/results.csv")
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_four_folders(sweep: Any) -> None:
    assert [folder.name for folder in sweep.folders] == ["0", "1", "2", "3"]
    assert len({folder.parent for folder in sweep.folders}) == 1
    for folder in sweep.folders:
        assert (folder / "metrics.json").is_file()
        assert (folder / "config.yaml").is_file()


def test_one_table(sweep: Any) -> None:
    rows = _table(sweep)
    chosen = [(row["adapter.n_skills"], row["seed"], row["status"]) for row in rows]
    assert chosen == [(k, s, "completed") for k in "24" for s in "01"]
    assert all(float(row["test/loss"]) > 0 for row in rows)
    assert len({row["test/loss"] for row in rows}) == 4


def test_four_runs_in_one_group(sweep: Any) -> None:
    runs = read_runs(sweep.cwd)
    assert {run.group for run in runs} == {f"train-{sweep.folders[0].parent.name}"}
    names = [f"train-s{seed} n_skills={skills}" for seed in "01" for skills in "24"]
    assert sorted(run.name for run in runs) == names
    assert len({run.folder.parent for run in runs}) == 4
    assert [run.exit_code for run in runs] == [0] * 4
    assert all(run.last("test/loss") > 0 for run in runs)


def test_jobs_that_were_cut_off_go_on(
    sweep: Any, small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    """One while it was tested, from its checkpoint; one before its first, anew; two were done."""
    shutil.copytree(sweep.folders[0].parent, tmp_path / "cut")
    for job in "12":
        folder = tmp_path / "cut" / job
        record = read_json(folder / ".hydra" / "result.json")
        write_json(folder / ".hydra" / "result.json", record | {"status": "running"})
        (folder / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "2" / "checkpoints")
    n_lines = len(read_json_lines(tmp_path / "cut" / "2" / "history.jsonl"))
    given = [*QUICK, "adapter.n_skills=2,4", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'cut'}"]
    done = run_here("-m", *small, *given, cwd=tmp_path)
    assert done.code == 0, done.err
    said = [line for line in done.out.splitlines() if line.startswith(("job ", "goes on"))]
    assert [line.split(" · ")[0].split(" from ")[0] for line in said] == [
        "job 0 is done already", "goes on", "job 3 is done already",
    ]  # fmt: skip
    assert (
        len(read_json_lines(tmp_path / "cut" / "2" / "history.jsonl")) == n_lines
    )  # not those of both attempts
    with (tmp_path / "cut" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    moved = ("seconds", "started", "commit")
    for row, expected in zip(rows, _table(sweep), strict=True):
        assert {k: v for k, v in row.items() if k not in moved} == {
            k: v for k, v in expected.items() if k not in moved
        }


def test_a_failing_job_stops_no_other(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    done = run_here(
        "-m", *small, *QUICK, "logger=none", "adapter.n_splits=5,1", cwd=tmp_path
    )  # fmt: skip
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("adapter")
    assert "Traceback" not in done.err
    bad, good = _table(done)
    assert (bad["status"], good["status"]) == ("failed", "completed")
    assert "n_splits=5" in bad["error"]
    assert float(good["test/loss"]) > 0
    failed, fine = done.folders
    assert {path.name for path in failed.iterdir()} == {".hydra", "train.log"}
    assert (fine / "metrics.json").is_file()


def test_two_ranks_within_a_sweep_are_one_job(
    small: list[str], run_process: Callable[..., Any], tmp_path: Path
) -> None:
    """And a job ends when one of its ranks is killed, with a line that says so; others go on."""
    ranks = ["launch=two_ranks", "trainer.accelerator=cpu"]
    numbered = r"tags=['job-${hydra:job.num}']"  # which the second rank does not know
    fails = ["+callbacks.fail._target_=tests.ranks.failing.Fail", "+callbacks.fail.rank=1"]
    fails += ["+callbacks.fail.how=kill", "+callbacks.fail.where=step,nowhere"]
    root = str(Path(__file__).parents[2])
    done = run_process(
        "-m", *small, *QUICK, *ranks, *fails, numbered, "seed=3", cwd=tmp_path, PYTHONPATH=root
    )
    assert done.code == 1
    why = "rank 1 is gone: its process was ended by SIGKILL (perhaps memory ran out)"
    assert done.err.splitlines()[-1] == why
    assert "Traceback" not in done.err
    bad, good = _table(done)
    assert (bad["status"], bad["error"]) == ("failed", why)
    assert (good["status"], good["seed"]) == ("completed", "3")
    assert "2 x cpu, DDPStrategy" in done.out
    # what the other ranks had seen since the previous log line is lost with one of them
    assert [(folder / "mix.csv").exists() for folder in done.folders] == [False, True]
    assert len(list(tmp_path.rglob("config.yaml"))) == 4  # the jobs', and Hydra's unresolved ones
    assert [(run.tags[-1], run.exit_code) for run in read_runs(tmp_path)] == [
        ("job-0", 1),
        ("job-1", 0),
    ]
