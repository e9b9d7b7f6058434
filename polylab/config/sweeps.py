"""A whole sweep: what it consists of, whether it may go on in its folder, and how it ended."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polylab.config.environment import commit_of
from polylab.config.errors import ConfigError, explain, user_mistakes
from polylab.config.files import write_json
from polylab.config.progress import PLAN, bad_jobs, end_lines, is_over, progress_line, read_plan
from polylab.config.results import (
    collect,
    given_overrides,
    read_results,
    result_files,
    settings_digest,
)
from polylab.config.studies import check_search_space, continue_study, is_study


class SweepResults(Callback):
    """Opens the sweep's folder before its first job; `closing_sweep` says how it ended."""

    opened: ClassVar["OpenSweep | None"] = None  # that of this process

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a folder that holds another sweep, count the jobs, and go on where it stopped.

        Raises:
            SystemExit: With code 1 after one line; Hydra would turn an exception into a warning.
        """
        try:
            SweepResults.opened = OpenSweep(config)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            print(explain(error), file=sys.stderr)
            raise SystemExit(1) from None


@contextmanager
def closing_sweep() -> Iterator[None]:
    """Print how the sweep that ran inside ended, whatever happened.

    Hydra's own last callback is not called after a failed job.

    Raises:
        SystemExit: With code 1 if a job failed, whatever the sweeper thought of it.
    """
    try:
        yield
    finally:
        sweep, SweepResults.opened = SweepResults.opened, None
        is_fine = sweep is None or sweep.close()
    if not is_fine:
        raise SystemExit(1)


class OpenSweep:
    """A sweep that this process leads; its plan lies in `SWEEP/sweep.json` for all jobs to read.

    Raises:
        ConfigError: If the folder holds another sweep, cannot be written to or locked, another
            process leads this one, or it is a study that has nothing to choose.
    """

    def __init__(self, config: DictConfig) -> None:
        if is_study(config):
            check_search_space(config, _parse_overrides(config))
        self.folder = Path(str(config.hydra.sweep.dir)).absolute()
        self._lock = _lead(self.folder)
        try:
            self.plan = _plan(config, self.folder)
        except BaseException:
            self._lock.release()
            raise
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if "submitit" in str(config.hydra.launcher._target_):  # its jobs print into their own logs
            self._watcher.start()

    def close(self) -> bool:
        """Gather the table, print how the jobs ended, and say whether none failed."""
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        results = collect(self.folder)
        for line in end_lines(results, self.plan, sweep=self.folder):
            print(line, flush=True)
        self._lock.release()
        return not bad_jobs(results, self.plan)

    def _watch(self, every: float = 1.0) -> None:
        """Print a line for each job that ends elsewhere."""
        told = {r["job"] for r in read_results(self.folder) if is_over(r, self.plan)}
        while True:
            is_last = self._ended.wait(every)
            results = read_results(self.folder)
            for result in results:
                if result["job"] not in told and is_over(result, self.plan):
                    told.add(result["job"])
                    print(progress_line(results, self.plan, last=result), flush=True)
            if is_last:
                return


def _lead(folder: Path) -> FileLock:
    """The lock of the sweep's folder, held."""
    given = f"hydra.sweep.dir={folder}"
    lock = FileLock(folder / ".sweep.lock")
    try:
        with user_mistakes(given):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except NotImplementedError:  # what filelock raises on some network disks
        raise ConfigError(
            f"{given}: its disk has no file locks (flock), which keep jobs apart · give a folder "
            "on another disk"
        ) from None
    except ConfigError as error:
        if not isinstance(error.__cause__, Timeout):
            raise
        raise ConfigError(f"{given}: another process runs this sweep · wait for its end") from None
    return lock


def _plan(config: DictConfig, folder: Path) -> dict[str, Any]:
    plan = {**_identity(config), "first": 0, "retries": not is_study(config)}
    if (folder / PLAN).is_file():
        _check_same(read_plan(folder), plan, folder)
        if is_study(config):
            plan["first"] = continue_study(config, read_results(folder))
    elif result_files(folder):
        raise ConfigError(f"hydra.sweep.dir={folder} holds jobs without {PLAN} · give another one")
    plan |= {
        "jobs": _count_jobs(config, done=_n_done(folder) if plan["first"] else 0),
        "metric": str(OmegaConf.select(config, "optimized_metric") or ""),
        "commit": commit_of(Path.cwd()) or "",
        "began": time.time(),
    }
    write_json(folder / PLAN, plan)
    return plan


def _identity(config: DictConfig) -> dict[str, Any]:
    """What makes two commands the same sweep."""
    params = OmegaConf.select(config, "hydra.sweeper.params")
    return {
        "overrides": given_overrides(config.hydra),
        "sweeper": str(config.hydra.sweeper._target_),
        "params": OmegaConf.to_container(params, resolve=True) if params else {},
        "settings": settings_digest(config),  # those that the jobs have in common
    }


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    for key in ("sweeper", "overrides", "params"):
        if old[key] != new[key]:
            raise ConfigError(
                f"hydra.sweep.dir={folder} holds another sweep, with {key} {_words(old[key])}, not "
                f"{_words(new[key])} · give the same, in the same order, or another folder"
            )
    if old["settings"] != new["settings"]:
        raise ConfigError(
            f"hydra.sweep.dir={folder} holds another sweep: its overrides are these, its "
            "configuration was another one, so a recipe or a default has changed · give another "
            "folder"
        )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{key}={text}" for key, text in value.items()]
    return " ".join(value) if isinstance(value, list) else value


def _count_jobs(config: DictConfig, *, done: int) -> int | None:
    """Return how many jobs the sweep has in all; None for sweepers that do not say."""
    sweeper = config.hydra.sweeper
    if is_study(config):
        is_grid = "grid" in str(OmegaConf.select(sweeper, "sampler._target_")).lower()
        return None if is_grid else done + int(sweeper.n_trials)
    if not str(sweeper._target_).endswith(BasicSweeper.__name__):
        return None
    return len(BasicSweeper.split_arguments(_parse_overrides(config), None)[0])


def _parse_overrides(config: DictConfig) -> list[Override]:
    """Return those of the search space, and then those of the command line."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    given = [f"{key}={value}" for key, value in params.items()] + given_overrides(config.hydra)
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(given)


def _n_done(folder: Path) -> int:
    return sum(r["status"] in ("completed", "failed") for r in read_results(folder))
