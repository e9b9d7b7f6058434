"""What an adaptation trains and keeps, by the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file

from polylab.adaptation.best import KeepBest

ONE = ["adapt.seeds=[0]", "adapt.tasks=[double]"]


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which the best weights were compared."""
    steps: list[int] = []
    before = KeepBest.on_validation_end

    def noted(self: KeepBest, trainer: Trainer, module: LightningModule) -> None:
        steps.append(trainer.global_step)
        before(self, trainer, module)

    monkeypatch.setattr(KeepBest, "on_validation_end", noted)
    return steps


def test_an_annealed_run_learns_to_route(
    trained: Callable[..., Path], adapt: Callable[..., Any], tmp_path: Path
) -> None:
    run = trained("poly", "optim.anneal_steps=2")
    done = adapt(run, "adapt=z", "adapt.save=true", "adapt.router_init=copy", *ONE)
    assert done.code == 0, done.err
    assert "the run has uniform_share=1: adapt=z trains the routing, so it starts with" in done.out
    assert "in saved adapters for the run's tasks too" in done.out
    place = tmp_path / "out" / "adapters" / "double" / "seed_0"
    tensors = load_file(place / "adapter_model.safetensors")
    tables = {name: t for name, t in tensors.items() if "poly_router" in name}
    assert tables
    assert all(not torch.equal(table[3], table[0]) for table in tables.values())
    done = adapt(run, "adapt=mu", *ONE, out="mu")
    assert done.code == 0, done.err
    assert "uniform_share" not in done.out


def test_without_a_share_nothing_is_said(
    trained: Callable[..., Path], adapt: Callable[..., Any]
) -> None:
    assert "uniform_share" not in adapt(trained(), "adapt=z", *ONE).out


@pytest.mark.parametrize("steps", [1, 3])
def test_a_training_without_gradients_is_an_error(
    trained: Callable[..., Path], adapt: Callable[..., Any], tmp_path: Path, steps: int
) -> None:
    run = trained("poly", "optim.lr=0")  # B = 0: no row of a router changes anything
    done = adapt(run, "adapt=z", f"adapt.steps={steps}", *ONE)
    assert done.code == 1
    (line,) = done.err.splitlines()
    n = min(steps, 2)
    assert line.startswith(f"adapt=z: no gradient reached the router in {n} step")
    assert not (tmp_path / "out" / "results.csv").exists()
    if steps > 1:  # the skills move first, and the routing with them
        done = adapt(run, "adapt=poly", *ONE, out="poly")
        assert done.code == 0, done.err


@pytest.mark.parametrize(("steps", "every", "expected"), [(3, 2, [2, 3]), (4, 2, [2, 4])])
def test_the_last_weights_are_candidates(
    trained: Callable[..., Path],
    adapt: Callable[..., Any],
    validated: list[int],
    steps: int,
    every: int,
    expected: list[int],
) -> None:
    done = adapt(
        trained(), "adapt=z", f"adapt.steps={steps}", f"adapt.validate_every={every}", *ONE
    )
    assert done.code == 0, done.err
    assert validated == expected


def test_a_validation_without_answers_chooses_nothing(
    trained: Callable[..., Path], adapt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[Any] = []
    before = KeepBest._score
    monkeypatch.setattr(
        KeepBest, "_score", lambda self, trainer: scores.append(1) or before(self, trainer)
    )
    rare = ["module.generate_every_n_validations=0", "adapt.steps=4", "adapt.validate_every=1"]
    assert adapt(trained(), "adapt=z", *rare, *ONE).code == 0
    assert len(scores) == 1
    assert adapt(trained(), "adapt=z", *rare, "adapt.monitor=loss", *ONE, out="loss").code == 0
    assert len(scores) == 1 + 4


def test_the_backbone_stays_where_it_is(
    trained: Callable[..., Path], adapt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    before = LightningModule.cpu
    monkeypatch.setattr(LightningModule, "cpu", lambda self: moved.append("cpu") or before(self))
    done = adapt(trained(), "adapt=poly", "adapt.tasks=[last]")
    assert done.code == 0, done.err
    assert moved == []
