"""What the module adds for routers: annealing to uniform, and the priors' term of the loss."""

import math

import pytest
import torch
from lightning.pytorch import Callback

from polylab.training.optim import uniform_share

UNIFORM = {"noise": "none"}


def _fit(make_trainer, module, data, **kw):
    trainer = make_trainer(**{"max_steps": 6, "limit_val_batches": 0, **kw})
    trainer.fit(module, data)
    return trainer


def test_the_share_rises_as_one_minus_a_cosine():
    shares = [uniform_share(step, anneal_steps=4, max_steps=10) for step in range(11)]
    assert shares[:7] == [0.0] * 7
    assert shares[8] == pytest.approx(1 - math.cos(math.pi / 4))
    assert shares[10] == 1.0
    assert shares == sorted(shares)


@pytest.mark.parametrize(("steps", "total"), [(7, 6), (3, -1)])
def test_more_annealing_than_training_is_refused(
    poly_module, make_data, make_trainer, steps, total
):
    module = poly_module(optim={"anneal_steps": steps})
    message = rf"anneal_steps={steps} must lie in 1 to trainer.max_steps={total}"
    with pytest.raises(ValueError, match=message):
        _fit(make_trainer, module, make_data(), max_steps=total, max_epochs=1)


def test_an_annealed_run_ends_uniform_and_is_saved_so(
    poly_module, make_data, make_trainer, tmp_path
):
    module = poly_module(optim={"anneal_steps": 3, "lr": 0.01}, poly=UNIFORM)
    seen, forward = [], module.model.forward

    def spy(*args, **kwargs):
        seen.append(module.model.peft_config["default"].uniform_share)
        return forward(*args, **kwargs)

    module.model.forward = spy
    trainer = _fit(make_trainer, module, make_data())
    wanted = [uniform_share(step, anneal_steps=3, max_steps=6) for step in range(6)]
    assert seen == pytest.approx(wanted)
    for w in module.model.task_weights().values():
        torch.testing.assert_close(w, torch.full_like(w, 1 / 4))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = poly_module(optim={"anneal_steps": 3, "lr": 0.01}, poly=UNIFORM)
    again.on_load_checkpoint(torch.load(tmp_path / "end.ckpt", weights_only=True))
    assert again.model.peft_config["default"].uniform_share == 1.0


class StopAfter(Callback):
    """As a preempted run: the schedule knows nothing of it."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == self.step


def test_a_resumed_run_goes_on_annealing(poly_module, make_data, make_trainer, seeded):
    def run(folder, *, callbacks=(), path=None):
        module = poly_module(optim={"anneal_steps": 5, "lr": 0.01})
        seeded()
        trainer = make_trainer(folder, max_steps=6, limit_val_batches=0, callbacks=callbacks)
        trainer.fit(module, make_data(), ckpt_path=path)
        return module, trainer.checkpoint_callback.last_path

    whole, _ = run("whole")
    cut, path = run("cut", callbacks=[StopAfter(3)])
    assert 0 < cut.model.peft_config["default"].uniform_share < 1
    resumed, _ = run("cut", path=path)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_priors_move_the_routing_and_are_logged(poly_module, make_data, make_trainer):
    values = {}
    for weight in (0.0, 5.0):
        priors = {"entropy": weight}
        module = poly_module(poly={**UNIFORM, "priors": priors})
        trainer = _fit(make_trainer, module, make_data(), max_steps=8, log_every_n_steps=1)
        values[weight] = trainer.loggers[0].series("train/prior")
        entropy = [
            -(w * w.log()).sum(-1).mean() / math.log(4)
            for w in module.model.task_weights().values()
        ]
        values[weight, "entropy"] = float(sum(entropy) / len(entropy))
    assert not values[0.0]
    assert values[5.0][8] < values[5.0][1]
    assert values[5.0][1] == pytest.approx(5.0, rel=1e-3)  # uniform at the start
    assert values[5.0, "entropy"] < values[0.0, "entropy"]


def test_priors_count_once_under_accumulation(poly_module, make_data, make_trainer, seeded):
    runs = {}
    for accumulate, size in ((1, 8), (2, 4)):
        # so large an eps makes a step proportional to its gradient
        optim = {"eps": 10.0, "router_lr": 100.0}
        poly = {**UNIFORM, "priors": {"entropy": 30.0}, "init_weights": False}
        module = poly_module(dropout=0.0, poly=poly, optim=optim)
        data = make_data(batch_size=size)
        seeded()
        _fit(make_trainer, module, data, max_steps=2, accumulate_grad_batches=accumulate)
        runs[accumulate] = [p for p in module.parameters() if p.requires_grad]
    for one, two in zip(runs[1], runs[2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
