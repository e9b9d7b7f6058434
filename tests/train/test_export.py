"""A run's adapter taken elsewhere by the command, and loaded there by PEFT and transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from polylab import PolyModel

TASKS = ["copy", "first", "upper"]


@pytest.fixture
def export(run_here: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Runs the command in this process, in an empty folder."""

    def run(*arguments: str) -> Any:
        return run_here(*arguments, cwd=tmp_path, command="export")

    return run


def base(t5_folder: Path) -> Any:
    model = AutoModelForSeq2SeqLM.from_pretrained(t5_folder).eval()
    with torch.no_grad():  # logits so small that 1e-6 is a handful of their last bits
        model.lm_head.weight.mul_(0.05)
    return model


def logits(model: Any, **kwargs: Any) -> torch.Tensor:
    ids = torch.arange(3, 23).view(4, 5)
    with torch.no_grad():
        return model(input_ids=ids, labels=ids, **kwargs).logits


def wanted(t5_folder: Path, folder: Path, task: int) -> torch.Tensor:
    model = PolyModel.from_pretrained(base(t5_folder), folder / "adapter")
    found = logits(model, task_ids=torch.full((4,), task))
    assert (found - logits(base(t5_folder))).abs().max() > 1e-3, "the adapter does something"
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_loras_of_a_process(
    trained: Callable[[str], Path], run_process: Callable[..., Any], t5_folder: Path, tmp_path: Path
) -> None:
    folder = trained("poly")
    done = run_process(f"run={folder}", "to=out/loras", cwd=tmp_path, command="export")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "out/loras: 3 LoRAs, a folder each · load it with "
        "peft.PeftModel.from_pretrained(base, DIR/TASK)"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing but its own folder"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["loras"]
    for task, name in enumerate(TASKS):
        theirs = peft.PeftModel.from_pretrained(base(t5_folder), str(tmp_path / "out/loras" / name))
        close(logits(theirs.eval()), wanted(t5_folder, folder, task))


def test_a_merged_model_of_a_process(
    trained: Callable[[str], Path], run_process: Callable[..., Any], t5_folder: Path, tmp_path: Path
) -> None:
    folder = trained("poly")
    done = run_process(
        f"run={folder}", "to=model", "format=merged", "task=upper", cwd=tmp_path, command="export"
    )
    assert done.code == 0, done.err
    assert "load it with AutoModelForSeq2SeqLM.from_pretrained(DIR)" in done.out
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.05)
    close(logits(model), wanted(t5_folder, folder, 2))
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("a").input_ids


@pytest.mark.parametrize("task", ["first", "1"])
def test_one_lora(
    task: str,
    trained: Callable[[str], Path],
    export: Callable[..., Any],
    t5_folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "lora").mkdir()  # an empty folder may be there
    done = export(f"run={trained('poly')}", "to=lora", f"task={task}")
    assert done.code == 0, done.err
    theirs = peft.PeftModel.from_pretrained(base(t5_folder), str(tmp_path / "lora")).eval()
    close(logits(theirs), wanted(t5_folder, trained("poly"), 1))


def test_the_whole_adapter(
    trained: Callable[[str], Path], export: Callable[..., Any], t5_folder: Path, tmp_path: Path
) -> None:
    done = export(f"run={trained('poly')}", "to=adapter", "format=poly")
    assert done.code == 0, done.err
    assert "peft.PeftModel.from_pretrained(base, DIR)" in done.out
    theirs = peft.PeftModel.from_pretrained(base(t5_folder), str(tmp_path / "adapter")).eval()
    found = logits(theirs, task_ids=torch.full((4,), 2))
    close(found, wanted(t5_folder, trained("poly"), 2))
    assert json.loads((tmp_path / "adapter" / "tasks.json").read_text())["upper"] == 2


def _one_line(done: Any, *, left: tuple[str, ...] = ()) -> str:
    assert done.code == 1, done.out
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert len(lines) == 1, done.err
    assert sorted(path.name for path in done.cwd.iterdir()) == [*left], "nothing half-written"
    return lines[0]


@pytest.mark.parametrize("arguments", [["format=lora"], ["format=merged", "task=copy"]])
def test_input_routing_has_no_lora(
    arguments: list[str], trained: Callable[[str], Path], export: Callable[..., Any]
) -> None:
    line = _one_line(export(f"run={trained('mope')}", "to=out", *arguments))
    assert line.startswith(arguments[0])
    assert "poly_type='mope': it is routed by the input, so a task has no weights" in line


