"""Several routings compared: by the command, killed and gone on, and from Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import polylab
from polylab.evaluating.preparation import Evaluation
from polylab.runs import Run

ALL = ["learned", "rounded", "top1", "uniform", "shuffled", "drop:0", "drop:1", "drop:2"]
BOUND = "examples_per_task=2"


def _written(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".hydra")


@pytest.fixture(scope="module")
def compared(
    named: Callable[..., Path],
    run_here: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """A whole study of a tiny run; the folder and what was said."""
    cwd = tmp_path_factory.mktemp("study")
    given = [f"run={named()}", "routing=study", BOUND, "hydra.run.dir=out"]
    done = run_here(*given, cwd=cwd, command="evaluate")
    assert done.code == 0, done.err
    return cwd / "out", done.out


@pytest.mark.parametrize("routing", ["uniform", "drop:1"])
def test_a_study_has_the_numbers_of_single_evaluations(
    compared: Any,
    named: Callable[..., Path],
    evaluate: Callable[..., Any],
    tmp_path: Path,
    routing: str,
) -> None:
    folder, _ = compared
    assert evaluate(named(), f"routing={routing}", BOUND).code == 0
    single = json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]
    whole = json.loads((folder / "metrics.json").read_text())["test"]
    table = pd.read_csv(folder / "interventions.csv")
    rows = table[table.routing == routing].set_index("metric")
    for metric, (low, high) in single["intervals"]["macro"].items():
        assert rows.value[metric] == pytest.approx(single["macro"][metric])
        assert (rows.low[metric], rows.high[metric]) == pytest.approx((low, high))
        change = single["macro"][metric] - whole["macro"][metric]
        assert rows.change[metric] == pytest.approx(change)
    losses = {task: own["loss"] for task, own in single["tasks"].items()}
    assert rows.value["loss"] == pytest.approx(np.mean([*losses.values()]), rel=1e-6)
    if routing == "drop:1":
        cells = pd.read_csv(folder / "knockout.csv").query("skill == 1 and metric == 'loss'")
        wanted = [losses[task] - whole["tasks"][task]["loss"] for task in cells.task]
        assert cells.change.tolist() == pytest.approx(wanted, rel=1e-5)


def test_what_a_study_leaves(compared: Any, named: Callable[..., Path]) -> None:
    folder, said = compared
    assert _written(folder) == [
        *("config.yaml", "figures", "findings.txt", "interventions.csv", "knockout.csv"),
        *("metrics.json", "predictions.jsonl"),
    ]
    assert _written(folder / "figures") == ["knockout.pdf", "knockout.png"]
    table = pd.read_csv(folder / "interventions.csv")
    assert table.routing.unique().tolist() == ALL
    numbers = ["value", "low", "high", "change", "change_low", "change_high"]
    assert [*table.columns] == ["routing", "metric", *numbers]
    assert ((table.change_low <= table.change) & (table.change <= table.change_high)).all()
    cells = pd.read_csv(folder / "knockout.csv")
    assert len(cells) == 3 * 3 * table.metric.nunique()
    allocation = polylab.load(named()).allocation().to_numpy() * 3
    found = cells[cells.metric == "loss"].pivot(index="task", columns="skill", values="allocation")
    np.testing.assert_allclose(found.to_numpy(), allocation, rtol=1e-5)
    assert "8 routings x 6 examples of 3 tasks" in said
    assert "8/8 drop:2" in said
    for sentence in (folder / "findings.txt").read_text().splitlines():
        assert sentence in " ".join(said.split())
    told = said.split("means over")[1].split("\ntest, ")[0]
    assert max(map(len, told.splitlines())) <= 80


def test_a_killed_study_goes_on(
    compared: Any,
    named: Callable[..., Path],
    evaluate: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = Evaluation.ask

    def killed(self: Evaluation, routing: str, journal: Any) -> None:
        if routing == "top1":
            raise KeyboardInterrupt
        ask(self, routing, journal)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "ask", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(named(), "routing=study", BOUND)
    assert "rounded.jsonl" in _written(tmp_path / "out" / "answers")
    assert not (tmp_path / "out" / "metrics.json").exists()
    refused = evaluate(named(), "routing=study", BOUND, "answers=false")
    assert (refused.code, "(other answers)" in refused.err) == (1, True)
    done = evaluate(named(), "routing=study", BOUND)
    assert done.code == 0, done.err
    known = [line for line in done.out.splitlines() if "of 1 batches were known" in line]
    assert [line.split()[1] for line in known] == ["learned", "rounded"]
    for name in ("interventions.csv", "knockout.csv", "predictions.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (compared[0] / name).read_bytes()


@pytest.fixture(scope="module")
def loaded(named: Callable[..., Path]) -> Run:
    return polylab.load(named())


def test_the_same_from_python(compared: Any, loaded: Run) -> None:
    state, model = torch.get_rng_state(), loaded.model
    before = {name: p.clone() for name, p in model.state_dict().items()}
    found = loaded.study(examples_per_task=2)
    pd.testing.assert_frame_equal(
        found.interventions, pd.read_csv(compared[0] / "interventions.csv"), rtol=1e-5
    )
    pd.testing.assert_frame_equal(
        found.knockout, pd.read_csv(compared[0] / "knockout.csv"), rtol=1e-5
    )
    assert found.findings() == (compared[0] / "findings.txt").read_text().splitlines()
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_part_of_a_study_by_the_loss(loaded: Run) -> None:
    found = loaded.study(["shuffled"], split="validation", tasks=["copy", "upper"], answers=False)
    assert found.interventions.routing.tolist() == ["learned", "shuffled"]
    assert found.interventions.metric.unique().tolist() == ["loss"]
    assert found.effects.tasks == ["copy", "upper"]
    assert found.result["macro"] == {}
    assert found.allocation is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": "tset"}, r"split=tset is not known · did you mean test\?"),
        ({"routings": ["uniform", "drop:7"]}, r"routing 'drop:7': no skill '7'.*0 to 2"),
        ({"routings": ["unifrm"]}, r"routing=unifrm is not known · did you mean uniform\?"),
        ({"routings": ["top1", "top1"]}, r"holds top1 twice"),
        ({"tasks": ["cpy"]}, r"task=cpy: the data has no such task · did you mean copy"),
        ({"metric": "exact"}, r"metric=exact is none of this evaluation's.*loss, exact_match"),
        ({"metric": "rouge_l", "answers": False}, r"metric=rouge_l .* valid: loss · with answers"),
    ],
)
def test_mistakes_in_python(loaded: Run, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded.study(**{"examples_per_task": 1, **given})


@pytest.mark.parametrize(
    ("adapter", "arguments", "says"),
    [
        ("poly", ["routing=studdy"], "routing=studdy is not known · did you mean study?"),
        ("poly", ["routing=[study,uniform]"], "study holds all of them · give it alone"),
        ("poly", ["routing=[]"], "must be a name or a list of them"),
        ("poly", ["routing=[uniform,drop:3]"], "routing 'drop:3': no skill '3'"),
        ("poly", ["routing=study", "metric=exactmatch"], "did you mean exact_match?"),
        ("lora", ["routing=study"], "this adapter has one skill"),
        ("mope", ["routing=[shuffled]", "batch_size=1"], "3 of 3 batches have one row"),
        ("mope", ["routing=shuffled", "batch_size=1"], "3 of 3 batches have one row"),
    ],
)
def test_mistakes(
    named: Callable[..., Path],
    evaluate: Callable[..., Any],
    tmp_path: Path,
    adapter: str,
    arguments: list[str],
    says: str,
) -> None:
    done = evaluate(named(adapter), *arguments, "examples_per_task=1")
    assert done.code == 1
    assert says in done.err
    assert done.err.count("\n") == 1
    assert _written(tmp_path / "out") == []


def test_a_router_by_input(
    named: Callable[..., Path], evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    done = evaluate(named("mope"), "routing=study", "answers=false", BOUND, "batch_size=6")
    assert done.code == 0, done.err
    folder = tmp_path / "out"
    assert _written(folder) == [
        *("config.yaml", "figures", "findings.txt", "interventions.csv", "knockout.csv"),
        "metrics.json",
    ]
    table = pd.read_csv(folder / "interventions.csv")
    assert table.routing.tolist() == ALL
    assert "another example's allocation" in (folder / "findings.txt").read_text()
    cells = pd.read_csv(folder / "knockout.csv")
    sums = cells.groupby("task").allocation.sum()
    assert sums.tolist() == pytest.approx([3, 3, 3], rel=1e-5)
    assert evaluate(named("mope"), "routing=drop:1", "answers=false", BOUND, out="one").code == 0
    single = json.loads((tmp_path / "one" / "metrics.json").read_text())["test"]["tasks"]
    learned = json.loads((folder / "metrics.json").read_text())["test"]["tasks"]
    for task, change in cells[cells.skill == 1][["task", "change"]].itertuples(index=False):
        wanted = single[task]["loss"] - learned[task]["loss"]
        assert change == pytest.approx(wanted, rel=1e-4, abs=1e-6)
