"""The table of results and what it comes to."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from polylab.adaptation.table import Results, summarise, summary_table

SCORES = {"long_name_of_a_task": [0.1, 0.9, 0.4, 0.2], "b": [0.5, 0.3, 0.7, 0.6]}
SEEDS = [7, 0, 3, 9]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two tasks with four seeds, and a row of a seed that is not asked for."""
    found = Results(tmp_path / "results.csv")
    order = [(task, seed) for task in SCORES for seed in SEEDS]
    for task, seed in [*reversed(order), ("b", 1)]:
        score = 99.0 if seed == 1 else SCORES[task][SEEDS.index(seed)]
        row = {"task": task, "method": "z", "shots": 4, "seed": seed, "exact_match": score}
        found.add((task, seed), {**row, "parameters": 5, "seconds": 1.5}, order=order)
    return found


def test_medians_over_seeds_and_means_over_tasks(results: Results) -> None:
    part = summarise(results, tasks=[*SCORES], seeds=SEEDS)["exact_match"]
    first, second = part["tasks"].values()
    # of 0.1 0.2 0.4 0.9 and 0.3 0.5 0.6 0.7, between two values by distance
    assert [first[k] for k in ("q25", "median", "q75")] == pytest.approx([0.175, 0.3, 0.525])
    assert [second[k] for k in ("q25", "median", "q75")] == pytest.approx([0.45, 0.55, 0.625])
    assert first["std"] == pytest.approx((0.38 / 3) ** 0.5)
    assert first["seeds"] == 4
    # seed by seed: 0.3 0.6 0.55 0.4
    mean = part["mean"]
    assert [mean[k] for k in ("q25", "median", "q75")] == pytest.approx([0.375, 0.475, 0.5625])
    assert part["mean_of_medians"] == pytest.approx((0.3 + 0.55) / 2)


def test_one_seed_has_no_spread(results: Results) -> None:
    part = summarise(results, tasks=["b"], seeds=[3])["exact_match"]
    assert part["mean"] == {"median": 0.7, "q25": 0.7, "q75": 0.7, "std": None, "seeds": 1}


def test_the_file_has_the_rows_in_order_and_is_read_back(results: Results) -> None:
    with results.path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    units = [(row["task"], int(row["seed"])) for row in rows]
    assert units == [(task, seed) for task in SCORES for seed in SEEDS] + [("b", 1)]
    columns = ["task", "method", "shots", "seed", "exact_match", "parameters", "seconds"]
    assert [*rows[0]] == columns
    assert Results.read(results.path).rows == results.rows


def test_the_table_shows_the_interval_and_whole_names(results: Results) -> None:
    summary = summarise(results, tasks=[*SCORES], seeds=SEEDS)
    for width in (80, 24):
        text = io.StringIO()
        Console(file=text, width=width).print(summary_table(summary, title="t"))
        rows = [line.split("│") for line in text.getvalue().splitlines() if line[0] == "│"]
        assert "long_name_of_a_task" in "".join(row[1].strip() for row in rows)
        if width == 80:
            cells = [row[2].strip() for row in rows]
            assert cells == ["0.300 [0.175, 0.525]", "0.550 [0.450, 0.625]", "0.475 [0.375, 0.562]"]
