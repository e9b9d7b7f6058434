"""`skills.csv`, to the letter."""

import csv

import torch

from polylab.callbacks.allocations import Allocations
from polylab.callbacks.skill_table import COLUMNS, _write_csv, allocation_rows

WEIGHTS = {
    "encoder.q": torch.tensor([[[0.25, 0.75], [1.0, 0.0]]]).repeat(3, 1, 1),
    "decoder.v": torch.tensor([[[1 / 3, 2 / 3]]]).repeat(3, 1, 1),
}
NAMES = ["copy", 'say "a", b', "last"]


def test_rows_run_through_layers_tasks_heads_and_skills():
    gates = {"encoder.q": 2 * WEIGHTS["encoder.q"]}
    rows = [*allocation_rows(Allocations(WEIGHTS, gates, [0, 1, 2]), NAMES)]
    assert len(rows) == 3 * 2 * 2 + 3 * 2
    assert rows[:2] == [
        ("encoder.q", 0, "copy", 0, 0.25, 0.5),
        ("encoder.q", 0, "copy", 1, 0.75, 1.5),
    ]
    assert rows[2][:4] == ("encoder.q", 1, "copy", 0)
    assert rows[4][:4] == ("encoder.q", 0, 'say "a", b', 0)
    assert rows[-1] == ("decoder.v", 0, "last", 1, torch.tensor(2 / 3).item(), None)
    only = [*allocation_rows(Allocations(WEIGHTS, {}, [0, 1, 2]), NAMES, layers=["decoder.v"])]
    assert only == rows[12:]


def test_the_file_has_six_digits_and_empty_cells(tmp_path):
    seen = Allocations(WEIGHTS, {}, [0, 1, 2])
    _write_csv(tmp_path / "skills.csv", allocation_rows(seen, NAMES))
    lines = (tmp_path / "skills.csv").read_bytes().decode().split("\n")
    assert lines[0] == "layer,split,task,skill,weight,gate"
    assert lines[4] == "encoder.q,1,copy,1,0,"
    assert lines[-3] == "decoder.v,0,last,0,0.333333,"
    assert lines[-1] == ""
    with (tmp_path / "skills.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == COLUMNS
    assert {row[2] for row in rows[1:]} == {*NAMES}
