"""The command: where the page goes, what it says, and what it refuses."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polylab.config.paths import config_folder
from tests.reporting.fabricate import names, write_run


@pytest.fixture
def report(run_here: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Runs the command in this process, in an empty folder."""
    return lambda *arguments: run_here(*arguments, cwd=tmp_path, command="report")


def test_a_page_beside_the_run_or_where_it_is_wanted(
    report: Callable[..., Any], tmp_path: Path
) -> None:
    write_run(tmp_path / "run", tasks=names(3), steps=[0])
    done = report("run=run")
    assert done.code == 0, done.err
    assert done.out == "run/report.html: a run · 0.1 MB · open it in any browser\n"
    done = report("run=run", "to=pages/one.html")
    assert done.code == 0, done.err
    page = (tmp_path / "pages/one.html").read_text()
    assert page == (tmp_path / "run/report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pages", "run"]


def test_what_a_page_lacks_is_said(report: Callable[..., Any], tmp_path: Path) -> None:
    write_run(tmp_path / "run", tasks=names(3), steps=[0])
    (tmp_path / "run/metrics.json").write_text("{")
    done = report("run=run")
    assert done.code == 0
    assert done.err.startswith("note: metrics.json cannot be read, and is left out: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "run is not set · give run=RUN_DIR or run=SWEEP_DIR"),
        (["run=no"], "run=no: there is no such folder · give RUN_DIR or SWEEP_DIR"),
        (["run=."], "run=.: nothing to show in it · give a folder with one of metrics.json"),
        (["run=.", "to=taken"], "to=taken is a folder · give a file, such as taken/report.html"),
        (["run=.", "too=x"], "unknown key 'too' · did you mean to?"),
    ],
)
def test_a_mistake_is_one_line(
    report: Callable[..., Any], tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "taken").mkdir()
    done = report(*arguments)
    assert done.code == 1
    assert done.err.startswith(line)
    assert done.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_a_page_that_cannot_be_written_is_one_line(
    report: Callable[..., Any], tmp_path: Path
) -> None:
    write_run(tmp_path / "run", tasks=names(3), steps=[0])
    done = report("run=run", "to=run/config.yaml/page.html")
    assert done.code == 1
    assert done.err.startswith("to=run/config.yaml/page.html: ")


def test_the_parts_of_the_page_are_in_the_package() -> None:
    parts = config_folder("conf").parent / "polylab/reporting/page"
    files = sorted(path for path in parts.iterdir())
    assert {path.suffix for path in files} == {".html", ".css", ".js"}
    assert all(len(path.read_text().splitlines()) <= 300 for path in files)


def test_the_help_of_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "polylab.report", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.count("  python -m polylab.report run=") == 5
