"""The page in a real browser: it draws, sorts, filters, reads values, prints, and is quick."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("selenium", reason="needs selenium: pip install -e '.[dev]'")

from selenium.webdriver.common.keys import Keys

from polylab.poly.alignment import align_skills, aligned_mean
from tests.reporting.browser import Browser, titles
from tests.reporting.conftest import HOSTILE
from tests.reporting.fabricate import names, write_interventions, write_run, write_sweep

READOUT = "#allocation .readout"
MAP = "#allocation .map-scroll canvas"
ROWS = "#scores tbody tr"


@pytest.fixture(autouse=True)
def quiet(browser: Browser) -> Iterator[None]:
    """Nothing that a test does makes the page write to its console."""
    yield
    assert browser.messages() == []


@pytest.fixture
def opened(
    browser: Browser, page_of: Callable[[Path], Path], run_folder: tuple[Path, dict[str, Any]]
) -> Browser:
    """The page of the fabricated run, freshly opened."""
    browser.open(page_of(run_folder[0]))
    return browser


def stored(run_folder: tuple[Path, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The last look's weights with the 16 bits that its file has."""
    weights = run_folder[1]["weights"]
    return {name: torch.tensor(w.astype(np.float16)).float() for name, w in weights.items()}


def weight_read(text: str) -> float:
    found = re.search(r"· weight ([\d.]+) ·", text)
    assert found is not None, text
    return float(found[1])


def test_every_section_is_drawn(opened: Browser) -> None:
    assert opened.texts("main h2") == [
        "Scores", "Allocation", "Curves", "Routing by layer", "Configuration", "Environment",
    ]  # fmt: skip
    assert opened.texts("nav a") == opened.texts("main h2")
    assert opened.colours(MAP) > 20
    assert opened.run("return document.querySelectorAll('#curves path.line').length") >= 5
    assert opened.texts(".heads .figure")[-1] == "0.400"  # the loss


def test_nothing_is_asked_of_the_network(opened: Browser) -> None:
    assert opened.run("return performance.getEntriesByType('resource').length") == 0
    assert (
        opened.run("return document.querySelectorAll('[src]:not([src^=data]), link[href]').length")
        == 1
    )
    assert opened.run("return document.querySelector('link').href") == "data:,"


def test_hostile_names_stay_text(opened: Browser) -> None:
    shown = opened.texts(f"{ROWS} td:first-child")
    assert [name for name in shown if name[:1] in '<"'] == HOSTILE
    assert (
        opened.run("return document.querySelectorAll('main b:not(.bar b), main img').length") == 0
    )


def test_sorting_by_a_heading(opened: Browser, run_folder: tuple[Path, dict[str, Any]]) -> None:
    tasks = run_folder[1]["metrics"]["test"]["tasks"]
    best_first = sorted(tasks, key=lambda name: -tasks[name]["exact_match"])
    heading = opened.find("#scores th[data-name=exact_match] button")
    heading.click()
    assert opened.texts(f"{ROWS} td:first-child") == best_first
    assert (
        opened.find("#scores th[data-name=exact_match]").get_attribute("aria-sort") == "descending"
    )
    heading.send_keys(Keys.ENTER)
    assert opened.texts(f"{ROWS} td:first-child") == best_first[::-1]


def test_filtering_by_words_and_bounds(
    opened: Browser, run_folder: tuple[Path, dict[str, Any]]
) -> None:
    opened.write("#scores input[type=search]", "capital")
    assert opened.texts(f"{ROWS} td:first-child") == ["capital_0000"]
    assert opened.texts("#scores .count") == ["1 of 8 rows"]
    tasks = run_folder[1]["metrics"]["test"]["tasks"]
    opened.write("#scores input[type=search]", "exact_match<0.6")
    low = [name for name, scores in tasks.items() if scores["exact_match"] < 0.6]
    assert 0 < len(low) < 8
    assert opened.texts(f"{ROWS} td:first-child") == low


def test_intervals_are_those_of_the_file(
    opened: Browser, run_folder: tuple[Path, dict[str, Any]]
) -> None:
    low, high = run_folder[1]["metrics"]["test"]["intervals"]["tasks"]["plural_0001"]["rouge_l"]
    cells = opened.texts("#scores tr[data-row='1'] .sure")
    assert f"{low:.3f} \N{EN DASH} {high:.3f}" in cells


