"""A finished run evaluated again: the same numbers, other routings, other data; and `load`."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import polylab
from polylab.training.journal import Answers, Journal

KILLED = """
import os, signal
from polylab.training.journal import Journal
add = Journal.add

def counted(self, index, answers):
    add(self, index, answers)
    if len(self) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.add = counted
from polylab.evaluate import main
main()
"""


def _metrics(folder: Path) -> Any:
    return json.loads((folder / "metrics.json").read_text())


def _predictions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("adapter", ["poly", "mope"])
def test_the_numbers_are_those_of_the_run(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path, adapter: str
) -> None:
    folder = named(adapter)
    wanted = _metrics(folder)
    assert evaluate(folder).code == 0
    found = _metrics(tmp_path / "out")
    assert found["test"] == wanted["test"]
    assert found["checkpoint"] == wanted["checkpoint"]
    assert found["trainable_parameters"] == wanted["trainable_parameters"]
    lines = _predictions(tmp_path / "out")
    assert [*lines[0]] == ["task", "input", "prediction", "references"]
    assert len(lines) == 2 * len(wanted["test"]["tasks"])
    assert evaluate(folder, "split=validation", out="val").code == 0
    assert _metrics(tmp_path / "val")["val"] == wanted["val"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != ".hydra") == [
        "config.yaml",
        "metrics.json",
        "predictions.jsonl",
    ]


def test_a_killed_evaluation_goes_on(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    folder = named()
    assert evaluate(folder, "batch_size=1", out="whole").code == 0
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, f"run={folder}", "batch_size=1", "hydra.run.dir=out"],
        cwd=tmp_path,
        capture_output=True,
        timeout=240,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    journal = tmp_path / "out" / "answers.jsonl"
    assert journal.read_bytes().count(b"\n") == 4
    assert not (tmp_path / "out" / "metrics.json").exists()
    with journal.open("ab") as file:
        file.write(b"[5, [1.0")  # what a full disk may leave
    done = evaluate(folder, "batch_size=1")
    assert done.code == 0, done.err
    assert "going on after 3 of 6 batches" in done.out
    found, wanted = (_metrics(tmp_path / name) for name in ("out", "whole"))
    assert found["test"] == wanted["test"]
    assert _predictions(tmp_path / "out") == _predictions(tmp_path / "whole")


def test_routing_and_tasks(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    folder = named()
    whole = _metrics(folder)["test"]
    assert evaluate(folder, "routing=top1", "task=[copy,upper]").code == 0
    found = _metrics(tmp_path / "out")["test"]
    assert [*found["tasks"]] == ["copy", "upper"]
    assert found["tasks"]["copy"]["loss"] != whole["tasks"]["copy"]["loss"]
    assert evaluate(folder, "task=copy", out="one").code == 0
    one = _metrics(tmp_path / "one")["test"]["tasks"]["copy"]["loss"]
    assert one == pytest.approx(whole["tasks"]["copy"]["loss"], rel=1e-5)
    assert evaluate(folder, "task=copy", "routing=task:upper", out="other").code == 0
    other = _metrics(tmp_path / "other")["test"]["tasks"]["copy"]["loss"]
    assert other != pytest.approx(one, rel=1e-5)


@pytest.fixture
def other_data(tmp_path: Path) -> Path:
    folder = tmp_path / "others"
    (folder / "test").mkdir(parents=True)
    for name in ("copy", "copy_all"):
        rows = "".join(f'{{"input": "{name} {i}", "target": "{i}"}}\n' for i in range(3))
        (folder / f"{name}.jsonl").write_text(rows.replace("input", "input", 1))
        (folder / "test" / f"{name}.jsonl").write_text(rows.replace(name, f"test {name}"))
    (folder / "instructions.json").write_text('{"copy": ["Copy it."], "copy_all": ["Copy it."]}')
    return folder


def test_options_are_ranked(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path, other_data: Path
) -> None:
    path = other_data / "test" / "copy.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "options": [*"0123"]}) + "\n" for r in rows))
    given = [named(), "data=jsonl", f"data.path={other_data}", "zero_shot=mean"]
    done = evaluate(*given)
    assert done.code == 0, done.err
    found = _metrics(tmp_path / "out")["test"]
    assert "rank_accuracy" not in found["tasks"]["copy_all"]
    lines = _predictions(tmp_path / "out")
    assert all("options" not in line for line in lines if line["task"] == "copy_all")
    ranked = [line for line in lines if line["task"] == "copy"]
    right = [max(x["options"], key=x["options"].get) in x["references"] for x in ranked]
    assert found["macro"]["rank_accuracy"] == pytest.approx(sum(right) / 3)
    assert found["intervals"]["macro"]["rank_accuracy"][1] >= sum(right) / 3
    assert "rank_accuracy" in done.out
    config = named() / "config.yaml"
    assert OmegaConf.load(config).module.rank_options == "mean"


def test_unknown_tasks_are_refused_or_routed_as_said(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path, other_data: Path
) -> None:
    given = [named(), "data=jsonl", f"data.path={other_data}"]
    done = evaluate(*given)
    assert done.code == 1
    assert "the run knows no 'copy_all'" in done.err
    assert "zero_shot=mean|nearest|input" in done.err
    assert evaluate(*given, "task=copy", out="known").code == 0
    assert evaluate(*given, "zero_shot=mean", out="mean").code == 0
    assert [*_metrics(tmp_path / "mean")["test"]["tasks"]] == ["copy", "copy_all"]
    done = evaluate(*given, "zero_shot=input", out="input")
    assert (done.code, "is routed by task ids" in done.err) == (1, True)
    done = evaluate(*given, "zero_shot=nearest", out="nearest")
    assert done.code == 1
    assert "no description and no instruction" in done.err
    given[0] = named("mope")
    assert evaluate(*given, "zero_shot=input", out="mope").code == 0
    assert [*_metrics(tmp_path / "mope")["test"]["tasks"]] == ["copy", "copy_all"]
    done = evaluate(*given, "zero_shot=mean", out="mope_mean")
    assert (done.code, "is routed by the input" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["routing=unifrom"], "routing=unifrom is not known · did you mean uniform?"),
        (["split=tset"], "split=tset is not known · did you mean test?"),
        (["task=cpy"], "task=cpy: the data has no such task · did you mean copy?"),
        (["+trainer.devices=2"], "trainer is not read · the run is evaluated on one device"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["zero_shot=some"], "zero_shot=some is not known"),
    ],
)
def test_mistakes(
    named: Callable[..., Path],
    evaluate: Callable[..., Any],
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    done = evaluate(named(), *arguments)
    assert done.code == 1
    assert says in done.err
    assert done.err.count("\n") == 1
    assert [p.name for p in (tmp_path / "out").glob("*") if p.name != ".hydra"] == []


def test_the_folder_of_another_evaluation(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    Journal(tmp_path / "out" / "answers.jsonl", about={"run": "another"})
    (tmp_path / "out" / "config.yaml").write_text("its own\n")
    done = evaluate(named())
    assert done.code == 1
    assert "is of another evaluation (other adapter, answers, batches, config, " in done.err
    assert (tmp_path / "out" / "config.yaml").read_text() == "its own\n"
    done = evaluate(named(), out=str(named()))
    assert (done.code, "is a run's folder" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (["data.path=again"], None),  # the same examples at another place
        (["data.path=changed"], "examples"),
        (["data.prompt=none"], "examples"),
        (["precision=bf16-true"], "config"),
        (["routing=top1"], "routing"),
    ],
)
def test_a_killed_evaluation_of_something_else_is_not_continued(
    named: Callable[..., Path],
    evaluate: Callable[..., Any],
    tmp_path: Path,
    other_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    differs: str | None,
) -> None:
    for name in ("again", "changed"):
        shutil.copytree(other_data, tmp_path / name)
    path = tmp_path / "changed" / "test" / "copy.jsonl"
    path.write_text(path.read_text().replace('"target": "1"', '"target": "7"'))

    def killed(*_: object, **_named: object) -> None:
        raise KeyboardInterrupt

    given = [named(), "data=jsonl", f"data.path={other_data}", "task=copy", "batch_size=1"]
    with monkeypatch.context() as patch:
        patch.setattr("polylab.evaluate.save", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*given)
    done = evaluate(*given, *change)
    if differs is None:
        assert done.code == 0, done.err
        assert "going on after 3 of 3 batches" in done.out
    else:
        assert done.code == 1
        assert f"is of another evaluation (other {differs})" in done.err


def test_the_training_split(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    folder = named()
    assert evaluate(folder, "split=train", "examples_per_task=3").code == 0
    found = _metrics(tmp_path / "out")
    assert {"val", "test"}.isdisjoint(found)
    assert len(_predictions(tmp_path / "out")) == 9
    data = polylab.load(folder).config.data
    rows = [json.loads(s) for s in (Path(data.path) / "copy.jsonl").read_text().splitlines()]
    texts = {line["input"].removeprefix("copy: ") for line in _predictions(tmp_path / "out")[:3]}
    assert texts <= {row["input"] for row in rows}


def test_a_run_that_was_killed_while_it_was_saved(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(named(), tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    done = evaluate(tmp_path / "run")
    assert (done.code, "stopped while it was saved" in done.err) == (1, True)


def test_the_nearest_task_needs_the_data_of_the_run(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path, other_data: Path
) -> None:
    shutil.copytree(named(), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    found = OmegaConf.load(path)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "some.jsonl").write_text('{"input": "a", "target": "b"}\n')
    found.data.path = str(tmp_path / "gone")
    found.data.source.path = str(tmp_path / "gone")
    OmegaConf.save(found, path)
    given = [tmp_path / "run", "data=jsonl", f"data.path={other_data}", "zero_shot=nearest"]
    done = evaluate(*given)
    assert done.code == 1
    assert "the run's own data has none of its tasks 'copy', 'first', 'upper' any more" in done.err


def test_load(named: Callable[..., Path]) -> None:
    run = polylab.load(named())
    assert run.tasks == ["copy", "first", "upper"]
    assert run.metrics == _metrics(named())
    assert not run.model.training
    table = run.allocation()
    assert table.shape == (3, 3)
    assert list(table.index) == run.tasks
    assert table.to_numpy().sum(1) == pytest.approx([1, 1, 1])
    weights = run.model.task_weights()
    name = list(weights)[-1]
    found = torch.tensor(run.allocation(layer=name, split=0).to_numpy())
    assert torch.equal(found, weights[name][:, 0])
    answers = run.generate(["a b", "a longer input"], task="upper", max_new_tokens=3)
    assert len(answers) == 2
    assert run.generate(["a b"], task="upper", max_new_tokens=3) == answers[:1]
    with pytest.raises(ValueError, match="'uper' is none of the run's"):
        run.generate(["a"], task="uper")
    with pytest.raises(ValueError, match=r"the run generates .* use generate"):
        run.classify(["a"], task="upper")
    with pytest.raises(ValueError, match="say whose routing"):
        run.generate(["a"])
    with pytest.raises(ValueError, match="is none of the layers"):
        run.allocation(layer="nowhere")
    with pytest.raises(ValueError, match="from 0 to 0"):
        run.allocation(split=1)
    with pytest.raises(ValueError, match="no such folder"):
        polylab.load("nowhere")


def test_the_answers_are_those_of_the_evaluation(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    """Of the whole input: the run's prompt puts the task's name before it."""
    assert evaluate(named(), "task=upper").code == 0
    lines = _predictions(tmp_path / "out")
    run = polylab.load(named())
    found = run.generate([line["input"] for line in lines], task="upper")
    assert found == [line["prediction"] for line in lines]
    assert all(line["input"].startswith("upper: ") for line in lines)


def test_a_journal_gives_back_every_bit(tmp_path: Path) -> None:
    losses, tokens = torch.randn(5).exp() * 1e-3, torch.tensor([1, 2, 3, 4, 5])
    choices = [{}, *({"a": x} for x in torch.randn(4).tolist())]
    answers = Answers(losses, tokens, ["é\n"] * 5, choices)
    journal = Journal(tmp_path / "j", about={"a": 1})
    journal.add(3, answers)
    found = Journal(tmp_path / "j", about={"a": 1})
    assert len(found) == 1
    assert found.find(0) is None
    again = found.find(3)
    assert again is not None
    assert torch.equal(again.losses, answers.losses)
    assert torch.equal(again.tokens, answers.tokens)
    assert (again.texts, again.choices) == (answers.texts, choices)
    with pytest.raises(ValueError, match="of another evaluation"):
        Journal(tmp_path / "j", about={"a": 2})
    lines = (tmp_path / "j").read_text().splitlines()
    (tmp_path / "j").write_text("\n".join([lines[0], "[1, ", lines[1], ""]))
    with pytest.raises(ValueError, match=r"j:2: .* remove the file"):
        Journal(tmp_path / "j", about={"a": 1})
