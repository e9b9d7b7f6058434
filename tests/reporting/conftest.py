"""Fabricated folders, their pages, and one headless browser for all tests of them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.reporting.fabricate import names, write_run, write_sweep

if TYPE_CHECKING:
    from tests.reporting.browser import Browser

HOSTILE = ["</script><b>x", "<img src=x onerror=boom()>", '"&\u2028@DATA@']


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of 8 tasks, 2 heads, 4 skills, 3 layers and 3 looks, and what was written."""
    folder = tmp_path_factory.mktemp("report") / "run"
    return folder, write_run(folder, tasks=[*names(5), *HOSTILE])


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 7 runs with 3 or 4 skills; job 5 failed and left no folder."""
    folder = tmp_path_factory.mktemp("report") / "sweep"
    folder.mkdir()
    write_sweep(folder, jobs=7, tasks=names(6), failed=[5])
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """Chromium without a window and without network."""
    pytest.importorskip("selenium", reason="needs selenium: pip install -e '.[dev]'")
    from tests.reporting.browser import Browser

    program = shutil.which("chromium")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver: apt-get install them")
    opened = Browser(program, driver, profile=tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Writes a folder's page once and returns its file."""
    from polylab.reporting import build_page, page_contents

    pages: dict[Path, Path] = {}

    def write(folder: Path) -> Path:
        if folder not in pages:
            pages[folder] = tmp_path_factory.mktemp("pages") / "report.html"
            pages[folder].write_text(build_page(page_contents(folder)), encoding="utf-8")
        return pages[folder]

    return write
