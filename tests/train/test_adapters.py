"""Every kind of adapter from the command line: built, and for a few trained and drawn."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

FIGURES = {"allocation.png", "by_layer.png", "task_hierarchy.png"}
CUSTOM = ["adapter.poly_type=custom", "adapter.allocation=[[1,0,0],[1,1.5,0],[0,0,2]]"]
BOTH = ["adapter.router={_target_: tests.testing.own.TaskAndInput, reads: tokens}"]

BUILT = [
    ["adapter.priors.ibp=0.01"],
    ["adapter.priors.entropy=0.1", "adapter.priors.load_balance=0.1"],
    ["adapter.granularity=block"],
    ["adapter.granularity=stack", "adapter.router_input=embeddings", "adapter.poly_type=mope"],
    ["adapter.granularity='(encoder|decoder)'"],
    ["adapter.combine=products", "adapter.n_splits=2"],
    ["adapter.noise=straight_through"],
    ["adapter.noise=none"],
    ["adapter.noise_per=task"],
    ["optim.anneal_steps=2"],
    ["adapter.trainable=router"],
    ["adapter=mope", "adapter.top_k=2", "adapter.gating=sigmoid"],
    ["adapter=mope_token", "adapter.target_modules=[wo,wi_0]"],
    ["adapter=c_poly", "adapter.n_private=2"],
    ["adapter.dropout=0.1", "adapter.uniform_share=0.5"],
]
DRAWN = [
    ["adapter=c_poly", "adapter.priors.ibp=0.01"],
    ["adapter=uniform"],
    CUSTOM,
    ["adapter=mope_token", "adapter.top_k=2", "adapter.priors.load_balance=0.1"],
    ["adapter.granularity=model", "adapter.combine=products", "adapter.n_splits=2"],
    ["adapter.noise=straight_through", "optim.anneal_steps=2"],
    BOTH,
]


def _name(overrides: list[str]) -> str:
    return "-".join(part.removeprefix("adapter.") for part in overrides)


@pytest.mark.parametrize("overrides", BUILT, ids=_name)
def test_built(
    overrides: list[str], small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    done = run_here(*small, "debug=validate", *overrides, "adapter.n_skills=3", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "the configuration, data, backbone and adapter are valid"


@pytest.mark.parametrize("overrides", DRAWN, ids=_name)
def test_trained_and_drawn(
    overrides: list[str], small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    done = run_here(
        *small, "logger=none", "trainer.max_steps=2", *overrides, "adapter.n_skills=3",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {path.name for path in (done.folder / "figures").iterdir()} >= FIGURES
    with (done.folder / "skills.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    head = [row for row in rows if (row["layer"], row["split"]) == (rows[0]["layer"], "0")]
    weights = [float(row["weight"]) for row in head if row["task"] == "first"]
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    if overrides is CUSTOM:
        assert weights == pytest.approx([0.4, 0.6, 0], abs=1e-3)
    n_skills = 6 if "adapter=c_poly" in overrides else 3
    assert len(weights) == n_skills
    facts = " ".join(done.out.split())
    assert f"{n_skills} skills" in facts
    assert "· 3 tasks" in facts
    tensors = load_file(done.folder / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    values = json.loads((done.folder / "adapter" / "adapter_config.json").read_text())
    if "optim.anneal_steps=2" in overrides:
        assert values["uniform_share"] == 1.0
