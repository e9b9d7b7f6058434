"""`python -m polylab.figures`: what it writes, and one line for what it cannot draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polylab.config.files import write_text

Command = Callable[..., Any]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two finished jobs with 2 and 4 skills."""
    lines = ["job,folder,status,adapter.n_skills,seed,test/exact_match,routing/density"]
    for i, n in enumerate((2, 4)):
        lines.append(f"{i},{i},completed,{n},0,0.5,0.5")
        adapter = f"adapter:\n  poly_type: poly\n  n_skills: {n}\n"
        write_text(tmp_path / "S" / str(i) / "config.yaml", adapter)
    write_text(tmp_path / "S" / "results.csv", "\n".join(lines) + "\n")
    return tmp_path / "S"


def test_all_that_can_be_drawn_is(sweep: Path, run_here: Command, tmp_path: Path) -> None:
    done = run_here(f"run={sweep}", cwd=tmp_path, command="figures")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [str(sweep / "figures" / "skills.png")]
    assert {path.name for path in (sweep / "figures").iterdir()} == {"skills.png", "skills.pdf"}
    left_out = done.err.splitlines()
    assert len(left_out) == 3
    assert left_out[0].startswith("left out: figure=changes: no shared baseline")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["figure=layers"], "0/skills.csv: there is no such file"),
        (
            ["figure=layer"],
            "figure=layer is not known · did you mean layers? · valid: all, changes",
        ),
        (["metrik=x"], "unknown key 'metrik' · did you mean metric?"),
    ],
)
def test_mistakes(
    given: list[str], message: str, sweep: Path, run_here: Command, tmp_path: Path
) -> None:
    done = run_here(f"run={sweep}", *given, cwd=tmp_path, command="figures")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    assert message in done.err
    assert not (sweep / "figures").exists()


def test_the_folder_is_named(run_here: Command, tmp_path: Path) -> None:
    assert "run is not set" in run_here(cwd=tmp_path, command="figures").err
    done = run_here("run=nowhere", cwd=tmp_path, command="figures")
    assert done.err == "run=nowhere: there is no such folder · give SWEEP_DIR\n"
