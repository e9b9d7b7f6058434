"""The table of scores: 80 columns whatever the names, the metrics and the number of tasks."""

from typing import Any

import pytest

from polylab.terminal.table import task_table

NAMES = ["exact_match", "rouge_l", "token_f1", "rank_accuracy"]


def _result(n_tasks: int, metrics: list[str], **more: Any) -> dict[str, Any]:
    tasks = {
        f"task{i:04d}_a_long_name_of_a_dataset_{i * 7 % 97:03d}_and_its_template_{i:04d}": {
            "loss": 3.0 - i / n_tasks,
            **{name: (i * 37 % n_tasks) / n_tasks for name in metrics},
        }
        for i in range(n_tasks)
    }
    return {"loss": 1.5, "macro": dict.fromkeys(metrics, 0.5), "tasks": tasks, **more}


@pytest.mark.parametrize(("n_tasks", "n_metrics"), [(1, 1), (6, 4), (30, 4), (1600, 4), (6, 12)])
def test_eighty_columns(n_tasks: int, n_metrics: int) -> None:
    metrics = [f"{name}_{i}" if i else name for i in range(3) for name in NAMES][:n_metrics]
    lines = task_table(_result(n_tasks, metrics), title="test metrics by task").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 60
    assert all(line.isascii() for line in lines[: 4 + n_tasks])
    assert sum(line.startswith("task") and line[4].isdigit() for line in lines) == min(
        n_tasks, 20 if n_tasks > 50 else 30
    )


def test_what_does_not_fit_is_named() -> None:
    metrics = [f"metric_number_{i}" for i in range(5)]
    lines = task_table(_result(3, metrics), title="t").splitlines()
    assert lines[2].split()[1:] == metrics[:3]
    assert lines[-1] == "not shown: metric_number_3 · metric_number_4 · loss"


def test_of_many_tasks_the_worst_and_the_best() -> None:
    result = _result(1600, ["exact_match"])
    lines = task_table(result, title="t").splitlines()
    scores = [
        float(line.split()[1]) for line in lines if line.startswith("task") and line[4].isdigit()
    ]
    every = sorted(round(task["exact_match"], 3) for task in result["tasks"].values())
    assert scores == [*every[:10], *every[-10:]]
    assert "... 1,580 more, between the worst and the best by exact_match" in lines
    by_loss = {"loss": 1.0, "tasks": {k: {"loss": v["loss"]} for k, v in result["tasks"].items()}}
    losses = [float(li.split()[1]) for li in task_table(by_loss, title="t").splitlines()[4:24]
              if li.startswith("task")]  # fmt: skip
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(3.0)


def test_tasks_that_the_metric_is_not_of_are_counted_too() -> None:
    tasks = {f"t{i}": {"loss": 1.0} | ({"rank": i / 5} if i < 5 else {}) for i in range(60)}
    lines = task_table({"macro": {"rank": 0.4}, "tasks": tasks}, title="t").splitlines()
    assert [line.split()[0] for line in lines[4:9]] == ["t0", "t1", "t2", "t3", "t4"]
    assert "... 55 more, between the worst and the best by rank" in lines


def test_the_interval_of_the_means() -> None:
    intervals = {"level": 0.95, "macro": {"exact_match": [0.25, 0.75]}}
    lines = task_table(_result(2, ["exact_match"], intervals=intervals), title="t").splitlines()
    assert [line.split() for line in lines[-3:]] == [
        ["mean", "over", "tasks", "0.500", "1.500"],
        ["95%", "from", "0.250", "-"],
        ["to", "0.750", "-"],
    ]
