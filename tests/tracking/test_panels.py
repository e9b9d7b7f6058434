"""The workspace: what its panels ask for is logged, and its model builds without a server."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_without_a_key_or_the_extra_one_line(
    run_command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    code, line = run_command("project=polylab")
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith("W&B has no credentials, and a view is kept by its server · run `wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", None)
    code, line = run_command("project=polylab")
    assert (code, line) == (
        1, "wandb-workspaces is not installed · pip install 'polylab[view]'\n",
    )  # fmt: skip
    code, line = run_command("projekt=polylab")
    assert code == 1
    assert "did you mean project?" in line


@pytest.fixture
def run_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    from polylab.workspace import main

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["polylab-workspace", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(str(end.value.code)), capsys.readouterr().err

    return run


def test_a_server_that_refuses_is_one_line(
    run_command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("project not found\nwith details")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces", object())
    monkeypatch.setattr("polylab.tracking.panels.build_workspace", refuse)
    code, line = run_command("project=p", "entity=e")
    assert code == 1
    assert line == (
        "W&B did not save the view of e/p: project not found · with details · check project=, "
        "entity=, the key and the network\n"
    )
