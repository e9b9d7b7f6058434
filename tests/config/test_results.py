"""The table of a sweep."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError
from polylab.config.files import write_json
from polylab.config.results import SweepResults, flat_metrics

METRICS = {
    "val": {"loss": 2.0, "macro": {"exact_match": 0.5}, "tasks": {"copy": {"exact_match": 0.5}}},
    "test": {"loss": 3.0, "macro": {"exact_match": 0.25}},
    "recovery": {"aligned": 0.75, "unidentifiable": ["a"]},
    "checkpoint": "best",
}


def test_metrics_are_flat_and_without_single_tasks() -> None:
    assert flat_metrics(METRICS) == {
        "val/loss": 2.0,
        "val/exact_match": 0.5,
        "test/loss": 3.0,
        "test/exact_match": 0.25,
        "recovery/aligned": 0.75,
        "checkpoint": "best",
    }


def _config(sweep: Path, job: int, overrides: list[str], *, mode: RunMode) -> DictConfig:
    return OmegaConf.create(
        {
            "hydra": {
                "mode": mode,
                "runtime": {"output_dir": str(sweep / str(job))},
                "sweep": {"dir": str(sweep)},
                "overrides": {"task": overrides},
                "job": {"num": job},
            }
        }
    )


def _finish(sweep: Path, job: int, value: Any, *, mode: RunMode = RunMode.MULTIRUN) -> None:
    overrides = [f"seed={job}", "+adapter.x=a=b", "~gone"]
    failed = isinstance(value, Exception)
    status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    done = JobReturn(status=status, _return_value=value)
    (sweep / str(job)).mkdir(parents=True, exist_ok=True)
    SweepResults().on_job_end(_config(sweep, job, overrides, mode=mode), job_return=done)


def test_a_row_for_every_job(tmp_path: Path) -> None:
    write_json(tmp_path / "10" / "metrics.json", METRICS)
    _finish(tmp_path, 10, 0.5)
    _finish(tmp_path, 2, ConfigError("adapter: n_splits=3 must\ndivide 16"))
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["2", "10"]
    failed, fine = rows
    assert failed["status"] == "failed"
    assert failed["error"] == "adapter: n_splits=3 must · divide 16"
    assert failed["test/exact_match"] == ""
    assert fine["status"] == "completed"
    assert (fine["seed"], fine["adapter.x"], fine["test/exact_match"]) == ("10", "a=b", "0.25")
    assert list(fine)[-1] == "error"
    assert fine["folder"] == "10"


def test_the_end_of_a_sweep_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _finish(tmp_path, 0, 0.5)
    config = _config(tmp_path, 0, [], mode=RunMode.MULTIRUN)
    SweepResults().on_multirun_end(config)
    assert str(tmp_path / "results.csv") in capsys.readouterr().out


def test_a_single_run_has_no_table(tmp_path: Path) -> None:
    _finish(tmp_path, 0, 0.5, mode=RunMode.RUN)
    assert not list(tmp_path.rglob("*.csv"))
    assert not list(tmp_path.rglob("result.json"))
