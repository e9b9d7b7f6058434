"""`bench.py growth`, as small as it can be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "experiments/speed/bench.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("growth") / "rows.json"
    numbers = ["--tasks", "2,200", "--skills", "3,4", "--n-splits", "2"]
    small = ["--shapes", "t5-tiny", "--device", "cpu", "--dtype", "float32", "--rounds", "2"]
    command = [sys.executable, BENCH, "growth", *small, *numbers, "--save", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())["rows"]


def test_every_size_is_measured_under_both_optimizers_and_mope_by_both_levels(rows):
    sizes = [(row["contender"], row["tasks"], row["skills"], row["router"]) for row in rows]
    by_task = [
        ("poly", tasks, skills, router)
        for skills in (3, 4)
        for tasks in (2, 200)
        for router in ("dense", "lazy")
    ]
    assert sizes == [*by_task, ("mope", None, 3, "dense"), ("mope-tokens", None, 3, "dense")]
    assert all(row["ratio"] > 0 and row["step ms"] > 0 for row in rows)
    assert rows[-2]["ratio"] == rows[0]["of dense"] == 1.0


def test_the_parameters_of_routers_are_counted_apart(rows):
    counts = {(r["tasks"], r["skills"], r["router"]): r for r in rows if r["contender"] == "poly"}
    few, many = counts[2, 3, "lazy"], counts[200, 3, "lazy"]
    assert few["skills M"] == many["skills M"] > 0
    n_layers = 2 * 7 + 2 * 11  # T5's encoder and decoder blocks, with all linear layers of each
    assert many["router M"] == round(n_layers * 200 * 2 * 3 / 1e6, 3)
    assert few["router M"] == 0.0  # of a million
