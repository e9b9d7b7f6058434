"""One job of a sweep: it leaves a record in its folder, and is not run again where that is there.

Hydra's launchers start every job of a command. What makes a killed sweep go on is that a job which
is done already returns what it returned before.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from polylab.config.ddp import is_child
from polylab.config.errors import ConfigError, cause_line
from polylab.config.files import read_json, write_json
from polylab.config.launch import job_folder, sweep_folder
from polylab.config.progress import progress_line, read_plan
from polylab.config.requeue import goes_on
from polylab.config.results import (
    RESULT,
    as_mapping,
    collect,
    given_overrides,
    job_lock,
    read_metrics,
    settings_digest,
)

Task = Callable[[DictConfig], Any]
# files that a run adds lines to: those of an attempt that left no checkpoint would stay in them
_APPENDED = ("history.jsonl", "routing.csv")


def recorded(task: Task) -> Task:
    """Make `task` record what comes of it in a sweep; a completed job is not run again.

    The record is `JOB/.hydra/result.json`, from which the sweep's `results.csv` is gathered.

    Raises:
        ConfigError: If the folder holds a job of the same overrides with another configuration.
    """

    @wraps(task)  # launchers find it by the name of the task
    def run(cfg: DictConfig) -> Any:
        sweep = sweep_folder()
        if sweep is None:
            return task(cfg)
        folder = job_folder()
        if is_child():
            return _join(task, cfg, folder=folder, sweep=sweep.absolute())
        with _held(folder):
            return _run(task, cfg, folder=folder, sweep=sweep.absolute())

    return run


def _run(task: Task, cfg: DictConfig, *, folder: Path, sweep: Path) -> Any:
    file, result = folder / ".hydra" / RESULT, _new_result(cfg, sweep)
    before = _earlier(file, result, folder=folder)
    if before is not None:
        print(f"job {before['job']} is done already · {folder}", flush=True)
        return before["value"]
    write_json(file, result)
    collect(sweep)
    began = time.perf_counter()
    try:
        result["value"] = task(cfg)
        result |= {"status": "completed", "metrics": read_metrics(folder)}
        return result["value"]
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "killed"  # the latter: by Ctrl-C
        result |= {"status": status, "error": cause_line(error)}
        raise
    finally:
        result |= {"seconds": round(time.perf_counter() - began, 2), "ended": time.time()}
        write_json(file, result)
        line = progress_line(collect(sweep), read_plan(sweep), last=result)
        print(line, flush=True)


def _join(task: Task, cfg: DictConfig, *, folder: Path, sweep: Path) -> Any:
    """Run `task` as a rank that SLURM started: the first one holds the lock and keeps the record.

    That one cannot complete the job alone, so what is completed here is what it skips as well.
    """
    before = _earlier(folder / ".hydra" / RESULT, _new_result(cfg, sweep), folder=folder)
    return task(cfg) if before is None else before["value"]


def _earlier(file: Path, result: dict[str, Any], *, folder: Path) -> dict[str, Any] | None:
    """Return the record of this same job in `file`, if it is completed.

    Raises:
        ConfigError: If the folder holds a job of the same overrides with another configuration.
    """
    before = read_json(file) if file.is_file() else None
    if before is None:
        return None
    _check_same(before, result, folder)
    is_same = before["overrides"] == result["overrides"]
    return before if before["status"] == "completed" and is_same else None


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    is_left = before["status"] == "completed" or _last_checkpoint(folder).is_file()
    is_same = before["overrides"] == now["overrides"]
    if is_left and is_same and before["settings"] != now["settings"]:
        raise ConfigError(
            f"{folder}: its configuration is not that of its earlier attempt, though its overrides "
            "are: a recipe or a default has changed · remove the folder, or give another "
            "hydra.sweep.dir"
        )


def _new_result(cfg: DictConfig, sweep: Path) -> dict[str, Any]:
    hydra, plan = HydraConfig.get(), read_plan(sweep)
    return {
        "job": plan["first"] + int(hydra.job.num),
        "status": "running",
        "overrides": as_mapping(given_overrides(hydra)),
        "settings": settings_digest(cfg),
        "seed": cfg.get("seed"),
        "metrics": {},
        "value": None,
        "seconds": None,
        "commit": plan["commit"],
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ended": None,
        "error": "",
    }


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the job's lock; wait where a job that outlived its sweep is still at work."""
    lock = job_lock(folder)
    try:
        lock.acquire(timeout=0.5)  # others hold it for an instant, to see whether the job lives
    except Timeout:
        print(f"{folder}: another process is at this job · waiting for its end", flush=True)
        lock.acquire(poll_interval=1)
    try:
        yield
    finally:
        lock.release()


def pick_up(cfg: DictConfig, folder: Path) -> None:
    """Let a job that was cut off go on from its `last.ckpt`, or start anew where it left none."""
    last, is_lead = _last_checkpoint(folder), not is_child()
    is_own = goes_on(cfg) and last.is_file()  # else it would start from ckpt_path every time
    if (cfg.ckpt_path is not None and not is_own) or (sweep_folder() is None and not goes_on(cfg)):
        return
    if last.is_file():  # every rank that SLURM started has to go on from there
        cfg.ckpt_path = str(last)
        if is_lead:
            print(f"goes on from {last}", flush=True)
    elif is_lead:
        for name in _APPENDED:
            (folder / name).unlink(missing_ok=True)


def _last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"
