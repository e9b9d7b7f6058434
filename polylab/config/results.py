"""What a sweep leaves behind: one `results.csv` with a row for every job, failed ones included.

Each job writes `JOB/.hydra/result.json`; the table is gathered from these files whenever a job
starts or ends, so that it is right when a later job or the whole sweep dies.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from polylab.config.files import read_json, read_json_lines, write_text

RESULT = "result.json"
TABLE = "results.csv"
HISTORY = "history.jsonl"
# overrides come after the first of these, metrics before the second
FIRST, LAST = (
    ("job", "folder", "status"),
    ("trainable_parameters", "seconds", "commit", "started", "error"),
)
ROUTING = tuple(
    f"routing/{name}"
    for name in (
        *("entropy", "discreteness", "density", "usage_entropy", "effective_skills"),
        *("mutual_information", "recovery"),
    )
)


def job_lock(folder: Path) -> FileLock:
    """Return the lock that a job holds as long as its process lives."""
    return FileLock(folder / ".hydra" / "running.lock")


def given_overrides(hydra: DictConfig | HydraConf) -> list[str]:
    """Return the overrides as they were typed, references in them unresolved."""
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return [str(override) for override in overrides]


def settings_digest(cfg: DictConfig) -> str:
    """Return what changes with any setting but Hydra's own, references unresolved."""
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    settings.pop("hydra", None)
    text = json.dumps(settings, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def as_mapping(overrides: Sequence[str]) -> dict[str, str]:
    """Return `{"adapter.n_skills": "4"}` from `adapter.n_skills=4`, deletions left out."""
    return dict(o.lstrip("+").split("=", 1) for o in overrides if "=" in o)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the scores of a finished run or adaptation, and its last routing statistics."""
    found: dict[str, Any] = {}
    for name in ("metrics.json", "summary.json"):
        if (folder / name).is_file():
            found |= flat_metrics(read_json(folder / name))
    return {**found, **_last_logged(folder / HISTORY)} if found else {}


def flat_metrics(metrics: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"test/exact_match": ...}`: the macro metrics and plain values.

    No single tasks and categories: there may be a thousand.
    """
    if "mean_of_medians" in metrics:  # of an adaptation
        return {prefix.replace("metrics", "test"): metrics["mean_of_medians"]}
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if key in ("tasks", "categories", "task_categories", "neighbours", "intervals"):
            continue
        name = prefix if key == "macro" else f"{prefix}/{key}" if prefix else key
        if isinstance(value, dict):
            flat |= flat_metrics(value, name)
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def _last_logged(path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for values in read_json_lines(path):
        found |= {key: values[key] for key in ROUTING if key in values}
    return found


def result_files(sweep: Path) -> list[Path]:
    """Return the records of the jobs under `sweep`."""
    # two levels: a folder's name may be made of overrides, with a slash
    return [*sweep.glob(f"*/.hydra/{RESULT}"), *sweep.glob(f"*/*/.hydra/{RESULT}")]


def read_results(sweep: Path) -> list[dict[str, Any]]:
    """Return what the jobs under `sweep` have written, in job order, each with its `folder`.

    A job whose process died without a word has the status `killed`.
    """
    results = []
    for file in result_files(sweep):
        folder = file.parent.parent
        result = read_json(file) | {"folder": folder.relative_to(sweep).as_posix()}
        if result["status"] == "running" and not _is_running(folder):
            result = read_json(file) | {"folder": result["folder"]}  # it may just have ended
            result["status"] = {"running": "killed"}.get(result["status"], result["status"])
        results.append(result)
    return sorted(results, key=lambda result: (result["job"], result["folder"]))


def _is_running(folder: Path) -> bool:
    lock = job_lock(folder)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def collect(sweep: Path) -> list[dict[str, Any]]:
    """Write `sweep/results.csv` from the results of its jobs, and return these.

    One process at a time: of two that end together, the later one writes what both have read.
    """
    with FileLock(sweep / ".results.lock"):
        results = read_results(sweep)
        rows = [_row(result) for result in results]
        write_text(sweep / TABLE, _csv(rows, columns=list(_columns(results))))
    return results


def _columns(results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the columns; an override's or a metric's place is that of its first appearance."""
    overrides, metrics = (
        dict.fromkeys(key for result in results for key in result[part])
        for part in ("overrides", "metrics")
    )
    yield from dict.fromkeys(
        [
            *FIRST,
            *(key for key in overrides if key != "seed"),
            "seed",
            *(key for key in metrics if key not in LAST),
            *LAST,
        ]
    )


def _row(result: dict[str, Any]) -> dict[str, Any]:
    own = {key: result.get(key, "") for key in (*FIRST, "seed", *LAST)}
    metrics = result["metrics"]
    own["trainable_parameters"] = metrics.get("trainable_parameters", "")
    return {**metrics, **result["overrides"], **own}


def _csv(rows: list[dict[str, Any]], *, columns: list[str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
