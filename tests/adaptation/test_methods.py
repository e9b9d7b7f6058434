"""What each method trains, on a tiny model whose adapter is as a run leaves it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from polylab import PolyConfig, PolyModel, get_peft_model
from polylab.adaptation.methods import ADAPTER, METHODS, attached, count_adapted

N_TASKS, N_ROWS = 3, 4
NEW = N_TASKS  # the new task's id
KINDS: dict[str, dict[str, Any]] = {
    "poly": {},
    "mhr": {"n_splits": 2},
    "annealed": {"uniform_share": 1.0},
    "partly annealed": {"uniform_share": 0.25},
    "blocks": {"granularity": "block"},
    "c-poly": {"poly_type": "c-poly", "n_private": 2},
    "c-poly annealed": {"poly_type": "c-poly", "n_private": 2, "uniform_share": 1.0},
    "mope": {"poly_type": "mope"},
    "mope annealed": {"poly_type": "mope", "uniform_share": 1.0},
    "uniform": {"poly_type": "uniform"},
    "shared": {"poly_type": "shared"},
    "private": {"poly_type": "private"},
    "one skill": {"n_skills": 1},
    "top-1": {"poly_type": "mope", "top_k": 1},
}
FIT = [
    *[(kind, method) for kind in ("poly", "mhr", "annealed") for method in ("poly", "z", "mu")],
    *[("partly annealed", "z"), ("blocks", "z"), ("blocks", "poly"), ("poly", "lora")],
    *[(kind, m) for kind in ("c-poly", "c-poly annealed") for m in ("poly", "z")],
    *[("mope", "poly"), ("mope", "mu"), ("mope annealed", "poly"), ("uniform", "poly")],
    *[("shared", "shared"), ("shared", "lora"), ("private", "private"), ("one skill", "poly")],
    *[("one skill", "mu"), ("c-poly", "private"), ("top-1", "poly")],
]


@pytest.fixture
def trained_model(t5_folder: Path) -> Callable[..., PolyModel]:
    """Frozen models with an adapter whose tensors are all random, as after training."""

    def make(kind: str, **fields: Any) -> PolyModel:
        torch.manual_seed(3)
        base = AutoModelForSeq2SeqLM.from_pretrained(t5_folder)
        given = {"r": 2, "n_skills": 4, "noise": "none", **KINDS[kind], **fields}
        config = PolyConfig(n_tasks=N_TASKS, target_modules=["q", "wi_0"], **given)
        model = get_peft_model(base, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5)
        config = model.config_of("default")
        config.inference_mode = True
        model.set_adapter("default")
        return model.eval()

    return make


def _gradients(model: PolyModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Those of the new task's loss; B of a fresh LoRA, which is 0, is moved first."""
    for name, parameter in model.named_parameters():
        if f"poly_lora_B.{ADAPTER}" in name and not parameter.any():
            nn.init.normal_(parameter.data, std=0.5)
    torch.manual_seed(4)
    ids = torch.randint(3, 380, (N_ROWS, 7))
    labels, task_ids = ids[:, :5].contiguous(), torch.full((N_ROWS,), NEW)
    model(input_ids=ids, labels=labels, task_ids=task_ids).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            yield name, parameter
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(("kind", "method"), FIT)
def test_what_is_counted_is_what_gets_a_gradient(
    trained_model: Callable[..., PolyModel], kind: str, method: str
) -> None:
    model = trained_model(kind)
    with attached(model, method, task="new"):
        moved = {name: int((p.grad != 0).sum()) for name, p in _gradients(model)}
        assert all(moved.values()), moved
        if kind != "top-1":  # of which only the chosen skills move
            assert sum(moved.values()) == count_adapted(model)
        routed = [name for name in moved if "poly_router" in name]
    learns_routing = method in ("poly", "z") and kind not in ("uniform", "one skill", "top-1")
    assert bool(routed) == learns_routing


def test_everything_trains_in_full(trained_model: Callable[..., PolyModel]) -> None:
    model = trained_model("poly", modules_to_save=["final_layer_norm"])
    with attached(model, "full", task="new"):
        names = [name for name, p in _gradients(model) if (p.grad == 0).all()]
        assert names == []
        assert (
            count_adapted(model)
            == AutoModelForSeq2SeqLM.from_config(model.get_base_model().config).num_parameters()
        )


def test_copied_modules_train_with_the_skills_only(
    trained_model: Callable[..., PolyModel],
) -> None:
    for method, trains in {"poly": True, "mu": True, "z": False}.items():
        model = trained_model("poly", modules_to_save=["final_layer_norm"])
        with attached(model, method, task="new"):
            moved = dict(_gradients(model))
            assert all(p.grad.any() for p in moved.values() if p.grad is not None)
            assert any("modules_to_save" in name for name in moved) == trains


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "shared"])  # which has no share
def test_only_what_learns_to_route_leaves_the_runs_share(
    trained_model: Callable[..., PolyModel], method: str, share: float
) -> None:
    model = trained_model("poly", uniform_share=share)
    before = model.task_weights()
    with attached(model, method, task="new"):
        assert model.config_of(model.active_adapter).uniform_share == (
            share if method == "full" else 0.0
        )
    assert model.config_of("default").uniform_share == share
    after = model.task_weights()
    assert all(torch.equal(after[name], weights) for name, weights in before.items())


@pytest.mark.parametrize(
    ("kind", "says"),
    [("one skill", "n_skills=1"), ("mope", "no row of a task's own"), ("uniform", "no row")],
)
def test_nothing_to_train_is_refused(
    trained_model: Callable[..., PolyModel], kind: str, says: str
) -> None:
    model = trained_model(kind)
    with pytest.raises(ValueError, match=says), attached(model, "z", task="new"):
        raise AssertionError("it was attached")
    assert [*model.peft_config] == ["default"]