def test_arrow_keys_read_every_value(
    opened: Browser, run_folder: tuple[Path, dict[str, Any]]
) -> None:
    mean, _ = aligned_mean(stored(run_folder))
    opened.choose("allocation", "Order of tasks", "given")
    opened.run("document.querySelector('#allocation .map-scroll').focus()")
    for task in range(mean.shape[0]):
        opened.press(*([Keys.ARROW_DOWN] if task else []), Keys.HOME)
        for skill in range(mean.shape[1]):
            opened.press(*([Keys.ARROW_RIGHT] if skill else []))
            text = opened.texts(READOUT)[0]
            assert f"skill {skill} ·" in text
            assert weight_read(text) == pytest.approx(float(mean[task, skill]), abs=1e-4)
    assert opened.find(READOUT).get_attribute("aria-live") == "polite"


def test_the_pointer_reads_one_layer_and_head(
    opened: Browser, run_folder: tuple[Path, dict[str, Any]]
) -> None:
    weights = stored(run_folder)
    layer, values = [*weights.items()][1]
    own = align_skills(weights)[layer][1].tolist()
    opened.choose("allocation", "Layer", "1")
    opened.choose("allocation", "Head", "1")
    opened.choose("allocation", "Order of tasks", "given")
    canvas = opened.find(MAP)
    row, column = opened.run("return [21, 58]")
    width, height = canvas.size["width"], canvas.size["height"]
    x, y = width - 8 - column * 1.5, height - 4 - row * 2.5  # third task from below, third skill
    opened.hover(canvas, x, y)
    text = opened.texts(READOUT)[0]
    assert text.startswith(HOSTILE[0])
    assert f"skill {own[2]}" in text
    assert weight_read(text) == pytest.approx(float(values[5, 1, own[2]]), abs=1e-4)


def test_the_slider_changes_the_map(opened: Browser) -> None:
    pixels = f"return document.querySelector('{MAP}').toDataURL()"
    last = opened.run(pixels)
    slider = opened.find("#allocation input[type=range]")
    slider.send_keys(Keys.HOME)
    assert opened.texts("#allocation .controls label span span") == ["step 0"]
    assert opened.run(pixels) != last
    slider.send_keys(Keys.END)
    assert opened.run(pixels) == last


@pytest.mark.parametrize("order", ["name", "category"])
def test_tasks_in_the_order_asked_for(opened: Browser, order: str) -> None:
    opened.choose("allocation", "Order of tasks", order)
    opened.write("#allocation input[type=search]", "000")
    opened.run("document.querySelector('#allocation .map-scroll').focus()")
    opened.press(Keys.HOME)
    seen = []
    for _ in range(6):
        seen.append(opened.texts(READOUT)[0].split(" · ")[0])
        opened.press(Keys.ARROW_DOWN)
    assert list(dict.fromkeys(seen)) == sorted(names(5))


