"""The run's own record of every logged number."""

import json
from pathlib import Path

import torch

from polylab.config.files import read_json_lines
from polylab.training import HistoryLogger


def test_a_line_for_every_call(tmp_path: Path) -> None:
    log = HistoryLogger(tmp_path / "run")
    log.log_metrics({"train/loss": torch.tensor(1.5), "epoch": 0, "picture": object()}, step=10)
    log.log_metrics({"val/loss": 2, "val/nan": float("nan"), "val/inf": float("inf")}, step=20)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first.pop("seconds") == 0 <= second.pop("seconds")
    assert first == {"step": 10, "train/loss": 1.5}
    assert second == {"step": 20, "val/loss": 2.0}
    assert [line["step"] for line in read_json_lines(tmp_path / "run" / "history.jsonl")] == [
        10,
        20,
    ]


def test_nothing_to_write_makes_no_file(tmp_path: Path) -> None:
    HistoryLogger(tmp_path / "run").log_metrics({"epoch": 1, "picture": "png"}, step=1)
    assert not (tmp_path / "run").exists()
    assert read_json_lines(tmp_path / "run" / "history.jsonl") == []


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    HistoryLogger(tmp_path).log_metrics({"a": 1.0}, step=1)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 2, "a": 2.')  # killed here
    assert [line["step"] for line in read_json_lines(tmp_path / "history.jsonl")] == [1]
    HistoryLogger(tmp_path).log_metrics({"a": 3.0}, step=3)  # the run goes on
    assert [line["step"] for line in read_json_lines(tmp_path / "history.jsonl")] == [1, 3]
