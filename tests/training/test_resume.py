"""A resumed run ends with the bits of the uninterrupted one, from wherever it was cut."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from polylab.training.rng import RngStream

STEPS = 14  # the loader has 6 batches: two epochs and a part of the third


def weights(module):
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


class Draws(Callback):
    """A callback that uses the global generators between the steps."""

    def on_train_batch_start(self, *_):
        torch.rand(1), random.random(), np.random.rand()


def _settings(**kw):
    return {
        "optim": {"lr": 0.03, "schedule": "cosine", "warmup": 3, "total_steps": STEPS, "clip": 1.0},
        "poly": {"noise_source": "global"},  # the hardest case: drawn from the global generator
        **kw,
    }


@pytest.mark.parametrize("cut", [1, 4, 6, 7, 12, 13])
@pytest.mark.parametrize("val_check_interval", [None, 4])
def test_resume_is_bit_identical(
    poly_module, make_data, make_trainer, seeded, cut, val_check_interval
):
    validation = (
        {"limit_val_batches": 0}
        if val_check_interval is None
        else {
            "val_check_interval": val_check_interval,
            "check_val_every_n_epoch": None,
        }
    )
    whole = poly_module(**_settings())
    seeded()
    reference = make_trainer("whole", max_steps=STEPS, **validation)
    reference.fit(whole, make_data())

    first = poly_module(**_settings())
    seeded()
    make_trainer("cut", max_steps=cut, **validation).fit(first, make_data())
    second = poly_module(**_settings())
    seeded(99)
    trainer = make_trainer("cut", max_steps=STEPS, callbacks=[Draws()], **validation)
    trainer.fit(second, make_data(), ckpt_path=trainer.checkpoint_callback.last_path)

    assert trainer.global_step == STEPS
    assert trainer.current_epoch == reference.current_epoch
    expected, found = weights(whole), weights(second)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not all(torch.equal(weights(first)[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("killed", "saved"), [(6, 5), (9, 8), (11, 10)])
def test_a_killed_run_continues_exactly_from_its_last_save(
    poly_module, make_data, make_trainer, seeded, tmp_path, killed, saved
):
    class Crash(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == killed:
                raise RuntimeError(f"killed at {killed}")

    settings = {
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        "every_n_steps": 5,
        "max_steps": STEPS,
    }
    whole = poly_module(**_settings())
    seeded()
    trainer = make_trainer("whole", **settings)
    trainer.fit(whole, make_data())
    first = poly_module(**_settings())
    seeded()
    with pytest.raises(RuntimeError, match=f"killed at {killed}"):
        make_trainer("cut", callbacks=[Crash()], **settings).fit(first, make_data())
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["global_step"] == saved
    resumed = poly_module(**_settings())
    again = make_trainer("cut", **settings)
    again.fit(resumed, make_data(), ckpt_path=tmp_path / "cut/last.ckpt")
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    # the logs go on as well: nothing is counted twice or lost
    ours, theirs = again.loggers[0], trainer.loggers[0]
    for key in ("train/loss", "train/copy/loss", "train/copy/examples", "lr/skills", "val/loss"):
        late = {step: value for step, value in theirs.series(key).items() if step > saved}
        assert ours.series(key) == pytest.approx(late, rel=1e-12)
        assert late


def test_best_ckpt_continues_exactly_too(poly_module, make_data, make_trainer, seeded, tmp_path):
    validation = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    whole = poly_module(**_settings())
    seeded()
    trainer = make_trainer("run", max_steps=STEPS, monitor="val/loss", **validation)
    trainer.fit(whole, make_data())
    best = torch.load(tmp_path / "run/best.ckpt", weights_only=True)
    assert 0 < best["global_step"] < STEPS
    resumed = poly_module(**_settings())
    make_trainer("again", max_steps=STEPS, **validation).fit(
        resumed, make_data(), ckpt_path=tmp_path / "run/best.ckpt"
    )
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_holds_only_the_trainable_part_in_plain_containers(
    poly_module, make_data, make_trainer, tmp_path
):
    module = poly_module()
    make_trainer(max_steps=3).fit(module, make_data())
    saved = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == set(weights(module))
    assert saved["hyper_parameters"]["task_names"] == module.task_names
    assert saved["hyper_parameters"]["optim"]["router_lr"] == 0.1
    size = (tmp_path / "run/last.ckpt").stat().st_size
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert size < 4 * 3 * trainable + 60_000  # weights, two moments, random states, bookkeeping


def test_a_stream_is_not_moved_by_what_happens_between():
    def step():
        return torch.rand(2).tolist(), random.random(), np.random.rand(), np.random.randn()

    def start():
        torch.manual_seed(1), random.seed(1), np.random.seed(1)

    start()
    expected = [step() for _ in range(4)]
    start()
    stream, found = RngStream(), []
    for i in range(4):
        stream.resume()
        found.append(step())
        stream.suspend()
        torch.rand(i), random.random(), np.random.randn()  # an odd number of normals: one is kept
    assert found == expected


def test_a_saved_stream_survives_a_file(tmp_path):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    random.gauss(0, 1), np.random.randn()
    stream = RngStream()
    stream.suspend()
    torch.save(stream.state_dict(), tmp_path / "rng")
    expected = torch.rand(3).tolist(), random.gauss(0, 1), np.random.randn(3).tolist()
    again = RngStream()
    again.load_state_dict(torch.load(tmp_path / "rng", weights_only=True))
    again.resume()
    assert (torch.rand(3).tolist(), random.gauss(0, 1), np.random.randn(3).tolist()) == expected
