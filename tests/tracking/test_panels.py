"""The workspace: what its panels ask for is logged, and its model builds without a server."""

import re
from pathlib import Path

import pytest

from polylab.tracking.panels import SECTIONS, Curves, Images, build_workspace

PANELS = [panel for section in SECTIONS for panel in section.panels]


def test_every_section_has_its_panels() -> None:
    names = ["Scores", "Skills", "Routing", "Layers", "Training", "Throughput", "Sweep"]
    assert [section.name for section in SECTIONS] == names
    assert all(section.panels for section in SECTIONS)
    titles = [panel.title for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_curves_are_of_keys_or_of_a_pattern() -> None:
    for panel in PANELS:
        if isinstance(panel, Curves):
            assert bool(panel.keys) != bool(panel.regex), panel
    patterns = [panel.regex for panel in PANELS if isinstance(panel, Curves) and panel.regex]
    keys = ["val/copy/exact_match", "routing/entropy/encoder.block.0.q", "lr/router",
            "grad_norm/skills", "train/copy/loss"]  # fmt: skip
    for key in keys:
        assert sum(re.search(pattern, key) is not None for pattern in patterns) == 1, key
    for key in ("routing/entropy", "train/loss", "val/exact_match"):  # macro ones are no task's
        assert not any(re.search(pattern, key) for pattern in patterns)


def test_every_key_is_one_that_the_package_logs() -> None:
    folder = Path(__file__).resolve().parents[2] / "polylab"
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for part in ("callbacks", "training") for path in (folder / part).rglob("*.py")
    )  # fmt: skip
    for panel in PANELS:
        for key in getattr(panel, "keys", ()):
            word = key.rpartition("/")[2].removesuffix("_baseline")
            assert re.search(rf"\b{word}\b|/{word}|{word}\"", source), key


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic's, to that library
def test_the_model_builds_without_a_server() -> None:
    pytest.importorskip("wandb_workspaces")
    view = build_workspace(entity="me", project="polylab", name="skills")
    sections = view._to_model().spec.section.panel_bank_config.sections
    assert [section.name for section in sections[: len(SECTIONS)]] == [s.name for s in SECTIONS]
    media = next(section for section in sections if section.name == "Skills")
    shown = [panel.config.media_keys for panel in media.panels]
    wanted = [[*panel.keys] for panel in PANELS if isinstance(panel, Images)]
    assert shown == wanted
    assert view.settings.x_axis == "trainer/global_step"
