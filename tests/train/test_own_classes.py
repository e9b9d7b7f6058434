"""Classes of the user's own: README's router from its check to a sweep, and clear errors."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from polylab import PolyModel
from polylab.backbones import load_backbone

README = Path(__file__).parents[2] / "README.md"
ROUTER = "adapter.router._target_=my_lab.routers.Mine"
FIGURES = {"allocation.png", "by_layer.png", "task_hierarchy.png"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with README's `my_lab/routers.py`, and classes that are wrong."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_lab").mkdir()
    section = README.read_text(encoding="utf-8").split("## A router of your own")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (folder / "my_lab" / "routers.py").write_text(code, encoding="utf-8")
    (folder / "my_lab" / "wrong.py").write_text(WRONG, encoding="utf-8")
    (folder / "my_lab" / "broken.py").write_text("import torch\nundefined\n", encoding="utf-8")
    return folder


WRONG = """
import torch
from polylab.poly.combining import AverageFactors
from polylab.poly.priors import Prior
from polylab.poly.routers import Router, Sampler
from my_lab.routers import Mine

class Abstract(Router):
    pass

class OtherSizes(Mine):
    def __init__(self, **options):
        super().__init__(**options)
        self.n_skills = 7

class Flat(Mine):
    def forward(self, task_ids, input_ids=None, **options):
        return super().forward(task_ids, input_ids)[:, 0]

class Failing(Mine):
    def forward(self, task_ids, input_ids=None, **options):
        return super().forward(task_ids, input_ids)[99]

class Whole(Mine):
    reads = "pages"

class Noise(Sampler):
    def __call__(self, logits, uniform):
        return logits[..., :1]

class Rule(AverageFactors):
    def factors(self, weights, bank_a, bank_b):
        return bank_a, bank_b

class Tokens(AverageFactors):
    def per_token(self, x, weights, *, banks):
        return x

class Penalty(Prior):
    def __init__(self, power):
        if power < 1:
            raise ValueError(f"power={power} must be at least 1")

    def __call__(self, weights, gates, shares):
        return weights
