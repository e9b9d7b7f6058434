"""Runs on tables in every form, a few steps each."""

import csv
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

QUICK = ["callbacks=none", "logger=none", "trainer.max_steps=2"]


@pytest.fixture(scope="module")
def rows(task_folder: Path) -> list[dict[str, str]]:
    """The rows of three tasks, with the names that FLAN gives to columns."""
    return [
        {"source": row["input"], "target": row["target"], "task_name": path.stem}
        for path in sorted(task_folder.glob("*.jsonl"))
        for row in map(json.loads, path.read_text().splitlines())
    ]


def _csv(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    with (folder / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "target", "task_name"])
        writer.writerows(row.values() for row in rows)
    return ["data=csv", f"data.path={folder}", "data.columns.input=text"]


def _parquet(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    for name in ("copy", "first", "upper"):
        found = [row for row in rows if row["task_name"] == name]
        pq.write_table(pa.Table.from_pylist(found), folder / f"{name}.parquet")
    return ["data=parquet", f"data.path={folder}", "data.tasks=files"]


def _hub(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return ["data=hub", f"data.path={folder}", "data.max_examples_per_task=30"]


def _flan(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    return ["data=flan", *_hub(folder, rows)[1:]]


def _p3(folder: Path, rows: list[dict[str, str]]) -> list[str]:
    for name in ("copy", "first", "upper"):
        found = [
            {"inputs_pretokenized": row["source"], "targets_pretokenized": row["target"]}
            for row in rows
            if row["task_name"] == name
        ]
        (folder / f"{name}_template").mkdir()
        pq.write_table(pa.Table.from_pylist(found), folder / f"{name}_template" / "train.parquet")
    configs = "".join(f"- config_name: {n}_template\n  data_dir: {n}_template\n" for n in
                      ("copy", "first", "upper"))  # fmt: skip
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    given = "data.p3.datasets=[copy,first,upper]"
    return ["data=p3", f"data.path={folder}", "data.p3.tasks=datasets", given]


@pytest.mark.parametrize("make", [_csv, _parquet, _hub, _flan, _p3])
def test_a_run(
    make: Callable[..., list[str]],
    rows: list[dict[str, str]],
    small: list[str],
    run_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    done = run_here(*small[2:], *make(folder, rows), *QUICK, cwd=tmp_path)
    assert done.code == 0, done.err
    metrics = json.loads((done.folder / "metrics.json").read_text())
    assert set(metrics["test"]["tasks"]) == {"copy", "first", "upper"}


def test_crossfit(
    rows: list[dict[str, str]], small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    sizes = {"train": 14, "dev": 8, "test": 5}
    for name in ("copy", "first", "upper"):
        found = iter([row for row in rows if row["task_name"] == name])
        (tmp_path / "gym" / name).mkdir(parents=True)
        for seed in (13, 21):
            for split, count in sizes.items():
                lines = [f"{row['source']}\t{row['target']}\n" for row in islice(found, count)]
                path = tmp_path / "gym" / name / f"{name}_14_{seed}_{split}.tsv"
                path.write_text("".join(lines))
    (tmp_path / "split.json").write_text('{"train": ["copy", "upper"], "test": ["first"]}')
    given = [o for o in small[2:] if not o.startswith("data.source.")]
    given += ["data=crossfit", "data.path=gym", "data.partition=split.json", "data.seeds=[21]"]
    done = run_here(*given, *QUICK, cwd=tmp_path)
    assert done.code == 0, done.err
    metrics = json.loads((done.folder / "metrics.json").read_text())
    assert set(metrics["test"]["tasks"]) == {"copy", "upper"}
    assert "the 2 training tasks of split.json are read, its 0 dev and 1 test tasks" in done.err


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data=hub", "data.path=nobody/nothing"], "data.path=nobody/nothing cannot be read: "),
        (["data=csv", "data.path=DIR", "data.columns.inptu=a"], "did you mean data.columns.input?"),
        (["data=p3", "data.p3.tasks=template"], "data.p3.tasks='template' is not known"),
        (["data=flan"], "data.path is not set"),
        (["data=sni", "data.path=DIR", "data.tasks=some"], "valid: auto, train, test, all"),
        (["data=crossfit", "data.path=DIR", "data.shots=0"], "data.shots=0 must be at least 1"),
    ],
)
def test_one_line(
    overrides: list[str], line: str, small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    given = [o for o in small[2:] if not o.startswith("data.source.")]
    done = run_here(*given, *overrides, *QUICK, cwd=tmp_path)
    assert done.code == 1
    assert line in done.err
    assert len(done.err.strip().splitlines()) == 1
