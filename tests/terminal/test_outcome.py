"""What a finished run prints."""

import pytest
from polylab.config.outcome import print_table, split_results, summary_line

METRICS = {
    "test": {
        "macro": {"exact_match": 0.5, "rouge_l": None},
        "tasks": {"copy": {"exact_match": 1.0}, "upper": {"exact_match": 0.0, "rouge_l": 0.25}},
    },
    "recovery": {"aligned": 0.875},
    "checkpoint": "best",
    "seconds": 12.3,
}


def test_summary() -> None:
    expected = "test, best weights: exact_match 0.500 · rouge_l - · recovery 0.875 · 12 s"
    assert summary_line(METRICS) == expected


def test_summary_without_a_test() -> None:
    metrics = {"val": {"macro": {"accuracy": 1}}, "checkpoint": "last", "seconds": 3.0}
    assert summary_line(metrics) == "val, last weights: accuracy 1 · 3 s"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(METRICS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [[word for word in line if word.strip("│┃")] for line in lines]
    assert ["copy", "1.000", "-"] in rows
    assert ["all", "0.500", "-"] in rows


def test_no_table_without_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"val": {}})
    assert capsys.readouterr().out == ""


def test_results_of_a_module_that_keeps_none() -> None:
    values = {"val/loss": 2.0, "val/exact_match": 0.5, "test/loss": 1.0, "lr": 3.0}
    assert split_results(values, "val") == {"loss": 2.0, "macro": {"exact_match": 0.5}}
    assert split_results(values, "other") == {"macro": {}}