def test_input_routing_goes_whole(
    trained: Callable[[str], Path], export: Callable[..., Any], t5_folder: Path, tmp_path: Path
) -> None:
    done = export(f"run={trained('mope')}", "to=out", "format=poly")
    assert done.code == 0, done.err
    assert "polylab.PolyModel.from_pretrained(base, DIR) (PEFT has no such adapter)" in done.out
    assert PolyModel.from_pretrained(base(t5_folder), tmp_path / "out").poly_layers()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["format=lroa"], ["format=lroa is not known", "did you mean lora?", "poly, merged"]),
        (["task=uper"], ["task=uper: the run has no such task", "did you mean upper?", "copy, fi"]),
        (["task=3"], ["task=3: the run has no such task", "valid: copy, first, upper"]),
        (["format=merged"], ["format=merged needs one task", "valid: copy, first, upper"]),
        (["format=poly", "task=copy"], ["task=copy: format=poly holds all tasks"]),
        (["to=???"], ["to is not set"]),
        (["taks=copy"], ["unknown key 'taks'", "did you mean task?", "format, run, task, to"]),
        (["run=no/run"], ["run=no/run: there is no such folder"]),
    ],
)
def test_one_line_for_a_mistake(
    arguments: list[str],
    parts: list[str],
    trained: Callable[[str], Path],
    export: Callable[..., Any],
) -> None:
    line = _one_line(export(f"run={trained('poly')}", "to=out", *arguments))
    assert all(part in line for part in parts), line


def test_a_folder_in_use_is_kept(
    trained: Callable[[str], Path], export: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    line = _one_line(export(f"run={trained('poly')}", "to=mine"), left=("mine",))
    assert "to=mine: this folder is not empty" in line
    line = _one_line(export(f"run={trained('poly')}", "to=mine/file"), left=("mine",))
    assert "to=mine/file is a file" in line
    line = _one_line(export(f"run={trained('poly')}", "to=mine/file/deep"), left=("mine",))
    assert line.startswith("to=mine/file/deep: ")
    assert (tmp_path / "mine" / "file").read_text() == "kept"


@pytest.fixture
def copied(trained: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder to be damaged."""
    folder = tmp_path_factory.mktemp("copied") / "run"
    shutil.copytree(trained("poly"), folder)
    return folder


def test_a_run_without_an_adapter(copied: Path, export: Callable[..., Any]) -> None:
    shutil.rmtree(copied / "adapter")
    assert "there is no adapter/ in it: it did not finish" in _one_line(
        export(f"run={copied}", "to=out")
    )
    config = OmegaConf.load(copied / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"adapter": None}), copied / "config.yaml")
    line = _one_line(export(f"run={copied}", "to=out"))
    assert "the run had none (adapter=none)" in line
    (copied / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in _one_line(export(f"run={copied}", "to=out"))
    (copied / "config.yaml").write_text("a: 1")
    assert "config.yaml has no backbone" in _one_line(export(f"run={copied}", "to=out"))
    (copied / "config.yaml").unlink()
    assert "it has no config.yaml, so it is no run's folder · give runs/EXP" in _one_line(
        export(f"run={copied}", "to=out")
    )
    for job in ("0", "1"):  # a sweep's folder
        (copied / job).mkdir()
        (copied / job / "config.yaml").touch()
    assert f"give one of the runs in it, run={copied / '0'}" in _one_line(
        export(f"run={copied}", "to=out")
    )


def test_damaged_metrics(copied: Path, export: Callable[..., Any]) -> None:
    (copied / "metrics.json").write_text('{"test": {')
    assert "metrics.json is damaged: Expecting" in _one_line(export(f"run={copied}", "to=out"))


@pytest.mark.parametrize("how", ["format=lora", "format=poly"])
def test_a_damaged_adapter(how: str, copied: Path, export: Callable[..., Any]) -> None:
    weights = copied / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    line = _one_line(export(f"run={copied}", "to=out", how))
    assert "adapter_model.safetensors is damaged" in line
    (copied / "adapter" / "tasks.json").write_text("[1]")
    assert "tasks.json: an object of task names" in _one_line(
        export(f"run={copied}", "to=out", how)
    )


def test_a_backbone_that_is_gone(copied: Path, export: Callable[..., Any]) -> None:
    config = OmegaConf.load(copied / "config.yaml")
    config.backbone.name_or_path = "./gone"
    OmegaConf.save(config, copied / "config.yaml")
    line = _one_line(export(f"run={copied}", "to=out"))
    assert "backbone.name_or_path=./gone" in line


def test_a_disk_that_fills_up_leaves_nothing(
    trained: Callable[[str], Path], export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PolyModel.export_lora

    def second_fails(self: PolyModel, task: int, folder: Path) -> None:
        whole(self, task, folder)
        if task == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(PolyModel, "export_lora", second_fails)
    line = _one_line(export(f"run={trained('poly')}", "to=out"))
    assert line == "to=out: [Errno 28] No space left on device"
