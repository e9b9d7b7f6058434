"""`mix.csv`: what of each task a run was to see, and has seen."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polylab.training import PolyModule

QUIET = ["callbacks.figures=null", "callbacks.routing=null", "callbacks.table=null"]
TASKS = ("copy", "first", "upper")


def _mix(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "mix.csv").open() as file:
        return {row["task"]: row for row in csv.DictReader(file)}


def _seen(folder: Path) -> int:
    return sum(int(row["examples_seen"]) for row in _mix(folder).values())


def _floats(folder: Path, column: str) -> list[float]:
    return [float(row[column]) for row in _mix(folder).values()]


@pytest.mark.parametrize("weights", ["data.weights={upper: 2}", "data.weights.upper=2"])
def test_shares_and_counts_of_a_run(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path, weights: str
) -> None:
    """Five steps of two micro-batches of 3 rows, with a log line every third step."""
    done = run_here(
        *small, "trainer.max_steps=5", "trainer.accumulate_grad_batches=2", "logger=none",
        "trainer.log_every_n_steps=3", "callbacks=none", "data.temperature=2", "data.cap=25",
        weights, cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    mix = _mix(done.folder)
    assert [(name, row["id"], row["source"]) for name, row in mix.items()] == [
        ("copy", "0", ""), ("first", "1", ""), ("upper", "2", ""),
    ]  # fmt: skip
    sizes = {name: int(row["train_examples"]) for name, row in mix.items()}
    weighted = [
        min(size, 25) ** 0.5 * (2 if name == "upper" else 1) for name, size in sizes.items()
    ]
    wanted = [weight / sum(weighted) for weight in weighted]
    assert _floats(done.folder, "target_share") == pytest.approx(wanted, abs=1e-5)
    assert _seen(done.folder) == 5 * 6
    for row in mix.values():
        count = int(row["examples_seen"])
        assert float(row["realised_share"]) == pytest.approx(count / 30, abs=1e-5)
        assert float(row["passes"]) == pytest.approx(count / int(row["train_examples"]), abs=1e-5)


@pytest.mark.parametrize("packing", ["false", "true"])
def test_batches_of_one_task(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path, packing: str
) -> None:
    done = run_here(
        *small, "data.tasks_per_batch=1", "logger=csv", "callbacks=none", f"data.packing={packing}",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    counts = [int(row["examples_seen"]) for row in _mix(done.folder).values()]
    assert sum(counts) == 4 * 6
    assert not any(count % 6 for count in counts)
    with (done.folder / "metrics.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["train/loss"]]
    assert len(lines) == 4
    for line in lines:  # the loss of every task in the step
        assert sum(bool(line.get(f"train/{task}/loss")) for task in TASKS) == 1


def test_sources_of_a_combined_one(
    small: list[str], task_folder: Path, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    kept = [o for o in small if not o.startswith(("data=", "data.path", "data.source"))]
    done = run_here(
        *kept, "data=combined", "data.prefix=true", "logger=none", "callbacks=none",
        f"data.sources.a={{data: jsonl, path: {task_folder}, weight: 3}}",
        f"data.sources.b={{data: jsonl, path: {task_folder}}}", "trainer.max_steps=2", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = _mix(done.folder).values()
    assert [row["source"] for row in rows] == ["a", "a", "a", "b", "b", "b"]
    of_a = sum(float(row["target_share"]) for row in rows if row["source"] == "a")
    assert of_a == pytest.approx(0.75, abs=1e-5)


def test_a_continued_run_counts_from_its_start(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    """Also one that was over."""
    given = [*small, *QUIET, "logger=none", "trainer.log_every_n_steps=3"]
    done = run_here(*given, "trainer.max_steps=2", f"hydra.run.dir={tmp_path / 'a'}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert _seen(tmp_path / "a") == 12
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    for name, steps in (("b", 2), ("c", 5)):
        done = run_here(
            *given, f"trainer.max_steps={steps}", f"ckpt_path={last}",
            f"hydra.run.dir={tmp_path / name}", cwd=tmp_path,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert _seen(tmp_path / name) == 6 * steps


def test_a_run_that_fails_leaves_what_it_has_seen(
    small: list[str],
    run_here: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(module: PolyModule, *_: Any) -> None:
        if module.trainer.global_step == 3:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(PolyModule, "on_train_batch_start", fail)
    given = [*small, "logger=none", "callbacks=none", "trainer.log_every_n_steps=50"]
    with pytest.raises(RuntimeError, match="out of memory"):
        run_here(*given, cwd=tmp_path)
    (folder,) = (path.parent for path in tmp_path.glob("runs/**/.hydra"))
    assert _seen(folder) == 18
    assert not (folder / "metrics.json").exists()
