"""The real data module and the real adapter together: exact resume, and any number of ranks."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from transformers import ByT5Tokenizer

from polylab.data import DataModule, Example, TaskCollection, TaskData
from polylab.training import AtomicCheckpointIO, RunCheckpoint

SIZES = {"copy": 17, "first": 5, "upper": 9}


def source():
    """Tasks of different sizes, without a validation split for one of them."""
    answers = {"copy": str, "first": lambda text: text[:1], "upper": str.upper}
    words = ["ab", "cde", "fghi", "jk", "lmnop", "q", "rst", "uvwxyz", "zy"]
    tasks = []
    for name, size in SIZES.items():
        rows = [f"{words[i % 9]}{i}" for i in range(size + 5)]
        examples = [Example(input=row, target=answers[name](row)) for row in rows]
        held_out = [] if name == "first" else examples[size:]
        tasks.append(TaskData(name, train=examples[:size], validation=held_out))
    return TaskCollection(tasks)


def data_of(kind, num_workers=0):
    """Global batches of 6 rows."""
    return DataModule(
        source,
        ByT5Tokenizer(),
        is_encoder_decoder=kind == "t5",
        batch_size=6,
        temperature=2.0,
        max_input_length=12,
        max_target_length=8,
        num_workers=num_workers,
    )


def train(folder, devices=1, *, kind="t5", steps=9, dropout=0.1, every=None, ckpt_path=None, **kw):
    """The final weights and the validation's result."""
    from tests.training.conftest import build_module, ddp

    module = build_module(kind, dropout=dropout, optim={"lr": 0.01, "clip": 1.0}, seed=4)
    data = data_of(kind, num_workers=kw.pop("num_workers", 0))
    seed_everything(3 if ckpt_path is None else 77, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=ddp() if devices > 1 else "auto",
        max_steps=steps,
        val_check_interval=3 * kw.get("accumulate_grad_batches", 1),
        check_val_every_n_epoch=None,
        callbacks=[RunCheckpoint(folder, every_n_steps=every)],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **kw,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    weights = {n: p.detach().numpy() for n, p in module.named_parameters() if p.requires_grad}
    return weights, module.results["val"]


@pytest.mark.parametrize(
    ("kind", "cut", "num_workers"), [("t5", 4, 0), ("t5", 6, 0), ("gpt2", 5, 0), ("t5", 4, 1)]
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, kind, cut, num_workers):
    settings = {"kind": kind, "num_workers": num_workers}
    whole, result = train(tmp_path / "whole", **settings)
    train(tmp_path / "cut", steps=cut, **settings)
    ckpt_path = tmp_path / "cut/last.ckpt"
    assert torch.load(ckpt_path, weights_only=True)["global_step"] == cut
    resumed, again = train(tmp_path / "cut", ckpt_path=ckpt_path, **settings)
    assert all(np.array_equal(resumed[name], value) for name, value in whole.items())
    assert again == result
    assert set(result["tasks"]) == {"copy", "upper"}


def _assert_close(found, expected):
    for name, value in expected.items():
        # sums in another order, through four steps of Adam
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4)


def test_accumulated_batches_take_the_steps_of_a_whole_one(tmp_path):
    whole, result = train(tmp_path / "whole", steps=4, dropout=0.0)
    parts, again = train(tmp_path / "parts", steps=4, dropout=0.0, accumulate_grad_batches=3)
    _assert_close(parts, whole)
    assert again["loss"] == pytest.approx(result["loss"], rel=1e-3)


def train_on_two(folder):
    return train(folder, 2, steps=4, dropout=0.0, accumulate_grad_batches=3)


def test_two_ranks_take_the_steps_of_one(tmp_path, free_port, on_two_ranks):
    one, result = train(str(tmp_path / "one"), steps=4, dropout=0.0)
    (two, its_result), (other, _) = on_two_ranks(train_on_two, free_port, tmp_path / "two")
    assert all(np.array_equal(other[name], value) for name, value in two.items())
    _assert_close(two, one)
    assert its_result["macro"] == result["macro"]
    assert its_result["loss"] == pytest.approx(result["loss"], rel=1e-3)