def test_the_keyboard_reaches_what_the_pointer_does(opened: Browser) -> None:
    opened.run("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(60):
        opened.press(Keys.TAB)
        reached.append(
            opened.run(
                "const at = document.activeElement;"
                "return [at.tagName, at.className, getComputedStyle(at).outlineStyle]"
            )
        )
    assert reached[0][:2] == ["A", "skip"]
    assert {"A", "INPUT", "SELECT", "BUTTON", "DIV", "FIGURE", "SUMMARY"} <= {
        t for t, *_ in reached
    }
    assert any(name == "map-scroll" for _, name, _ in reached)
    marked = [style for tag, _, style in reached if tag != "BODY"]
    assert "none" not in marked


def test_dark_and_light_are_drawn_differently(opened: Browser) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    pixels = f"return document.querySelector('{MAP}').toDataURL()"
    light, before = opened.run(ground), opened.run(pixels)
    opened.dark(True)
    try:
        assert opened.run(ground) != light
        opened.until(lambda: opened.run(pixels) != before)
    finally:
        opened.dark(False)
    opened.until(lambda: opened.run(pixels) == before)


def test_all_rows_and_maps_are_printed(
    browser: Browser, page_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    write_run(tmp_path / "many", tasks=names(400), heads=1, layers=2, steps=[0, 10])
    browser.open(page_of(tmp_path / "many"))
    assert len(browser.texts(ROWS)) == 300
    browser.run(
        "addEventListener('beforeprint', () => { window.seen = ["
        f"document.querySelectorAll('{ROWS}').length,"
        "document.querySelectorAll('#allocation .print canvas').length] })"
    )
    sheets = browser.sheets()
    assert browser.run("return window.seen") == [400, 10]  # 44 tasks on each canvas
    assert len(browser.texts(ROWS)) == 300  # and back
    assert sheets.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b(?!s)", sheets)) >= 15
    wanted = ["Scores", "Allocation", "Configuration", "Environment"]
    assert titles(sheets, wanted) == wanted


def test_1600_tasks_are_drawn_as_far_as_they_are_in_sight(
    browser: Browser, page_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    write_run(tmp_path / "big", tasks=names(1600), heads=1, layers=3, skills=6, steps=[0, 10])
    page = page_of(tmp_path / "big")
    assert page.stat().st_size < 3e6
    assert browser.open(page) < 3
    assert browser.run(f"return document.querySelector('{MAP}').height") < 1500
    browser.run("document.querySelector('#allocation .map-scroll').focus()")
    browser.choose("allocation", "Order of tasks", "name")
    browser.press(*[Keys.PAGE_DOWN] * 40)
    last = sorted(names(1600))[-1]
    assert browser.texts(READOUT)[0].startswith(f"{last} ·")
    assert (
        browser.run("return document.querySelector('#allocation .map-scroll').scrollTop") > 20_000
    )


def test_a_knockout_is_read_beside_its_allocation(
    browser: Browser, page_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    write_interventions(tmp_path, tasks=names(3), skills=2)
    browser.open(page_of(tmp_path))
    assert browser.texts("main h2") == ["Knock-out", "Interventions"]
    assert browser.texts(".kind")[0].startswith("An evaluation of a run")
    browser.run("document.querySelector('#knock-out .map-scroll').focus()")
    browser.press(Keys.HOME, Keys.ARROW_DOWN, Keys.END)
    assert browser.texts("#knock-out .readout") == [
        "plural_0001 · skill 1 · allocation 2.500 \N{MULTIPLICATION SIGN} uniform · "
        "change of exact_match without it -0.100 (-0.300 to 0.100)"
    ]
    assert browser.colours("#knock-out .map-scroll canvas") > 10
    assert browser.texts("#interventions li") == ["The routing is used.", "Skill 1 is not."]


def test_a_sweep_opens_and_compares_runs(
    browser: Browser, page_of: Callable[[Path], Path], sweep_folder: Path
) -> None:
    browser.open(page_of(sweep_folder))
    assert browser.texts("main h2") == [
        "Runs", "Scatter", "Settings and scores", "Curves", "Allocations", "Configuration",
        "Environment",
    ]  # fmt: skip
    assert browser.texts("#runs tr.failed td:nth-child(2)") == ["5"]
    assert len(browser.texts("#runs tr.chosen")) == 4
    browser.find("#runs .plain:not([hidden])").click()
    for job in ("1", "3", "2"):
        browser.find(f"#runs tr[data-row='{job}'] input").click()
    lines = "return document.querySelector('#curves figure').querySelectorAll('.line').length"
    assert browser.run(lines) == 3
    assert (
        len(browser.texts("#configuration .table[aria-label*=differs] th")) == 4
    )  # the key and three runs
    browser.choose("scatter", "Up", "routing/entropy")
    assert browser.run("return document.querySelectorAll('#scatter .dot').length") == 6
    browser.run("document.querySelector('#scatter figure').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert "routing/entropy" in browser.texts("#scatter .readout")[0]
    assert browser.colours("#allocations .map-scroll canvas") > 10


def test_charts_of_hardly_any_values(
    browser: Browser, page_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    write_run(tmp_path, tasks=names(3))
    lines = [
        {"step": 0, "norm/router": 0.59911, "routing/dead_skills": 0},
        {"step": 10, "norm/router": 0.59918, "routing/dead_skills": 0, "val/exact_match": 0.25},
        {"step": 10, "val/exact_match": 0.5},  # of the best weights, once more
    ]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    browser.open(page_of(tmp_path))
    charts = browser.run(
        "return Object.fromEntries([...document.querySelectorAll('#curves .charts')[0].children]"
        ".map((one) => [one.querySelector('h3').textContent,"
        " [...one.querySelectorAll('text')].map((text) => text.textContent)]))"
    )
    assert {*charts} == {"validation", "norm/router", "dead and duplicate skills"}
    ends = [texts[: texts.index("0", 1)] for texts in charts.values()]  # up to the first step
    assert all(len({*texts}) == len(texts) > 2 for texts in ends)
    assert "1" in charts["dead and duplicate skills"]
    assert browser.run("return document.querySelectorAll('#curves circle').length") == 1


def test_a_sweep_of_200_runs_opens_within_3_seconds(
    browser: Browser, page_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    write_sweep(tmp_path, jobs=200, tasks=names(6), same=3)
    page = page_of(tmp_path)
    assert browser.open(page) < 3
    assert browser.texts("#runs .count")[0] == "200 of 200 rows"
    assert len(browser.texts("#runs tbody tr")) == 200
