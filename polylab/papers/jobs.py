"""What a sweep's folder has to say: its completed jobs, what varies, scores, adaptations."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.files import read_json

__all__ = ["Job", "read_adaptations", "read_jobs"]

_ADAPTATION = ["task", "method", "shots", "seed"]  # how such a table begins
# overrides that change no result
_OWN = ("logger", "ckpt_path", "hydra", "callbacks", "search", "tags")


@dataclass(frozen=True)
class Job:
    """One completed job.

    Args:
        folder: Of the run.
        columns: Of its row in `results.csv`.
        setting: Those of its overrides that vary in the sweep, without the seed.
    """

    folder: Path
    columns: dict[str, str]
    setting: str

    @property
    def seed(self) -> str:
        """As in the table."""
        return self.columns.get("seed", "")

    def number(self, column: str) -> float:
        """The number in a column.

        Raises:
            ConfigError: If there is none.
        """
        text = self.columns.get(column, "")
        if text == "":
            known = sorted(name for name in self.columns if "/" in name)
            raise ConfigError(
                f"{self.folder}: its row of results.csv has no {column} · there are "
                f"{', '.join(known) or 'no metrics'}"
            )
        return float(text)

    def config(self, key: str) -> Any:
        """A value of its configuration, None where there is no such key.

        Raises:
            ConfigError: If the file cannot be read.
        """
        return OmegaConf.select(self._config, key)

    @cached_property
    def _config(self) -> Any:
        with user_mistakes(str(self.folder / "config.yaml")):
            return OmegaConf.load(self.folder / "config.yaml")

    def task_scores(self, metric: str) -> dict[str, float]:
        """The score of every task that has this metric, of the test.

        Raises:
            ConfigError: If no task has it, or the run's `metrics.json` is missing or damaged.
        """
        with user_mistakes(str(self.folder / "metrics.json")):
            tasks = read_json(self.folder / "metrics.json").get("test", {}).get("tasks", {})
        found = {name: one[metric] for name, one in tasks.items() if one.get(metric) is not None}
        if not found:
            known = sorted({name for one in tasks.values() for name in one})
            raise ConfigError(
                f"metric={metric}: no task of {self.folder} has it · there are "
                f"{', '.join(known) or 'no tasks'}"
            )
        return found


def read_jobs(sweep: Path) -> list[Job]:
    """The completed jobs of a sweep, in the order of its table.

    Raises:
        ConfigError: If the folder is no sweep of runs, or no job is completed.
    """
    rows = _table(sweep)
    if rows and "status" not in rows[0]:
        raise ConfigError(f"run={sweep} is no sweep: its results.csv has no column status")
    done = [row for row in rows if row["status"] == "completed"]
    if not done:
        raise ConfigError(f"run={sweep}: no job of {len(rows)} is completed · finish the sweep")
    varied = [name for name in _overrides(list(done[0])) if len({row[name] for row in done}) > 1]
    return [
        Job(
            sweep / row["folder"],
            row,
            " ".join(f"{name}={row[name]}" for name in varied) or "the only setting",
        )
        for row in done
    ]


def _overrides(columns: Sequence[str]) -> Iterator[str]:
    """The columns between `status` and `seed`, which are the overrides."""
    for name in columns[columns.index("status") + 1 : columns.index("seed")]:
        if name.split(".")[0] not in _OWN:
            yield name


def read_adaptations(folder: Path) -> list[dict[str, str]]:
    """The rows of an adaptation, or of all in a sweep of `polylab.adapt`.

    Raises:
        ConfigError: If there are none.
    """
    rows = _table(folder)
    if _is_adaptation(rows):
        return rows
    found = []
    for row in rows:
        place = folder / row.get("folder", "")
        if row.get("status") == "completed" and (place / "summary.json").is_file():
            found += _table(place)
    if not found or not _is_adaptation(found):
        raise ConfigError(
            f"run={folder} holds no adaptation · make some with python -m polylab.adapt -m "
            "run=RUN_DIR adapt=poly,z,mu,lora"
        )
    return found


def _is_adaptation(rows: list[dict[str, str]]) -> bool:
    return bool(rows) and list(rows[0])[: len(_ADAPTATION)] == _ADAPTATION


def _table(folder: Path) -> list[dict[str, str]]:
    path = folder / "results.csv"
    if not path.is_file():
        raise ConfigError(f"run={folder}: there is no results.csv in it · give the sweep's folder")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
