"""Few-shot adaptation of a finished run, by the command."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import polylab
from polylab import PolyModel
from polylab.adaptation.methods import METHODS, attached
from polylab.adaptation.shots import Shots, draw_shots
from polylab.data import Example, TaskData

KILLED = """
import os, signal
from polylab.adaptation.table import Results
add = Results.add

def counted(self, *args, **kwargs):
    add(self, *args, **kwargs)
    if len(self.rows) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Results.add = counted
from polylab.adapt import main
main()
"""


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method(
    trained: Callable[..., Path], adapt: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    folder = trained("lora" if method == "shared" else "poly")
    done = adapt(folder, f"adapt={method}")
    assert done.code == 0, done.err
    rows = _rows(tmp_path / "out")
    units = [(row["task"], row["seed"]) for row in rows]
    assert units == [("double", "0"), ("double", "5"), ("last", "0"), ("last", "5")]
    assert {row["method"] for row in rows} == {method}
    (line,) = [line for line in done.out.splitlines() if " double " in line]
    assert line.count("[") == line.count("]") == 4  # metrics with their intervals, on one line
    assert {row["shots"] for row in rows} == {"6"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    losses = sorted(float(row["loss"]) for row in rows[:2])
    assert summary["metrics"]["loss"]["tasks"]["double"]["median"] == pytest.approx(sum(losses) / 2)


def test_the_numbers_that_train(
    trained: Callable[..., Path], adapt: Callable[..., Any], tmp_path: Path
) -> None:
    run = polylab.load(trained())
    skills = sum(p.numel() for n, p in run.model.named_parameters() if "poly_lora" in n)
    layers = sum(n.endswith("poly_router.default.logits") or "poly_router" in n
                 for n, _ in run.model.named_parameters())  # fmt: skip
    counts = {}
    for method in ("poly", "z", "mu", "lora"):
        assert adapt(trained(), f"adapt={method}", "adapt.seeds=[0]", out=method).code == 0
        (counts[method],) = {int(row["parameters"]) for row in _rows(tmp_path / method)}
    assert counts["z"] == 3 * layers  # a row of 3 skills in every layer
    assert counts["poly"] == skills + counts["z"]
    assert counts["mu"] == counts["lora"] == skills // 3


def test_a_row_does_not_depend_on_what_else_is_adapted(
    trained: Callable[..., Path], adapt: Callable[..., Any], tmp_path: Path
) -> None:
    assert adapt(trained(), "adapt=poly").code == 0
    assert (
        adapt(trained(), "adapt=poly", "adapt.tasks=[last]", "adapt.seeds=[5]", out="one").code == 0
    )
    assert _rows(tmp_path / "one") == _rows(tmp_path / "out")[3:]


def test_a_killed_command_goes_on(
    trained: Callable[..., Path], adapt: Callable[..., Any], few_shot: list[str], tmp_path: Path
) -> None:
    assert adapt(trained(), "adapt=z", out="whole").code == 0
    given = [*few_shot, f"run={trained()}", f"hydra.run.dir={tmp_path / 'out'}", "adapt=z"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *given], cwd=tmp_path, capture_output=True, timeout=240
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(_rows(tmp_path / "out")) == 3
    done = adapt(trained(), "adapt=z")
    assert done.code == 0, done.err
    assert "3 of 4 are there already" in done.out
    assert _rows(tmp_path / "out") == _rows(tmp_path / "whole")
    done = adapt(trained(), "adapt=z", "adapt.steps=2")
    assert done.code == 1
    assert "has results of adapt.steps=3" in done.err


@pytest.mark.parametrize("when", ["rows", "summary"])
def test_a_full_disk(
    trained: Callable[..., Path],
    adapt: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    one = ["adapt=z", "adapt.tasks=[last]"]
    before, count = os.replace, {"results.csv": 0, "summary.json": 0}

    def full(source: Any, target: Any) -> None:
        name = Path(target).name
        count[name] = count.get(name, 0) + 1
        if (when == "rows" and count["results.csv"] == 2) or count["summary.json"] == 1:
            raise OSError(28, "No space left on device")
        before(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        done = adapt(trained(), *one)
    assert done.code == 1
    (line,) = done.err.splitlines()
    out = tmp_path / "out"
    assert line.startswith(f"{out} cannot be written: [Errno 28] No space left on device")
    assert len(_rows(out)) == (1 if when == "rows" else 2)
    assert not [path for path in out.iterdir() if path.name.startswith(".results")]
    done = adapt(trained(), *one)
    assert (done.code, len(_rows(out))) == (0, 2)
    assert f"{1 if when == 'rows' else 2} of 2 are there already" in done.out


def test_old_tasks_answer_as_before(
    trained: Callable[..., Path], adapt: Callable[..., Any], t5_folder: Path, tmp_path: Path
) -> None:
    done = adapt(trained(), "adapt=z", "adapt.save=true", "adapt.seeds=[0]", "optim.router_lr=1")
    assert done.code == 0, done.err
    place = tmp_path / "out" / "adapters" / "double" / "seed_0"
    names = json.loads((place / "tasks.json").read_text())
    assert [*names] == ["copy", "first", "upper", "double"]

    def logits(folder: Path, task: int) -> torch.Tensor:
        base = AutoModelForSeq2SeqLM.from_pretrained(t5_folder)
        model = PolyModel.from_pretrained(base, folder).eval()
        ids = torch.arange(3, 23).view(4, 5)
        with torch.no_grad():
            return model(input_ids=ids, labels=ids, task_ids=torch.full((4,), task)).logits

    for task in range(3):
        assert torch.equal(logits(place, task), logits(trained() / "adapter", task))
    assert not torch.equal(logits(place, 3), logits(place, 2))


def test_folders_of_adapters_do_not_depend_on_the_chosen_tasks(
    trained: Callable[..., Path], adapt: Callable[..., Any], new_tasks: Path, tmp_path: Path
) -> None:
    rows = (new_tasks / "last.jsonl").read_text()
    for name in ("a b", "a_b"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    for name in ("a b", "a_b"):
        given = [f"data.path={tmp_path}", f'adapt.tasks=["{name}"]', "adapt.seeds=[0]"]
        done = adapt(trained(), *given, "adapt=z", "adapt.save=true", "adapt.steps=1")
        assert done.code == 0, done.err
    names = {path.name: path for path in (tmp_path / "out" / "adapters").iterdir()}
    assert {*names} == {"a_b_0", "a_b_1"}
    assert [*json.loads((names["a_b_1"] / "seed_0" / "tasks.json").read_text())][-1] == "a_b"


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_what_it_was(trained: Callable[..., Path], method: str) -> None:
    run = polylab.load(trained("lora" if method == "shared" else "poly"))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with attached(run.model, method, task="new"):
        trainable = [p for p in run.model.parameters() if p.requires_grad]
        assert trainable
        with torch.no_grad():
            for parameter in trainable:
                parameter.add_(1)
    after = run.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(p.grad is not None for p in run.model.parameters())


@pytest.mark.parametrize(
    ("adapter", "arguments", "says"),
    [
        ("poly", ["adapt=shared"], "no adapter that all tasks share"),
        ("lora", ["adapt=z"], "has no row of a task's own"),
        ("private", ["adapt=poly"], "whose skills no router mixes"),
        ("poly", ["adapt.shots=500"], "adapt.shots=500: task 'double' has too few"),
        ("poly", ["adapt.tasks=[doubel]"], "did you mean double?"),
        ("poly", ["adapt.seeds=[1,1]"], "adapt.seeds=[1, 1]"),
        ("poly", ["adapt=polly"], "adapt=polly"),
        ("poly", ["adapt.monitor=f2"], "adapt.monitor=f2"),
        ("poly", ["run=nowhere"], "run=nowhere: there is no such folder"),
        ("poly", ["run=."], "run=.: it has no config.yaml"),
        ("poly", ["data.path=nowhere"], "nowhere"),
        ("poly", ["adapt.tasks=[]"], "adapt.tasks=[] · give each task once, and at least one"),
        ("poly", ["adapt.tasks=[last,last]"], "give each task once"),
        ("poly", ["trainer.max_steps=7"], "trainer.max_steps=7 with adapt.steps=3"),
        ("poly", ["trainer.compile=true"], "trainer.compile=true"),
        ("poly", ["trainer.precision=bf16-true"], "trainer.precision=bf16-true casts"),
        ("poly", ["trainer.precision=64"], "trainer.precision=64 casts"),
        ("poly", ["optim.anneal_steps=2"], "optim.anneal_steps=2"),
        ("poly", ["trainer=ddp", "trainer.devices=2"], "trainer.devices=2 makes 2 ranks"),
        ("poly", ["trainer=fsdp"], "trainer.strategy=ShardedStrategy · this command adapts one"),
    ],
)
def test_mistakes(
    trained: Callable[..., Path],
    adapt: Callable[..., Any],
    tmp_path: Path,
    adapter: str,
    arguments: list[str],
    says: str,
) -> None:
    done = adapt(trained(adapter), *arguments)
    assert done.code == 1
    assert says in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out" / "results.csv").exists()


def test_the_runs_own_tasks(
    trained: Callable[..., Path], adapt: Callable[..., Any], task_folder: Path
) -> None:
    done = adapt(trained(), f"data.path={task_folder}", "adapt.tasks=[upper]")
    assert done.code == 1
    assert "data: upper: tasks of run=" in done.err
    assert "choose others" in done.err


def test_a_run_that_did_not_finish(
    trained: Callable[..., Path], adapt: Callable[..., Any], tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(trained(), cut)
    (cut / "adapter" / "adapter_model.safetensors").write_bytes(b"12345678{")
    done = adapt(cut)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith(f"run={cut}: ")
    assert "adapter_model.safetensors" in line
    shutil.rmtree(cut / "adapter")
    assert "there is no adapter/ in it: it did not finish" in adapt(cut).err


def test_shots_are_apart_from_what_is_held_out() -> None:
    task = TaskData(
        "t",
        [Example(f"x {i % 50}", str(i)) for i in range(80)],
        [Example(f"x {i}", "v") for i in range(5)],
        [Example(f"x {i}", "t") for i in range(5, 12)],
    )
    shots = Shots(train=9, validation=4, max_validation=3, max_test=6, eval_seed=0)
    drawn = [draw_shots(task, shots, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0].train != drawn[2].train
    assert (drawn[0].validation, drawn[0].test) == (drawn[2].validation, drawn[2].test)
    for found in drawn:
        texts = [example.input for example in found.train]
        assert len({*texts}) == 9
        assert not {*texts} & {f"x {i}" for i in range(12)}
        assert [len(found.validation), len(found.test)] == [3, 6]
    own = TaskData("t", task.train, (), task.test)
    found = draw_shots(own, shots, seed=0)
    assert len(found.validation) == 4
    assert not {e.input for e in found.validation} & {e.input for e in found.train}
    assert found.train == draw_shots(own, Shots(**{**vars(shots), "validation": 9}), seed=0).train
