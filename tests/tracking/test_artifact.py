"""The artifact of a run: what it holds, and that it is no second copy."""

from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger
from wandb.sdk.artifacts.artifact import Artifact

from polylab.tracking import PatientWandbLogger, log_run_artifact

FILES = ["adapter/a.json", "adapter/b.safetensors", "config.yaml", "figures/allocation.pdf",
         "figures/allocation.png", "metrics.json", "skills.csv"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate([*FILES, "figures/allocation-step000010.png", "history.jsonl"]):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (1000 + i))
    return tmp_path / "run"


class Run:
    """A W&B run that keeps what it is given."""

    id = "abc"

    def __init__(self) -> None:
        self.logged: list[tuple[Artifact, list[str]]] = []

    def log_artifact(self, artifact: Artifact, aliases: list[str]) -> None:
        self.logged.append((artifact, aliases))


def _logger(monkeypatch: pytest.MonkeyPatch, run: Run, **arguments: Any) -> PatientWandbLogger:
    logger = PatientWandbLogger(project="p", **arguments)
    monkeypatch.setattr(PatientWandbLogger, "experiment", run)
    return logger


def test_it_holds_the_adapter_final_figures_and_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    monkeypatch.setenv("WANDB_DATA_DIR", str(data))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(cache))
    run = Run()
    logger = _logger(monkeypatch, run, save_dir=tmp_path)
    log_run_artifact(logger, folder, kept="best", metadata={"test": {"exact_match": 0.5}})
    ((artifact, aliases),) = run.logged
    assert (artifact.name, artifact.type) == ("adapter-abc", "model")
    assert aliases == ["latest", "best"]
    assert artifact.metadata == {"test": {"exact_match": 0.5}}
    assert sorted(artifact.manifest.entries) == FILES
    entry = artifact.manifest.entries["adapter/b.safetensors"]
    assert entry.local_path == str(folder / "adapter" / "b.safetensors")  # itself, no copy
    copies = [path for place in (data, cache) for path in place.rglob("*") if path.is_file()]
    assert copies == []


def test_who_wants_none_gets_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    log_run_artifact(_logger(monkeypatch, run, log_adapter=False), folder, kept="last", metadata={})
    log_run_artifact(None, folder, kept="last", metadata={})
    log_run_artifact(CSVLogger(folder), folder, kept="last", metadata={})
    lost = _logger(monkeypatch, run)
    lost.give_up(OSError("gone"))
    log_run_artifact(lost, folder, kept="last", metadata={})
    log_run_artifact(_logger(monkeypatch, run), folder / "figures", kept="last", metadata={})
    assert run.logged == []


def test_an_artifact_that_fails_ends_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    logger = _logger(monkeypatch, Run())
    monkeypatch.setattr(wandb.Artifact, "add_file", fail)
    log_run_artifact(logger, folder, kept="best", metadata={})
    assert logger.is_lost
    assert "W&B stopped (No space left on device)" in caplog.text
