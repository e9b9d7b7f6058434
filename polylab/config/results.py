"""What a sweep leaves behind: one `results.csv` with a row for every job, failed ones included."""

import csv
import io
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from polylab.config.errors import cause_line
from polylab.config.files import read_json, write_json, write_text

RESULT = "result.json"


class SweepResults(Callback):
    """Write `JOB/.hydra/result.json` after every job and gather them in `SWEEP/results.csv`.

    The table is rewritten after every job, so that it is right when a later job or the whole
    sweep dies. Hydra calls `on_job_end` where the job ran, under every launcher.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder = Path(config.hydra.runtime.output_dir)
        sweep = Path(str(config.hydra.sweep.dir)).absolute()
        write_json(folder / ".hydra" / RESULT, job_result(config, job_return, folder=folder))
        collect(sweep)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        table = collect(Path(str(config.hydra.sweep.dir)).absolute())
        print(f"results of the sweep: {table}")


def job_result(config: DictConfig, job_return: JobReturn, *, folder: Path) -> dict[str, Any]:
    """Return what one job was asked (its overrides) and what came out."""
    overrides: list[str] = list(config.hydra.overrides.task)
    result: dict[str, Any] = {
        "job": int(config.hydra.job.num),
        "status": "completed" if job_return.status == JobStatus.COMPLETED else "failed",
        "overrides": dict(o.lstrip("+").split("=", 1) for o in overrides if "=" in o),
        "metrics": {},
        "error": "",
    }
    if job_return.status != JobStatus.COMPLETED:
        result["error"] = cause_line(job_return._return_value)
    metrics = folder / "metrics.json"
    if metrics.is_file():
        result["metrics"] = flat_metrics(read_json(metrics))
    return result


def flat_metrics(metrics: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"test/exact_match": ...}`: the macro metrics and plain numbers, no single tasks."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if key == "tasks":
            continue
        name = prefix if key == "macro" else f"{prefix}/{key}" if prefix else key
        if isinstance(value, dict):
            flat |= flat_metrics(value, name)
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def collect(sweep: Path) -> Path:
    """Write `sweep/results.csv` from the results of its jobs, in job order, and return its path."""
    files = sweep.glob(f"*/.hydra/{RESULT}")
    results = [(f, read_json(f)) for f in files]
    results.sort(key=lambda pair: pair[1]["job"])
    rows = [_row(result, folder=file.parent.parent.name) for file, result in results]
    # a column's place is that of its first appearance; the error comes last
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if c != "error"]
    table = sweep / "results.csv"
    write_text(table, _csv(rows, columns=[*columns, "error"]))
    return table


def _row(result: dict[str, Any], *, folder: str) -> dict[str, Any]:
    head = {"job": result["job"], "folder": folder, "status": result["status"]}
    return head | result["overrides"] | result["metrics"] | {"error": result["error"]}


def _csv(rows: list[dict[str, Any]], *, columns: list[str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
