"""Runs with `optim.router=lazy`: which tasks a step is for, accumulation, resume, refusals."""

import pytest
import torch
from lightning.pytorch import Callback

from polylab.poly.routers import rows
from polylab.poly.routers.rows import side_by_side

STEPS = 8
OPTIM = {"router": "lazy", "lr": 0.03, "schedule": "cosine", "warmup": 2, "total_steps": STEPS}


def tables(module):
    return {n: p for n, p in module.named_parameters() if n.endswith("module_logits")}


def weights(module):
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


class Watch(Callback):
    """The tasks of each step's batches, and the rows that it moved in all tables."""

    def __init__(self):
        self.tasks, self.moved, self._ids = [], [], set()

    def on_train_batch_start(self, _, module, batch, *__):
        self._ids |= {*batch["task_ids"].tolist()}
        self._before = {name: table.detach().clone() for name, table in tables(module).items()}

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step > len(self.tasks):
            self.tasks.append(self._ids)
            changed = [(p != self._before[n]).any(1).nonzero() for n, p in tables(module).items()]
            self.moved.append([{*places.flatten().tolist()} for places in changed])
            self._ids = set()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_moves_the_rows_of_all_its_batches(
    poly_module, make_data, make_trainer, seeded, accumulate
):
    seeded()
    watch = Watch()
    trainer = make_trainer(
        max_steps=STEPS,
        callbacks=[watch],
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    module = poly_module(optim={**OPTIM, "clip": 1e-3}, poly={"init_weights": False})
    trainer.fit(module, make_data(batch_size=1))
    for tasks, moved in zip(watch.tasks, watch.moved, strict=True):
        assert moved
        assert all(places == tasks for places in moved)
    assert {len(tasks) for tasks in watch.tasks} == ({1} if accumulate == 1 else {1, 2})
    assert len(trainer.loggers[0].series("grad_norm/router")) == STEPS
    assert trainer.loggers[0].series("lr/router")[1] == 0.05


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_forward_reads_all_tables_where_they_lie(
    poly_module, make_data, make_trainer, monkeypatch, kind
):
    views = []

    def watched(tables):
        views.append(side_by_side(tables))
        return views[-1]

    monkeypatch.setattr(rows, "side_by_side", watched)
    module = poly_module(kind, optim=OPTIM)
    data = make_data(is_encoder_decoder=kind == "t5")
    make_trainer(max_steps=2, limit_val_batches=0).fit(module, data)
    assert [len(view) for view in views] == [len(tables(module))] * 2


def test_accumulated_batches_take_the_step_of_a_whole_one(
    poly_module, make_data, make_trainer, seeded
):
    found = []
    for accumulate, size in ((1, 8), (2, 4)):
        seeded()
        module = poly_module(dropout=0.0, poly={"noise": "none"}, optim=OPTIM)
        settings = {"accumulate_grad_batches": accumulate, "limit_val_batches": 0}
        trainer = make_trainer(f"by {size}", max_steps=4, **settings)
        trainer.fit(module, make_data(n_train=32, batch_size=size))
        found.append(weights(module))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poly", [{}, {"poly_type": "c-poly"}, {"granularity": "model"}], ids=str)
def test_resume_is_bit_identical(poly_module, make_data, make_trainer, seeded, poly):
    def run(folder, **settings):
        module = poly_module(optim={**OPTIM, "clip": 1.0}, poly=poly)
        trainer = make_trainer(folder, limit_val_batches=0, log_every_n_steps=1, **settings)
        return module, trainer

    data = {"batch_size": 2}  # most batches lack a task
    seeded()
    whole, reference = run("whole", max_steps=STEPS)
    reference.fit(whole, make_data(**data))
    seeded()
    first, trainer = run("cut", max_steps=3)
    trainer.fit(first, make_data(**data))
    seeded(99)
    second, trainer = run("cut", max_steps=STEPS)
    trainer.fit(second, make_data(**data), ckpt_path=trainer.checkpoint_callback.last_path)
    wanted, found = weights(whole), weights(second)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    curve = trainer.loggers[0].series("train/loss")
    late = {s: v for s, v in reference.loggers[0].series("train/loss").items() if s > 3}
    assert curve == late
    assert len(late) == STEPS - 3


@pytest.mark.parametrize(("saved", "now"), [("lazy", "dense"), ("dense", "lazy")])
def test_a_run_goes_on_as_it_began(poly_module, make_data, make_trainer, tmp_path, saved, now):
    make_trainer(max_steps=1).fit(poly_module(optim={"router": saved}), make_data())
    message = f"trained with optim.router={saved}, and this run has optim.router={now}: give"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=2).fit(
            poly_module(optim={"router": now}), make_data(), ckpt_path=tmp_path / "run/last.ckpt"
        )
    module = poly_module(optim={"router": now})  # which may well be tested
    make_trainer("test").test(module, make_data(), ckpt_path=tmp_path / "run/last.ckpt")
