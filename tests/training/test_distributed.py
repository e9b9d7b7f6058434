"""Two ranks do what one does: steps, metrics over uneven shards, checkpoints, resume."""

import logging

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from polylab.config.ddp import clean_environment
from polylab.training import AtomicCheckpointIO, RunCheckpoint
from polylab.training.distributed import gather_objects
from tests.training.conftest import Data, build_module, ddp


def _train(
    folder,
    devices=2,
    *,
    max_steps=4,
    dropout=0.0,
    ckpt_path=None,
    every=1,
    n_train=22,
    router="dense",
):
    """Everything a rank knows after a run whose global batch is the same for any `devices`."""
    from tests.training.conftest import Memory

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    poly = {"noise": "none" if dropout == 0 else "relaxed_bernoulli", "noise_source": "global"}
    optim = {"lr": 0.01, "router": router}
    module = build_module(dropout=dropout, optim=optim, predictions_per_task=2, poly=poly)
    seed_everything(3, verbose=False)
    logger = Memory()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=ddp() if devices > 1 else "auto",
        max_steps=max_steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        callbacks=[RunCheckpoint(folder, monitor="val/loss", mode="min")],
        plugins=[AtomicCheckpointIO()],
        logger=logger,
        log_every_n_steps=every,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    data = Data(
        n_train=n_train, batch_size=22 // devices, n_val=7
    )  # rank 0 validates 4 rows, rank 1 3
    trainer.fit(module, data, ckpt_path=ckpt_path)
    weights = {n: p.detach().numpy() for n, p in module.named_parameters() if p.requires_grad}
    keys = ("train/loss", "train/first/loss", "train/copy/examples", "grad_norm/skills", "val/loss")
    return {
        "weights": weights,
        "results": module.results["val"],
        "predictions": module.predictions["val"],
        "series": {key: logger.series(key) for key in keys},
    }


def _cut_and_resume(folder):
    """An uninterrupted run and one cut at step 3 of 5, between two log lines, with dropout."""
    settings = {"dropout": 0.3, "every": 2, "n_train": 88}
    whole = _train(folder + "/whole", max_steps=5, **settings)
    _train(folder + "/cut", max_steps=3, **settings)
    ckpt_path = folder + "/cut/last.ckpt"
    state = torch.load(ckpt_path, weights_only=True)["polylab"]["losses"]
    resumed = _train(folder + "/cut", max_steps=5, ckpt_path=ckpt_path, **settings)
    return whole, resumed, state["pending"].sum().item()


def _dense_and_lazy(folder, devices=2):
    return [_train(f"{folder}/{router}", devices, router=router) for router in ("dense", "lazy")]


def test_a_step_and_a_validation_on_two_ranks_equal_those_on_one(
    free_port, on_two_ranks, tmp_path, seeded
):
    seeded()
    one, lazy = _dense_and_lazy(str(tmp_path / "one"), devices=1)
    ranks = on_two_ranks(_dense_and_lazy, free_port, tmp_path / "two")
    two = [dense for dense, _ in ranks]
    _check_lazy(lazy["weights"], [own["weights"] for _, own in ranks])
    for name, value in two[0]["weights"].items():
        assert np.array_equal(two[1]["weights"][name], value)
        np.testing.assert_allclose(value, one["weights"][name], rtol=1e-4, atol=1e-5)
    assert two[0]["results"] == two[1]["results"]
    assert set(two[0]["results"]["tasks"]) == {"copy", "first", "upper"}
    assert two[0]["results"]["loss"] == pytest.approx(one["results"]["loss"], rel=1e-4)
    for task, metrics in one["results"]["tasks"].items():
        assert two[0]["results"]["tasks"][task] == pytest.approx(metrics, rel=1e-4)
    kept = two[0]["predictions"]
    assert kept == two[1]["predictions"]
    assert [p["task"] for p in kept] == ["copy", "copy", "first", "upper"]
    assert sorted(p.name for p in (tmp_path / "two" / "dense").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    for key, series in one["series"].items():
        assert list(series) == list(two[0]["series"][key]) != []
        assert list(two[0]["series"][key].values()) == pytest.approx(
            list(series.values()), rel=1e-4
        )


def _check_lazy(one, two):
    """The second rank has one task of the three, and steps the rows of all that any rank has."""
    routers = [name for name in one if "router" in name]
    assert routers
    for name, value in one.items():
        assert np.array_equal(two[0][name], two[1][name])
        np.testing.assert_allclose(two[1][name], value, rtol=1e-4, atol=1e-5)
    start = dict(build_module(poly={"noise": "none", "noise_source": "global"}).named_parameters())
    assert all((start[n].detach().numpy() != two[1][n]).any(1).all() for n in routers)


def test_each_rank_resumes_its_own_random_stream(free_port, on_two_ranks, tmp_path):
    for whole, resumed, pending in on_two_ranks(_cut_and_resume, free_port, tmp_path):
        expected, found = whole["weights"], resumed["weights"]
        assert all(np.array_equal(found[name], value) for name, value in expected.items())
        assert pending > 0
        for key in ("train/loss", "train/copy/examples"):
            late = {step: value for step, value in whole["series"][key].items() if step > 3}
            assert resumed["series"][key] == pytest.approx(late, rel=1e-12)
            assert set(late) == {4, 5}


def test_without_a_process_group_there_is_one_rank():
    assert gather_objects({"a": 1}) == [{"a": 1}]


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")
def test_gradients_lie_in_what_the_ranks_exchange():
    """They are views of a bucket, here of one: nothing is copied back after the exchange."""

    class Places(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):  # noqa: ARG002
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self.storages = {g.untyped_storage().data_ptr() for g in grads}

    places = Places()
    with clean_environment():
        trainer = Trainer(
            accelerator="cpu", devices=1, strategy=ddp(), max_steps=1, callbacks=[places],
            limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(build_module(), Data())
    assert len(places.storages) == 1
