"""`skills.csv`, to the letter."""

import csv

import pytest
import torch

from polylab.callbacks.allocations import Allocations
from polylab.callbacks.skill_table import COLUMNS, _write_csv, allocation_rows, choose_rows

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
    _write_csv(tmp_path / "skills.csv", seen, NAMES)
    lines = (tmp_path / "skills.csv").read_bytes().decode().split("\n")
    assert lines[0] == "layer,split,task,skill,weight,gate"
    assert lines[4] == "encoder.q,1,copy,1,0,"
    assert lines[-3] == "decoder.v,0,last,0,0.333333,"
    assert lines[-1] == ""
    with (tmp_path / "skills.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == COLUMNS
    assert {row[2] for row in rows[1:]} == {*NAMES}


@pytest.mark.parametrize("gated", [(), ("encoder.q",), ("encoder.q", 'l"%s", 2')])
def test_the_file_is_what_a_writer_of_rows_makes(tmp_path, gated):
    draw = torch.Generator().manual_seed(5)
    scale = 10.0 ** torch.arange(-9, 0)  # also such numbers as 1.2e-09
    layers = {name: torch.rand(4, 2, 9, generator=draw) * scale for name in ("encoder.q", "x")}
    layers['l"%s", 2'] = torch.rand(4, 3, 9, generator=draw)
    names = ["copy", 'say "a", 100%d', " two\nlines", ""]
    seen = Allocations(layers, {name: 2 * layers[name] for name in gated}, [0, 1, 2, 3])
    _write_csv(tmp_path / "skills.csv", seen, names)
    with (tmp_path / "slow.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for *cell, weight, gate in allocation_rows(seen, names):
            writer.writerow([*cell, f"{weight:.6g}", "" if gate is None else f"{gate:.6g}"])
    assert (tmp_path / "skills.csv").read_bytes() == (tmp_path / "slow.csv").read_bytes()


@pytest.mark.parametrize(
    ("n_tasks", "n_splits", "n_layers", "most", "kept"),
    [
        (1600, 1, 500, 50_000, (3, 1600)),
        (1600, 64, 500, 50_000, (1, 97)),  # not even one layer: 819,200 rows
        (5, 2, 3, 50_000, (3, 5)),
        (5, 2, 3, 1, (1, 1)),  # a row is never cut
    ],
)
def test_the_table_is_bounded(n_tasks, n_splits, n_layers, most, kept):
    weights = torch.zeros(n_tasks, n_splits, 8)
    seen = Allocations({f"l.{i}": weights for i in range(n_layers)}, {}, [*range(n_tasks)])
    layers, tasks = choose_rows(seen, most)
    assert (len(layers), len(tasks)) == kept
    rows = [*allocation_rows(seen, [f"t{i}" for i in range(n_tasks)], layers=layers, tasks=tasks)]
    assert len(rows) == kept[0] * kept[1] * n_splits * 8 <= max(most, n_splits * 8)
    if kept[1] > 1:
        assert {rows[0][2], rows[-1][2]} == {"t0", f"t{n_tasks - 1}"}
    if kept[0] > 1:
        assert {rows[0][0], rows[-1][0]} == {"l.0", f"l.{n_layers - 1}"}


def test_chosen_tasks_keep_their_names_and_gates():
    gates = {"encoder.q": torch.arange(12.0).view(3, 2, 2)}
    rows = [*allocation_rows(Allocations(WEIGHTS, gates, [0, 1, 2]), NAMES, tasks=[0, 2])]
    assert [row[2] for row in rows] == [NAMES[0]] * 4 + [NAMES[2]] * 4 + [NAMES[0]] * 2 + [
        NAMES[2]
    ] * 2
    assert [row[5] for row in rows[:8]] == [0, 1, 2, 3, 8, 9, 10, 11]
