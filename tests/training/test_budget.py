"""Validations that only take the loss, and those that generate."""

import pytest
import torch
from lightning.pytorch import Trainer

from polylab.training import AtomicCheckpointIO, RunCheckpoint
from tests.training.conftest import Data, Memory, build_module


def fit(folder, *, every, max_steps=5, ckpt_path=None, monitor="val/exact_match"):
    module = build_module(generate_every_n_validations=every)
    logger = Memory()
    checkpoint = RunCheckpoint(folder, monitor=monitor)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        callbacks=[checkpoint],
        plugins=[AtomicCheckpointIO()],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    data = Data(n_train=40, batch_size=4, n_val=3)
    asked = []
    generate = module.generate_texts

    def counted(batch, **kwargs):
        asked.append(trainer.global_step)
        return generate(batch, **kwargs)

    module.generate_texts = counted
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, logger, checkpoint, sorted({*asked}), trainer, data


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5])])
def test_which_validations_generate(tmp_path, every, steps):
    module, logger, checkpoint, asked, trainer, data = fit(tmp_path, every=every)
    assert asked == steps
    assert [*logger.series("val/exact_match")] == steps
    assert [*logger.series("val/loss")] == [1, 2, 3, 4, 5]
    best = torch.load(checkpoint.best_path, weights_only=True)
    assert best["global_step"] in steps
    trainer.validate(module, data, verbose=False)
    assert module.results["val"]["macro"]["exact_match"] is not None


def test_none_before_the_last_step(tmp_path):
    *_, checkpoint, asked, _, _ = fit(tmp_path, every=0)
    assert asked == [5]
    assert torch.load(checkpoint.best_path, weights_only=True)["global_step"] == 5


def test_a_resumed_run_goes_on_counting(tmp_path):
    *_, checkpoint, asked, _, _ = fit(tmp_path, every=3, max_steps=2)
    assert asked == [2]  # the last step
    *_, asked, _, _ = fit(tmp_path, every=3, ckpt_path=checkpoint.last_path, max_steps=7)
    assert asked == [3, 6, 7]
