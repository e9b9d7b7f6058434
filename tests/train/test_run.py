"""One run from its command line to the files it leaves, and its exact continuation."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.wandb_reader import read_run

FIGURES = {"allocation.png", "by_layer.png", "task_hierarchy.png"}


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, small: list[str], run_process: Callable[..., Any]
) -> Any:
    """A run of four steps, as a process."""
    cwd = tmp_path_factory.mktemp("whole")
    done = run_process("tags=[mine]", *small, cwd=cwd)
    assert done.code == 0, done.err
    return done


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_the_folder_holds_what_the_contract_says(whole: Any) -> None:
    folder = whole.folder
    assert folder.parent == whole.cwd / "runs" / "train"
    assert {path.name for path in folder.iterdir()} == {
        ".hydra", "train.log", "config.yaml", "metrics.json", "checkpoints", "adapter", "figures",
        "skills.csv", "mix.csv", "wandb", "environment.json", "history.jsonl", "routing.csv",
        "allocations",
    }  # fmt: skip
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert {path.name for path in (folder / "figures").iterdir()} >= FIGURES
    ids = json.loads((folder / "adapter" / "tasks.json").read_text())
    assert ids == {"copy": 0, "first": 1, "upper": 2}
    with (folder / "skills.csv").open() as file:
        assert next(csv.reader(file)) == ["layer", "split", "task", "skill", "weight", "gate"]


def test_metrics(whole: Any) -> None:
    metrics = _metrics(whole.folder)
    for split in ("val", "test"):
        assert set(metrics[split]["macro"]) == {"exact_match", "rouge_l", "token_f1"}
        assert set(metrics[split]["tasks"]) == {"copy", "first", "upper"}
        assert metrics[split]["loss"] > 0
    assert metrics["checkpoint"] == "best"
    assert metrics["seconds"] > 0
    assert metrics["trainable_parameters"] > 0


def test_the_terminal_says_facts_first_and_results_last(whole: Any) -> None:
    lines = whole.out.splitlines()
    count = f"{_metrics(whole.folder)['trainable_parameters']:,}"
    facts = {line[:11].strip(): line[11:] for line in lines[:20]}
    assert lines[0].startswith("backbone   ")
    assert facts["adapter"] == "poly · rank 2 · 3 skills · 1 split · 3 tasks"
    assert facts["trainable"].startswith(f"{count} parameters · ")
    assert facts["data"].startswith("3 tasks · ")
    assert facts["batch"] == "6 examples = 6 x 1 device x 1 accumulated"
    assert facts["device"] == "cpu · precision 32-true"
    assert facts["tracker"] == "W&B offline · project polylab · group train · name train-s0"
    assert facts["folder"] == str(whole.folder)
    (place,) = [i for i, line in enumerate(lines) if line.startswith("test, best weights: exact_")]
    (offline,) = whole.folder.glob("wandb/offline-run-*")
    assert lines[-1] == f"upload      wandb sync {offline}"
    assert place > len(lines) - 10
    assert all(len(line) <= 80 for line in lines if str(whole.folder) not in line)
    assert not {"\r", "\x1b"} & set(whole.out + whole.err)  # no bar and no colour in a file
    assert "Traceback" not in whole.err
    assert "wandb:" not in whole.err + whole.out


def test_the_configuration_is_resolved(whole: Any) -> None:
    text = (whole.folder / "config.yaml").read_text()
    assert "${" not in text
    assert "???" not in text
    cfg = OmegaConf.create(text)
    assert (cfg.name, cfg.seed, cfg.adapter.n_skills) == ("train", 0, 3)


def test_the_offline_run(whole: Any) -> None:
    run = read_run(whole.folder)
    assert run.exit_code == 0
    assert (run.name, run.job_type, run.group) == ("train-s0", "train", "train")
    assert run.tags == ["train", "tiny", "poly", "mine"]
    assert run.config["adapter"]["n_skills"] == 3
    assert "tags=[mine]" in run.config["hydra_overrides"]
    keys = set().union(*run.history)
    expected = {
        "train/loss", "train/copy/loss", "train/copy/examples", "lr/skills", "lr/router",
        "grad_norm/skills", "throughput/tokens_per_second", "memory/peak_mb", "val/loss",
        "val/exact_match", "val/copy/exact_match", "test/loss", "routing/entropy",
        "routing/discreteness", "skills/allocation", "skills/by_layer", "skills/task_hierarchy",
        "skills/table",
    }  # fmt: skip
    assert expected <= keys, expected - keys
    assert [step for step, _ in run.series("train/loss")] == [1, 2, 3, 4]
    (model,) = [found for found in run.artifacts if found[0] == "model"]
    run_id = run.folder.name.rpartition("-")[2]
    assert model[:2] == ("model", f"adapter-{run_id}")
    assert sorted(model[2]) == ["best", "latest"]
    # what waits for a sync lies in the run's folder, and is no second copy of the adapter
    staged = [path for path in (whole.folder / "wandb" / "data").rglob("*") if path.is_file()]
    adapter = whole.folder / "adapter" / "adapter_model.safetensors"
    assert (
        sum(path.stat().st_size for path in staged)
        < 3 * (whole.folder / "skills.csv").stat().st_size
    )
    assert adapter.stat().st_size not in {path.stat().st_size for path in staged}


def test_checkpoints_load_with_weights_only(whole: Any) -> None:
    for name in ("best", "last"):
        file = whole.folder / "checkpoints" / f"{name}.ckpt"
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all("poly_" in key for key in state)


def test_a_resumed_run_is_the_uninterrupted_one(
    whole: Any, small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    quiet = ["logger=none", "callbacks.figures=null"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    half = run_here(*small, *quiet, "trainer.max_steps=3", cwd=tmp_path / "a")
    assert half.code == 0, half.err
    last = half.folder / "checkpoints" / "last.ckpt"
    rest = run_here(*small, *quiet, f"ckpt_path={last}", cwd=tmp_path / "b")
    assert rest.code == 0, rest.err
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (rest.folder, whole.folder)
    )
    assert ours["global_step"] == theirs["global_step"] == 4
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
    # best.ckpt is that of step 2, from before the interruption
    assert _metrics(rest.folder)["test"] == _metrics(whole.folder)["test"]


def test_config_yaml_reproduces_the_run(
    whole: Any, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    again = run_here(
        "--config-path", str(whole.folder), "--config-name", "config", "logger=null",
        "callbacks.figures=null", f"hydra.run.dir={tmp_path}/runs/again", cwd=tmp_path,
    )  # fmt: skip
    assert again.code == 0, again.err
    for split in ("val", "test"):
        assert _metrics(again.folder)[split] == _metrics(whole.folder)[split]


@pytest.mark.parametrize(
    ("overrides", "present"),
    [
        (["adapter=lora", "logger=csv"], {"metrics.csv"}),
        (["adapter=private", "logger=none"], set()),
        (["adapter=mope", "logger=none"], set()),
        (["debug=fast", "logger=none"], set()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_other_options(
    overrides: list[str],
    present: set[str],
    small: list[str],
    run_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    done = run_here(
        *small, "trainer.max_steps=2", "callbacks.figures=null", *overrides, cwd=tmp_path
    )
    assert done.code == 0, done.err
    names = {path.name for path in done.folder.iterdir()}
    assert names >= {"metrics.json", "adapter", "checkpoints", "config.yaml"} | present
    assert "wandb" not in names


def test_a_decoder_only_backbone_by_overrides_alone(
    gpt2_folder: Path, small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    done = run_here(
        *small, "trainer.max_steps=2", "logger=none", "callbacks=none", "adapter.n_splits=2",
        f"backbone.name_or_path={gpt2_folder}", "adapter.target_modules=[c_attn,c_proj]",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert _metrics(done.folder)["checkpoint"] == "last"
    assert not (done.folder / "checkpoints").exists()


def test_validate_builds_everything_and_writes_nothing(
    small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    done = run_here(*small, "debug=validate", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "the configuration, data, backbone and adapter are valid"
    assert {path.name for path in done.folder.iterdir()} == {".hydra"}
