"""Which checkpoints a run keeps, and that a wrong one is refused readably."""

import json
import math

import pytest
import torch
from lightning.pytorch import Callback

from polylab.training import PolyModule, RunCheckpoint, save_adapter
from polylab.training.checkpoint import check_trainable_state, trainable_state


class Score(Callback):
    """Says what the validation's score was."""

    def __init__(self, scores):
        self.scores = list(scores)

    def on_validation_epoch_end(self, _, pl_module):
        pl_module.log("score", self.scores.pop(0), sync_dist=False)


def _steps(folder):
    return {p.name: torch.load(p, weights_only=True)["global_step"] for p in folder.iterdir()}


def _fit(make_trainer, module, data, *, scores, **kw):
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None, "max_steps": 8, **kw}
    trainer = make_trainer(callbacks=[Score(scores)], monitor="score", **settings)
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((0.1, 0.3, 0.2, 0.3), 4),
        ((0.1, 0.2, 0.3, 0.4), 8),
        ((math.nan, 0.2, math.nan, 0.1), 4),
        ((0.0, 0.0, 0.0, 0.0), 2),
    ],
)
def test_a_run_keeps_its_last_and_its_best(
    poly_module, make_data, make_trainer, tmp_path, scores, best
):
    _fit(make_trainer, poly_module(), make_data(), scores=scores)
    assert _steps(tmp_path / "run") == {"last.ckpt": 8, "best.ckpt": best}


def test_the_names_stay_when_a_folder_is_used_again(poly_module, make_data, make_trainer, tmp_path):
    for scores, best in (((0.9, 0.1, 0.1, 0.1), 2), ((0.1, 0.2, 0.3, 0.2), 6)):
        trainer = _fit(make_trainer, poly_module(), make_data(), scores=scores)
        assert _steps(tmp_path / "run") == {"last.ckpt": 8, "best.ckpt": best}
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "run/best.ckpt")


def test_a_lower_score_can_be_the_better_one(tmp_path):
    keep = RunCheckpoint(tmp_path, mode="min")
    assert keep.best_model_path == ""
    assert keep._sign == -1
    with pytest.raises(ValueError, match="mode=top must be max or min"):
        RunCheckpoint(tmp_path, mode="top")
    with pytest.raises(ValueError, match="every_n_steps=0 must be at least 1"):
        RunCheckpoint(tmp_path, every_n_steps=0)


def test_a_monitor_that_is_not_logged_is_named_with_what_is(poly_module, make_data, make_trainer):
    trainer = make_trainer(max_steps=6, monitor="val/exact_mach", num_sanity_val_steps=1)
    with pytest.raises(
        ValueError, match=r"monitor=val/exact_mach was not .*val/exact_match, val/l"
    ):
        trainer.fit(poly_module(), make_data())


def test_without_validation_the_last_step_is_kept(poly_module, make_data, make_trainer, tmp_path):
    make_trainer(max_steps=3, limit_val_batches=0).fit(poly_module(), make_data())
    assert _steps(tmp_path / "run") == {"last.ckpt": 3}
    make_trainer("epochs", max_epochs=1, limit_val_batches=0).fit(poly_module(), make_data())
    assert _steps(tmp_path / "epochs") == {"last.ckpt": 6}


def test_a_continued_run_in_another_folder_finds_its_own_best(
    poly_module, make_data, make_trainer, tmp_path
):
    _fit(make_trainer, poly_module(), make_data(), scores=(0.1, 0.9, 0.1, 0.1))
    module, data = poly_module(), make_data()
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None, "max_steps": 10}
    for folder, best in (("run", 4), ("other", 10)):
        trainer = make_trainer(folder, callbacks=[Score([0.5])], monitor="score", **settings)
        trainer.fit(module, data, ckpt_path=tmp_path / "run/last.ckpt")
        assert _steps(tmp_path / folder)["best.ckpt"] == best
        module = poly_module()
        if folder == "run":  # back to step 8 for the second round
            _fit(make_trainer, poly_module(), make_data(), scores=(0.1, 0.9, 0.1, 0.1))


def test_fast_dev_run_writes_nothing(poly_module, make_data, make_trainer, tmp_path):
    make_trainer(fast_dev_run=True).fit(poly_module(), make_data())
    assert list(tmp_path.iterdir()) == []


