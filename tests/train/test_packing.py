"""Runs with packed rows: the losses of the run without, from fewer rows; exact resume."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def train(small: list[str], llama_folder: Path, run_here: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a tiny Llama, which has no dropout, in float32."""
    llama = [
        f"backbone.name_or_path={llama_folder}",
        "backbone.dtype=float32",
        "adapter.target_modules=[q_proj,down_proj]",
        "adapter.n_splits=2",
        "data.prompt=name",
        "callbacks.figures=null",
        "logger=csv",
    ]

    def run(*overrides: str, cwd: Path) -> Any:
        done = run_here(*small, *llama, *overrides, cwd=cwd)
        assert done.code == 0, done.err
        return done.folder

    return run


@pytest.fixture(scope="module")
def packed(train: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("data.packing=true", cwd=tmp_path_factory.mktemp("packed"))


def _series(folder: Path, key: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_the_losses_of_the_run_without(
    packed: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    padded = train(cwd=tmp_path)
    keys = ("train/loss", "train/copy/loss", "train/copy/examples", "val/loss", "grad_norm/router")
    for key in keys:
        wanted = _series(padded, key)
        assert len(wanted) >= 2
        # float32 sums in another order, through 4 steps of an optimiser
        assert _series(packed, key) == pytest.approx(wanted, rel=1e-3), key
    assert len(_series(packed, "throughput/padding")) == 4


def test_a_resumed_run_is_the_uninterrupted_one(
    packed: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    half = train("data.packing=true", "trainer.max_steps=3", cwd=tmp_path / "a")
    last = half / "checkpoints" / "last.ckpt"
    rest = train("data.packing=true", f"ckpt_path={last}", cwd=tmp_path / "b")
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (rest, packed)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_encoder_decoder(small: list[str], run_here: Callable[..., Any], tmp_path: Path) -> None:
    done = run_here(
        *small, "data.packing=true", "adapter=mope", "trainer.max_steps=2", "logger=csv",
        "data.num_workers=1", "callbacks.figures=null", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(_series(done.folder, "train/loss")) == 2


def test_few_shot_adaptation(
    trained: Callable[..., Path],
    task_folder: Path,
    run_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    data = ["data=jsonl", f"data.path={tmp_path / 'new'}", "data.source.min_rows_to_split=10"]
    (tmp_path / "new").mkdir()
    text = (task_folder / "upper.jsonl").read_text()
    (tmp_path / "new" / "shout.jsonl").write_text(text)
    for method in ("poly", "full"):
        done = run_here(
            f"run={trained()}", f"hydra.run.dir={tmp_path / method}", *data, "trainer=cpu",
            f"adapt={method}", "adapt.steps=2", "adapt.shots=6", "adapt.seeds=[0]",
            "data.packing=true", "module.max_new_tokens=3", "data.test_examples_per_task=2",
            cwd=tmp_path, command="adapt",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert "1/1 shout, seed 0" in done.out


REFUSED: dict[str, tuple[list[str], str]] = {
    "compile": (["trainer.compile=true"], "data.packing=true with trainer.compile=true: the leng"),
    "no adapter": (["adapter=none"], "data.packing=true with adapter=none: only a model with an"),
    "encoder": (
        ["experiment=classification", "trainer=cpu"],
        "data.packing=true: the backbone is an encoder alone",
    ),
    "attention": (
        ["backbone.attn_implementation=flex_attention"],
        "data.packing=true: packed_lengths: T5ForConditionalGeneration computes attention by 'flex",
    ),
    "prior": (
        ["adapter=mope_token", "adapter.priors.load_balance=0.1"],
        "data.packing=true: priors on the tokens of a decoder",
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_packed_rows_do_not_go_with(
    wrong: str, small: list[str], run_here: Callable[..., Any], tmp_path: Path
) -> None:
    overrides, message = REFUSED[wrong]
    left_out = {"no adapter": ("adapter.",), "encoder": ("",)}.get(wrong, ())
    given = [override for override in small if not override.startswith(left_out)]
    done = run_here(*given, "data.packing=true", *overrides, cwd=tmp_path)
    assert done.code == 1
    assert message in done.err, done.err
    assert {path.name for path in done.folder.iterdir()} == {".hydra", "train.log"}
