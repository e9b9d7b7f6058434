"""The table of a sweep."""

import csv
import threading
from pathlib import Path
from typing import Any

from polylab.config.files import write_json
from polylab.config.progress import best_setting
from polylab.config.results import as_mapping, collect, flat_metrics, read_metrics

METRICS = {
    "val": {"loss": 2.0, "macro": {"exact_match": 0.5}, "tasks": {"copy": {"exact_match": 0.5}}},
    "test": {"loss": 3.0, "macro": {"exact_match": 0.25}, "intervals": {"level": 0.95},
             "categories": {"sums": {"exact_match": 0.25}}},
    "recovery": {"aligned": 0.75, "unidentifiable": ["a"]},
    "checkpoint": "best",
    "task_categories": {"copy": ["sums"]},
}  # fmt: skip


def test_metrics_are_flat_and_without_single_tasks() -> None:
    assert flat_metrics(METRICS) == {
        "val/loss": 2.0,
        "val/exact_match": 0.5,
        "test/loss": 3.0,
        "test/exact_match": 0.25,
        "recovery/aligned": 0.75,
        "checkpoint": "best",
    }


def test_an_adaptation_counts_by_the_mean_of_its_medians() -> None:
    part = {"tasks": {"a": {"median": 1.0}}, "mean": {"median": 0.5}, "mean_of_medians": 0.75}
    summary = {"method": "z", "seeds": [0, 1], "metrics": {"exact_match": part}}
    assert flat_metrics(summary) == {"method": "z", "test/exact_match": 0.75}


def test_the_last_routing_statistics_are_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}
    lines = [
        '{"step": 1, "routing/entropy": 1.0, "routing/density": 0.5}',
        '{"routing/entropy": 0.75}',
    ]
    (tmp_path / "history.jsonl").write_text("\n".join([*lines, '{"rou']))
    assert read_metrics(tmp_path) == {}  # of an unfinished run
    write_json(tmp_path / "metrics.json", {"seconds": 3})
    expected = {"seconds": 3, "routing/entropy": 0.75, "routing/density": 0.5}
    assert read_metrics(tmp_path) == expected


def test_overrides_by_name() -> None:
    assert as_mapping(["a.b=c=d", "+e=[1,2]", "~gone"]) == {"a.b": "c=d", "e": "[1,2]"}


def _record(sweep: Path, job: int, *, status: str = "completed", **other: Any) -> None:
    result = {
        "job": job, "status": status, "overrides": {"seed": str(job), "adapter.x": "a=b"},
        "seed": job, "metrics": {"test/loss": 1.5, "trainable_parameters": 7, "seconds": 1},
        "value": 0.5, "seconds": 9.0, "commit": "c0", "started": "now", "error": "",
    }  # fmt: skip
    write_json(sweep / str(job) / ".hydra" / "result.json", result | other | {"status": status})


def _rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_every_job(tmp_path: Path) -> None:
    _record(tmp_path, 10)
    _record(tmp_path, 2, status="failed", metrics={}, error="adapter: no")
    collect(tmp_path)
    failed, fine = _rows(tmp_path)
    assert list(fine) == [
        "job", "folder", "status", "adapter.x", "seed", "test/loss", "trainable_parameters",
        "seconds", "commit", "started", "error",
    ]  # fmt: skip
    assert list(fine.values()) == [
        "10", "10", "completed", "a=b", "10", "1.5", "7", "9.0", "c0", "now", "",
    ]  # fmt: skip
    assert (failed["job"], failed["error"], failed["test/loss"]) == ("2", "adapter: no", "")


def test_jobs_that_end_together_lose_no_row(tmp_path: Path) -> None:
    def end(job: int) -> None:
        _record(tmp_path, job)
        collect(tmp_path)

    threads = [threading.Thread(target=end, args=(job,)) for job in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["job"] for row in _rows(tmp_path)] == [str(job) for job in range(12)]


def test_the_best_setting_is_a_mean_over_all_seeds() -> None:
    values = {("4", "0"): 0.5, ("4", "1"): 0.75, ("8", "0"): 0.9, ("2", "0"): 0.5, ("2", "1"): 0.5}
    results = [
        {"status": "completed", "value": v, "overrides": {"n": n, "seed": s, "fixed": "1"}}
        for (n, s), v in values.items()
    ]
    results.append({"status": "failed", "value": None, "overrides": {"n": "8", "seed": "1"}})
    for one in results:
        one["overrides"]["fixed"] = "1"
    assert best_setting(results, is_loss=False) == ("n=4", 0.625, 2)
    assert best_setting(results, is_loss=True) == ("n=2", 0.5, 2)
    assert best_setting(results[:2], is_loss=True) is None  # nothing to choose
