"""What a finished run prints."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from polylab.config.paths import path_override
from polylab.terminal.outcome import say_outcome, split_results, summary_line

METRICS = {
    "test": {
        "macro": {"exact_match": 0.5, "rouge_l": None},
        "tasks": {"copy": {"exact_match": 1.0}, "upper": {"exact_match": 0.0, "rouge_l": 0.25}},
    },
    "recovery": {"aligned": 0.875},
    "checkpoint": "best",
    "seconds": 12.3,
}


def test_summary() -> None:
    expected = "test, best weights: exact_match 0.500 · rouge_l - · recovery 0.875 · 12 s"
    assert summary_line(METRICS) == expected


def test_summary_without_a_test() -> None:
    metrics = {"val": {"macro": {"accuracy": 1}}, "checkpoint": "last", "seconds": 3.0}
    assert summary_line(metrics) == "val, last weights: accuracy 1 · 3 s"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "my run, 1"
    for name in ("figures", "adapter", "wandb/offline-run-20260101_000000-abc"):
        (made / name).mkdir(parents=True)
    (made / "metrics.json").write_text(json.dumps(METRICS))
    return made


def test_scores_then_where_to_look_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say_outcome(folder, commands=True)
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines]
    assert ["copy", "1.000", "-"] in words
    assert ["mean", "over", "tasks", "0.500", "-"] in words
    first = lines.index("test, best weights: exact_match 0.500 · rouge_l - · recovery 0.875 · 12 s")
    hints = {line[:12].strip(): line[12:] for line in lines[first + 1 :]}
    assert list(hints) == ["folder", "all scores", "figures", "report", "evaluate", "upload"]
    assert shlex.split(hints["figures"]) == [str(folder / "figures")]
    run = folder / "wandb" / "offline-run-20260101_000000-abc"
    assert shlex.split(hints["upload"]) == ["wandb", "sync", str(run)]
    for command in ("report", "evaluate"):
        python, flag, module, override = shlex.split(hints[command])
        assert (python, flag, module) == ("python", "-m", f"polylab.{command}")
        assert _as_hydra_reads(override) == str(folder)


@pytest.mark.parametrize(
    "path", ["/a b", "/a=b,c", '/it\'s "so"', "/é/[x]", "/runs/x_1-2:3", "/a\\"]
)
def test_a_folder_of_any_name_can_be_given_back(path: str) -> None:
    (override,) = shlex.split(path_override("run", Path(path)))
    assert _as_hydra_reads(override) == path


def test_only_what_is_there_is_pointed_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"val": {}, **_ENDS}))
    say_outcome(tmp_path, commands=False)
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "val, last weights: no metrics · 3 s",
        f"folder      {tmp_path}",
        f"all scores  {tmp_path / 'metrics.json'}",
    ]


def test_a_loss_without_scores_is_said() -> None:
    metrics = {"test": {"loss": 0.5, "macro": {}}, **_ENDS}
    assert summary_line(metrics) == "test, last weights: the loss alone · 3 s"


def test_results_of_a_module_that_keeps_none() -> None:
    values = {"val/loss": 2.0, "val/exact_match": 0.5, "test/loss": 1.0, "lr": 3.0}
    assert split_results(values, "val") == {"loss": 2.0, "macro": {"exact_match": 0.5}}
    assert split_results(values, "other") == {"macro": {}}


_ENDS = {"checkpoint": "last", "seconds": 3.0}


def _as_hydra_reads(override: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).value()
