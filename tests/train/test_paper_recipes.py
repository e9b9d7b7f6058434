"""The papers' recipes, run for two steps with a tiny backbone on data of the same form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

TASKS = ("copy", "first", "upper")


@pytest.fixture(scope="module")
def rows(task_folder: Path) -> dict[str, list[dict[str, str]]]:
    """Of three tasks."""
    return {
        name: [*map(json.loads, (task_folder / f"{name}.jsonl").read_text().splitlines())]
        for name in TASKS
    }


def _sni(folder: Path, rows: dict[str, list[dict[str, str]]]) -> list[str]:
    (folder / "splits" / "default").mkdir(parents=True)
    for split, names in {"train": TASKS[:2], "test": TASKS[2:]}.items():
        text = "".join(f"task{name}\n" for name in names)
        (folder / "splits" / "default" / f"{split}_tasks.txt").write_text(text)
    for name, own in rows.items():
        content = {
            "Definition": [f"Do {name}"],
            "Instances": [
                {"input": f"{name} {row['input']}", "output": [row["target"]]} for row in own
            ],
        }
        (folder / f"task{name}.json").write_text(json.dumps(content))
    return [f"data.path={folder}"]


def _p3(folder: Path, rows: dict[str, list[dict[str, str]]]) -> list[str]:
    for name, own in rows.items():
        table = {
            "inputs_pretokenized": [row["input"] for row in own],
            "targets_pretokenized": [row["target"] for row in own],
        }
        (folder / f"{name}_template").mkdir()
        pq.write_table(pa.table(table), folder / f"{name}_template" / "train.parquet")
    configs = "".join(f"- config_name: {n}_template\n  data_dir: {n}_template\n" for n in TASKS)
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return [f"data.path={folder}"]


def _flan(folder: Path, rows: dict[str, list[dict[str, str]]]) -> list[str]:
    table = [
        {"source": row["input"], "target": row["target"], "task_name": name}
        for name, own in rows.items()
        for row in own
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "train-00000-of-00001.parquet")
    return [f"data.path={folder}"]


@pytest.mark.parametrize("kind", ["main", "shared"])
@pytest.mark.parametrize(
    ("recipe", "make", "tasks"),
    [
        ("sni_t5_xl_{}", _sni, {"taskcopy", "taskfirst"}),
        ("t0_t5_xl_{}", _p3, {f"{name}_template" for name in TASKS}),
        ("flan_t5_base_{}", _flan, {*TASKS}),
    ],
)
def test_two_steps(
    recipe: str,
    make: Callable[..., list[str]],
    tasks: set[str],
    kind: str,
    rows: dict[str, list[dict[str, str]]],
    t5_folder: Path,
    run_here: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLYLAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    name = recipe.format({"sni": "mhr"}.get(recipe[:3], "poly") if kind == "main" else kind)
    done = run_here(
        f"experiment={name}",
        f"backbone.name_or_path={t5_folder}",
        *make(folder, rows),
        "data.batch_size=4",
        "data.source.min_rows_to_split=10",
        "trainer=cpu",
        "trainer.max_steps=2",
        "optim.warmup=0",
        "data.test_examples_per_task=1",
        "data.eval_examples_per_task=1",
        "module.max_new_tokens=2",
        "logger=none",
        "callbacks=none",
        cwd=tmp_path,
    )
    assert done.code == 0, done.err
    found = json.loads((done.folder / "metrics.json").read_text())
    assert {*found["test"]["tasks"]} == tasks
    config = OmegaConf.load(done.folder / "config.yaml")
    assert (config.adapter.poly_type == "shared") == (kind == "shared")
    assert [path for path in (tmp_path / "cache").iterdir() if path.name.startswith("tokens-")]