def test_best_is_what_the_test_loads(poly_module, make_data, make_trainer, tmp_path):
    module, data = poly_module(), make_data()
    trainer = _fit(make_trainer, module, data, scores=(0.9, 0.1, 0.1, 0.1))
    last = trainable_state(module, module.state_dict())
    last = {name: tensor.clone() for name, tensor in last.items()}
    trainer.test(module, data, ckpt_path="best", verbose=False)
    best = torch.load(tmp_path / "run/best.ckpt", weights_only=True)["state_dict"]
    now = module.state_dict()
    assert all(torch.equal(now[name], value) for name, value in best.items())
    assert not all(torch.equal(now[name], value) for name, value in last.items())


@pytest.mark.filterwarnings("ignore:Found keys that are in the model state dict")  # the backbone's
def test_a_module_comes_back_from_its_file(poly_module, make_data, make_trainer, tmp_path):
    module = poly_module(optim={"lr": 0.5}, predictions_per_task=None)
    make_trainer(max_steps=2).fit(module, make_data())
    fresh = poly_module()
    again = PolyModule.load_from_checkpoint(
        tmp_path / "run/last.ckpt", model=fresh.model, tokenizer=fresh.tokenizer
    )
    assert again.hparams == module.hparams
    expected, found = module.state_dict(), again.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def _saved(module):
    return {n: t.clone() for n, t in trainable_state(module, module.state_dict()).items()}


def test_a_state_that_does_not_fit_is_listed(poly_module):
    module = poly_module()
    state = _saved(module)
    check_trainable_state(module, state)
    first, second, *_ = state
    state["model.extra.weight"] = state.pop(first)
    state[second] = state[second][..., :1]
    with pytest.raises(ValueError, match="does not fit") as caught:
        check_trainable_state(module, state)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  missing in the checkpoint (1):", f"    {first}"]
    assert lines[3:5] == ["  not trainable in the model (1):", "    model.extra.weight"]
    shapes = [list(state[second].shape), list(module.get_parameter(second).shape)]
    assert lines[5] == "  of another shape (1):"
    assert lines[6] == f"    {second}: {shapes[0]} in the checkpoint, {shapes[1]} in the model"


def test_a_long_difference_is_cut(poly_module):
    module = poly_module()
    n = len(_saved(module))
    with pytest.raises(
        ValueError, match=rf"missing in the checkpoint \({n}\)(.*\n)+.*and {n - 8} more"
    ):
        check_trainable_state(module, {})


def test_other_tasks_or_another_adapter_are_refused_on_resume(
    poly_module, make_data, make_trainer, tmp_path
):
    make_trainer(max_steps=2).fit(poly_module(), make_data())
    path = tmp_path / "run/last.ckpt"
    for names, detail in (
        (
            ["copy", "first", "lower"],
            r"only in the checkpoint: \['upper'\]; only here: \['lower'\]",
        ),
        (["first", "copy", "upper"], "another order"),
    ):
        with pytest.raises(ValueError, match=f"trained on 3 tasks, this run has 3 .{detail}"):
            make_trainer(max_steps=4).fit(
                poly_module(task_names=names), make_data(), ckpt_path=path
            )
    with pytest.raises(ValueError, match="of another shape"):
        make_trainer(max_steps=4).fit(
            poly_module(poly={"n_skills": 5}), make_data(), ckpt_path=path
        )


def test_an_adapter_folder_appears_whole(poly_module, tmp_path):
    module = poly_module()
    target = tmp_path / "adapter"
    for _ in range(2):
        save_adapter(module.model, target, ["é", "b", "c"])
        assert json.loads((target / "tasks.json").read_text("utf-8")) == {"é": 0, "b": 1, "c": 2}
        assert (target / "adapter_config.json").exists()
    (target / "kept").touch()

    def fail(_, **__):
        raise OSError("disk full")

    module.model.save_pretrained = fail
    with pytest.raises(OSError, match="disk full"):
        save_adapter(module.model, target, ["é", "b", "c"])
    assert (target / "kept").exists()


def test_buffers_of_routers_are_kept(poly_module):
    module, other = poly_module(), poly_module()
    layer = next(iter(module.model.poly_layers().values()))
    layer.router("default").register_buffer("mean", torch.tensor([3.0]))
    state = trainable_state(module, module.state_dict())
    assert [name for name in state if name.endswith("poly_router.default.mean")]
    with pytest.raises(ValueError, match=r"not trainable in the model \(1\):\n .*mean"):
        check_trainable_state(other, state)
    check_trainable_state(module, state)