"""


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def done(
    lab: Path,
    small: list[str],
    run_process: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """README's two commands, the second of two steps on a tiny backbone."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lab), str(README.parent)])}
    checked = subprocess.run(
        [sys.executable, "-m", "my_lab.routers"],
        cwd=lab, env=variables, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    cwd = tmp_path_factory.mktemp("own")
    run = run_process(
        "experiment=flan_poly", *small, "trainer.max_steps=2", "logger=none", "data.prompt=none",
        ROUTER,
        "adapter.target_modules=[q,v]", "adapter.router.start=0.5", "adapter.n_splits=2",
        cwd=cwd, PYTHONPATH=variables["PYTHONPATH"],
    )  # fmt: skip
    assert run.code == 0, run.err
    return run


def test_a_run_with_a_router_of_ones_own_leaves_what_every_run_does(done: Any) -> None:
    folder = done.folder
    assert {path.name for path in (folder / "figures").iterdir()} >= FIGURES
    with (folder / "skills.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["task"], row["skill"]) for row in rows} == {
        (task, skill) for task in ("copy", "first", "upper") for skill in "012"
    }
    assert {row["split"] for row in rows} == {"0", "1"}
    assert all(row["gate"] == "" for row in rows)
    first = [float(row["weight"]) for row in rows[:3]]
    assert sum(first) == pytest.approx(1, abs=1e-4)
    config = OmegaConf.load(folder / "config.yaml")
    assert config.adapter.router == {"_target_": "my_lab.routers.Mine", "start": 0.5}
    assert _metrics(folder)["test"]["loss"] > 0


def test_its_adapter_loads_where_it_is_trusted(
    done: Any, lab: Path, t5_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(lab))
    adapter = done.folder / "adapter"
    values = json.loads((adapter / "adapter_config.json").read_text())
    assert values["peft_type"] == "POLYLAB"

    def base() -> Any:
        return load_backbone(str(t5_folder)).model

    with pytest.raises(ValueError, match=r"router._target_='my_lab.routers.Mine'.*trust_code=True"):
        PolyModel.from_pretrained(base(), adapter)
    model = PolyModel.from_pretrained(base(), adapter, trust_code=True)
    table = model.task_weights()
    with (done.folder / "skills.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            task = ["copy", "first", "upper"].index(row["task"])
            found = table[row["layer"]][task, int(row["split"]), int(row["skill"])]
            torch.testing.assert_close(found.item(), float(row["weight"]), rtol=0, atol=1e-4)


def test_it_is_exported_where_it_is_trusted(
    done: Any,
    lab: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_here: Callable[..., Any],
) -> None:
    monkeypatch.syspath_prepend(str(lab))
    options = [f"run={done.folder}", "format=lora", "task=copy"]
    refused = run_here(*options, f"to={tmp_path / 'a'}", cwd=tmp_path, command="export")
    assert refused.code == 1
    assert "router._target_='my_lab.routers.Mine'" in refused.err
    assert not (tmp_path / "a").exists()
    exported = run_here(
        *options, f"to={tmp_path / 'b'}", "trust_code=true", cwd=tmp_path, command="export"
    )
    assert exported.code == 0, exported.err
    assert list((tmp_path / "b").rglob("adapter_model.safetensors"))


def test_a_sweep_over_it(
    lab: Path,
    small: list[str],
    run_here: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(lab))
    sweep = run_here(
        "-m", *small, "trainer.max_steps=2", "logger=none", "callbacks.figures=null", ROUTER,
        "adapter.router.start=0.5,2", cwd=tmp_path,
    )  # fmt: skip
    assert sweep.code == 0, sweep.err
    assert len({_metrics(folder)["test"]["loss"] for folder in sweep.folders}) == 2


WRONG_CLASSES: dict[str, tuple[list[str], list[str]]] = {
    "no module": (
        ["adapter.router._target_=my_lab.router.Mine"],
        ["router._target_='my_lab.router.Mine' cannot be imported", "PYTHONPATH"],
    ),
    "no class": (
        ["adapter.router._target_=my_lab.routers.Mien"],
        ["there is no 'Mien' in my_lab.routers", "Did you mean 'Mine'?", "['Mine']"],
    ),
    "no path": (["adapter.router._target_=Mine"], ["router._target_='Mine' cannot be imported"]),
    "failing module": (
        ["adapter.router._target_=my_lab.broken.Mine"],
        ["cannot be imported: NameError: name 'undefined' is not defined"],
    ),
    "wrong base class": (
        ["adapter.router._target_=my_lab.wrong.Penalty"],
        ["my_lab.wrong.Penalty", "not a subclass of polylab.poly.routers.base.Router"],
    ),
    "abstract": (["adapter.router._target_=my_lab.wrong.Abstract"], ["abstract", "reset"]),
    "wrong argument": (
        [ROUTER, "adapter.router.strat=2"],
        ["unexpected keyword argument 'strat'", "Did you mean 'start'?"],
    ),
    "given twice": ([ROUTER, "adapter.router.n_skills=2"], ["gets ['n_skills'] from the adapter"]),
    "missing argument": (
        ["+adapter.priors.p={_target_: my_lab.wrong.Penalty, weight: 0.1}"],
        ["priors.p._target_='my_lab.wrong.Penalty'", "missing a required argument: 'power'"],
    ),
    "refused argument": (
        ["+adapter.priors.p={_target_: my_lab.wrong.Penalty, weight: 0.1, power: 0}"],
        ["cannot be built from {'power': 0}: power=0 must be at least 1"],
    ),
    "wrong sizes": (
        ["adapter.router._target_=my_lab.wrong.OtherSizes"],
        ["OtherSizes has n_skills=7 and n_splits=1, but the adapter n_skills=3"],
    ),
    "wrong reads": (["adapter.router._target_=my_lab.wrong.Whole"], ["reads='pages'", "'tokens'"]),
    "wrong shape": (
        ["adapter.router._target_=my_lab.wrong.Flat"],
        ["for task_ids of shape [4] gives shape [4, 3]", "of shape [4, 1, 3] is needed"],
    ),
    "failing": (
        ["adapter.router._target_=my_lab.wrong.Failing"],
        ["my_lab.wrong.Failing': forward raised IndexError"],
    ),
    "wrong noise": (
        ["adapter.noise={_target_: my_lab.wrong.Noise}"],
        ["noise._target_='my_lab.wrong.Noise'", "[4, 1, 1]"],
    ),
    "wrong factors": (
        ["adapter.combine={_target_: my_lab.wrong.Rule}"],
        ["factors for 4 groups, A* gives shape [1, 3, 5, 2]", "[4, 5, 2] is needed"],
    ),
    "wrong tokens": (
        ["adapter.combine={_target_: my_lab.wrong.Tokens}"],
        ["per_token for 4 tokens gives shape [4, 5]", "[4, 6] is needed"],
    ),
    "wrong penalty": (
        ["+adapter.priors.p={_target_: my_lab.wrong.Penalty, weight: 0.1, power: 1}"],
        ["priors.p._target_='my_lab.wrong.Penalty' gives shape [4, 1, 3]", "[] is needed"],
    ),
    "unread noise": (
        [ROUTER, "adapter.noise=none"],
        ["noise='none' has no effect with a router of your own"],
    ),
    "allocation": (
        ["adapter.poly_type=custom", "adapter.allocation=[[1,a]]"],
        ["allocation has 1 rows of [2] numbers: give a list of 3 rows"],
    ),
}


@pytest.mark.parametrize("case", WRONG_CLASSES)
def test_a_wrong_class_is_one_clear_line(
    case: str,
    lab: Path,
    small: list[str],
    run_here: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(lab))
    overrides, expected = WRONG_CLASSES[case]
    done = run_here(*small, *overrides, cwd=tmp_path)
    assert done.code == 1, done.out
    (line,) = [line for line in done.err.splitlines() if line.strip()]
    assert line.startswith("adapter")
    for part in expected:
        assert part in line
    assert {path.name for path in done.folder.iterdir()} <= {".hydra", "train.log"}
