"""How far a sweep is, and how it ended: plain lines that are right in a log file, too."""

import math
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from polylab.config.files import read_json
from polylab.config.paths import path_override
from polylab.config.results import TABLE

PLAN = "sweep.json"
Results = Sequence[dict[str, Any]]


def read_plan(sweep: Path) -> dict[str, Any]:
    """Return what the command that runs this sweep has said of it."""
    return read_json(sweep / PLAN)


def job_number(sweep: str, num: int) -> int:
    """Return the number of the job that is the command's `num`-th, of those in the whole sweep."""
    return int(read_plan(Path(sweep))["first"]) + num


def is_over(result: dict[str, Any], plan: dict[str, Any]) -> bool:
    """Say whether this job is behind us: failures of an earlier attempt at a grid run again."""
    if result["status"] == "failed":
        return not plan["retries"] or result["ended"] >= plan["began"]
    return result["status"] == "completed"


def progress_line(results: Results, plan: dict[str, Any], *, last: dict[str, Any]) -> str:
    """Return how many jobs are done, failed and left, the time, and what came of the `last` one."""
    over = [result for result in results if is_over(result, plan)]
    failed = sum(result["status"] == "failed" for result in over)
    recent = sum(result["ended"] >= plan["began"] for result in over)
    elapsed = time.time() - plan["began"]
    head, rest = f"sweep: {len(over)} jobs", ""
    if plan["jobs"] is not None:
        left = max(0, plan["jobs"] - len(over))
        head = f"sweep: {len(over)} of {plan['jobs']} jobs"
        rest = f", {left} left"
        if left and recent:
            rest += f" · about {_clock(elapsed / recent * left)} to go"
    outcome = f"{last['status']} in {_clock(last['seconds'])}"
    if isinstance(last["value"], float):
        outcome += f", {plan['metric']} {last['value']:.4g}"
    done = f"{len(over) - failed} completed, {failed} failed"
    return f"{head} · {done}{rest} · {_clock(elapsed)} so far · job {last['job']} {outcome}"


def end_lines(results: Results, plan: dict[str, Any], *, sweep: Path) -> Iterator[str]:
    """Yield how the jobs ended, the first failures, the best setting and where the table is."""
    place = sweep.relative_to(Path.cwd()) if sweep.is_relative_to(Path.cwd()) else sweep
    counts = {s: 0 for s in ("completed", "failed", "killed")}
    for result in results:
        counts[result["status"]] = counts.get(result["status"], 0) + 1
    known = len(results) if plan["jobs"] is None else plan["jobs"]
    told = [f"{n} {status}" for status, n in counts.items() if n or status != "killed"]
    yield f"sweep of {known} jobs: {', '.join(told)}"
    bad = bad_jobs(results, plan)
    for result in bad[:5]:
        reason = result["error"] or "its process was killed"
        yield f"  job {result['job']} {result['status']}: {reason} · {place / result['folder']}"
    if len(bad) > 5:
        yield f"  ... and {len(bad) - 5} more"
    if known > sum(is_over(r, plan) and r["status"] == "completed" for r in results):
        given = path_override("hydra.sweep.dir", place)
        yield f"  run the rest with the same command and {given}"
    best = best_setting(results, is_loss=plan["metric"].endswith("loss"))
    if best is not None:
        overrides, value, n = best
        of = f" (mean of {n} seeds)" if n > 1 else ""
        yield f"best {plan['metric']}: {value:.4g}{of} · {overrides}"
    yield f"results of the sweep: {place / TABLE}"


def bad_jobs(results: Results, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the jobs that failed or were killed, of a study only those of this attempt."""
    first = 0 if plan["retries"] else plan["first"]
    return [r for r in results if r["status"] in ("failed", "killed") and r["job"] >= first]


def best_setting(results: Results, *, is_loss: bool) -> tuple[str, float, int] | None:
    """Return the overrides with the best mean value over seeds, the mean, and how many seeds.

    Settings that fewer seeds completed than another one's are left out: their mean is luck.
    """
    given = [result["overrides"] for result in results]
    varied = [
        key
        for key in dict.fromkeys(key for one in given for key in one)
        if key != "seed" and len({one.get(key) for one in given}) > 1
    ]
    values: dict[str, list[float]] = {}
    for result, one in zip(results, given, strict=True):
        value = result["value"]
        if result["status"] == "completed" and isinstance(value, float) and math.isfinite(value):
            setting = " ".join(f"{key}={one[key]}" for key in varied if key in one)
            values.setdefault(setting, []).append(value)
    if len(values) < 2:
        return None
    most = max(map(len, values.values()))
    means = {key: sum(v) / len(v) for key, v in values.items() if len(v) == most}
    best = (min if is_loss else max)(means, key=lambda key: means[key])
    return best, means[best], most


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
