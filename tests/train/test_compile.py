"""`trainer.compile=true` in a run: the eager run's losses, from compiled blocks."""

import csv
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and differentiate as the real one, but write no code."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", quick)
    yield
    torch._dynamo.reset()


def losses(folder: Path) -> list[float]:
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def test_losses_are_those_of_the_eager_run(
    tmp_path: Path, small: list[str], run_here: Callable[..., Any]
) -> None:
    found = {}
    for name in ("false", "true"):
        cwd = tmp_path / name
        cwd.mkdir()
        done = run_here(
            "experiment=flan_poly",
            *small,
            "data.prompt=name",
            "logger=csv",
            f"trainer.compile={name}",
            cwd=cwd,
        )
        assert done.code == 0, done.err
        found[name] = losses(done.folder)
        graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
        assert bool(graphs) == (name == "true")
    assert len(found["true"]) == 4
    assert found["true"] == pytest.approx(found["false"], rel=1e-4)


def test_what_cannot_be_compiled_is_one_line(
    tmp_path: Path, small: list[str], run_here: Callable[..., Any]
) -> None:
    done = run_here(
        "experiment=flan_poly",
        *small,
        "data.prompt=name",
        "trainer.compile=true",
        "backbone.gradient_checkpointing=true",
        cwd=tmp_path,
    )
    assert done.code != 0
    (line,) = done.err.splitlines()
    assert "compiled blocks cannot be checkpointed" in line
