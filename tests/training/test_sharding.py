"""FSDP2 on two ranks: the run of one process and of DDP, and checkpoints that each of them reads.

In float64, where sums in another order show in the last bits only.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor

from polylab.config.ddp import clean_environment
from polylab.poly.sharding import find_blocks, is_sharded, local_part, shard_like, whole
from polylab.training import AtomicCheckpointIO, RunCheckpoint, ShardedStrategy
from polylab.training.sharding import check_sharded, check_strategy
from tests.training.conftest import build_module, ddp

STEPS, CUT = 5, 2
ENGINES = ["ddp", "2 shard", "2 shard the backbone"]
CASES = {
    "t5": {"poly": {"n_splits": 2, "modules_to_save": ["final_layer_norm"]}},
    "gpt2": {"kind": "gpt2", "accumulate_grad_batches": 3},
    "mope": {"poly": {"poly_type": "mope"}},
    "lazy": {"optim": {"router": "lazy", "weight_decay": 0.0}},
}


def train(
    folder, strategy, *, kind="t5", poly=None, optim=None, steps=STEPS, ckpt_path=None, **settings
):
    """What is known after a run with global batches of 6 rows."""
    from tests.training.conftest import Memory
    from tests.training.test_with_data import data_of

    poly = {"n_skills": 3, **(poly or {})}
    optim = {"lr": 0.01, "clip": 0.003, **(optim or {})}
    module = build_module(kind, dropout=0.0, optim=optim, seed=4, poly=poly)
    module.model.double()
    for layer in module.model.poly_layers().values():
        layer.cast_adapter("default", torch.float64)
    data = data_of(kind)
    seed_everything(3, verbose=False)
    logger = Memory()
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy in ("auto", "one shard") else 2,
        strategy=_made(strategy),
        max_steps=steps,
        val_check_interval=2 * settings.get("accumulate_grad_batches", 1),
        check_val_every_n_epoch=None,
        callbacks=[RunCheckpoint(folder, monitor="val/loss", mode="min")],
        plugins=[AtomicCheckpointIO()],
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    own = {n: p for n, p in module.named_parameters() if p.requires_grad}
    sizes = {name: (p.numel(), local_part(p).numel()) for name, p in own.items()}
    weights = {name: whole(p).detach().numpy().copy() for name, p in own.items()}
    trainer.validate(module, data, ckpt_path=trainer.checkpoint_callback.best_model_path)
    keys = ("train/loss", "grad_norm/skills", "grad_norm/router")
    return {
        "weights": weights,
        "sizes": sizes,
        "sharded": is_sharded(module.model),
        "result": module.results["val"],
        "series": {key: logger.series(key) for key in keys},
    }


def _made(strategy):
    if strategy == "ddp":
        return ddp()
    if "shard" not in strategy:
        return strategy
    return ShardedStrategy(shard_skills="backbone" not in strategy)


def all_runs(folder):
    """Of every case a run by DDP and one sharded, and those that the other one continues."""
    found = {}
    for case, settings in CASES.items():
        for engine in ENGINES:
            path = f"{folder}/{case}/{engine}"
            found[case, engine] = train(path, engine, **settings)
    settings = CASES["t5"]
    for engine, other in (("ddp", "2 shard"), ("2 shard", "ddp")):
        path = f"{folder}/cut by {engine}"
        train(path, engine, steps=CUT, **settings)
        ckpt_path = f"{path}/last.ckpt"
        found[other, "continues"] = train(f"{path}/on", other, ckpt_path=ckpt_path, **settings)
    one = f"{folder}/../one/last.ckpt"
    found["2 shard", "continues one"] = train(f"{folder}/on", "2 shard", ckpt_path=one, **settings)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def ranks(folder):
    from tests.training.conftest import _on_two_ranks, find_port

    train(folder / "one", "auto", steps=CUT, **CASES["t5"])
    return _on_two_ranks(all_runs, find_port(), folder / "two")


@pytest.fixture(scope="module")
def alone():
    return {}


def _alone(case, folder, alone):
    if case not in alone:
        alone[case] = train(folder / "alone" / case, "auto", **CASES[case])
    return alone[case]


def _check_equal(found, expected):
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        np.testing.assert_allclose(found["weights"][name], value, rtol=1e-6, atol=1e-9)
    for key, series in expected["series"].items():
        late = {step: value for step, value in series.items() if step in found["series"][key]}
        assert found["series"][key] == pytest.approx(late, rel=1e-9)
        assert STEPS in late
    assert found["result"]["tasks"].keys() == expected["result"]["tasks"].keys()
    assert found["result"]["macro"] == pytest.approx(expected["result"]["macro"], rel=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process(case, engine, ranks, folder, alone):
    for rank in ranks:
        _check_equal(rank[case, engine], _alone(case, folder, alone))
        assert rank[case, engine]["sharded"] is (engine != "ddp")


@pytest.mark.parametrize("run", [("2 shard", "continues"), ("ddp", "continues")])
def test_each_engine_continues_the_other_ones_run(run, ranks, folder, alone):
    for rank in ranks:
        _check_equal(rank[run], _alone("t5", folder, alone))
        assert min(rank[run]["series"]["train/loss"]) == CUT + 1


def test_checkpoints_move_between_one_rank_and_two(ranks, folder, alone):
    for rank in ranks:
        _check_equal(rank["2 shard", "continues one"], _alone("t5", folder, alone))
    path = folder / "two" / "cut by 2 shard" / "last.ckpt"
    on = train(folder / "back", "auto", ckpt_path=path, **CASES["t5"])
    _check_equal(on, _alone("t5", folder, alone))


def test_skills_are_cut_in_halves_and_routers_are_whole(ranks):
    for rank in ranks:
        for name, (size, own) in rank["t5", "2 shard"]["sizes"].items():
            assert own == (size if "poly_router" in name else size // 2), name
        assert any("modules_to_save" in name for name in rank["t5", "2 shard"]["sizes"])


def test_a_sharded_checkpoint_is_an_ordinary_one(ranks, folder):  # noqa: ARG001
    files = [folder / "two" / "t5" / engine / "last.ckpt" for engine in ("ddp", "2 shard")]
    ddp, sharded = (torch.load(file, weights_only=True) for file in files)
    assert ddp.keys() == sharded.keys()
    assert ddp["state_dict"].keys() == sharded["state_dict"].keys()
    (its,), (own,) = ddp["optimizer_states"], sharded["optimizer_states"]
    assert its["state"].keys() == own["state"].keys()
    tensors = [t for moments in own["state"].values() for t in moments.values()]
    assert all(type(t) is torch.Tensor for t in [*tensors, *sharded["state_dict"].values()])
    for place, moments in its["state"].items():
        torch.testing.assert_close(own["state"][place], moments, rtol=1e-6, atol=1e-12)


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")
def test_one_shard_is_the_whole_model(folder, alone):
    with clean_environment():
        found = train(folder / "alone" / "shard", "one shard", **CASES["t5"])
    assert found["sharded"]
    _check_equal(found, _alone("t5", folder, alone))


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")
def test_callbacks_may_detach_sharded_parameters_in_an_evaluation(monkeypatch):
    """With NCCL Lightning would evaluate in inference mode, with gloo it never does."""
    from tests.training.test_with_data import data_of

    class Detach(Callback):
        found = 0

        def on_validation_end(self, trainer, pl_module):  # noqa: ARG002
            self.found = sum(isinstance(p.detach(), DTensor) for p in pl_module.parameters())

    not_gloo = "lightning.pytorch.loops.utilities._distributed_is_initialized"
    monkeypatch.setattr(not_gloo, lambda: False)
    seen = Detach()
    with clean_environment():
        trainer = Trainer(
            accelerator="cpu", strategy=ShardedStrategy(), callbacks=[seen], logger=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.validate(build_module("t5", seed=4, poly={"n_skills": 3}), data_of("t5"))
    assert seen.found


def test_what_is_not_sharded_stays_as_it_is():
    tensor = torch.arange(6.0)
    assert whole(tensor) is local_part(tensor) is tensor
    assert shard_like({"a": tensor}, {"b": tensor})["a"] is tensor
    assert not isinstance(shard_like({"a": tensor}, {"a": tensor})["a"], DTensor)


@pytest.mark.parametrize(
    ("clip", "precision", "optimizer", "message"),
    [
        (0.5, "32-true", "adamw", "gradient_clip_val=0.5 takes one norm .* optim.clip"),
        (None, "16-mixed", "adam", "precision=16-mixed scales .* bf16-mixed"),
        (None, "32-true", "adafactor", "optim.name=adafactor .* trainer=ddp"),
    ],
)
def test_settings_that_need_whole_gradients_are_refused(clip, precision, optimizer, message):
    given = SimpleNamespace(gradient_clip_val=clip, precision=precision)
    with pytest.raises(ValueError, match=message):
        check_sharded(given, optimizer)
    check_sharded(SimpleNamespace(gradient_clip_val=None, precision="bf16-mixed"), "adamw")


@pytest.mark.parametrize(
    ("strategy", "is_shardable", "message"),
    [
        (ModelParallelStrategy(), True, "ModelParallelStrategy .* give trainer=fsdp"),
        (FSDPStrategy(), True, "FSDPStrategy .* give trainer=fsdp"),
        (ShardedStrategy(), False, "ShardedStrategy cannot shard the heads .* trainer=ddp"),
    ],
)
def test_strategies_that_do_not_suit_are_refused(strategy, is_shardable, message):
    with pytest.raises(ValueError, match=message):
        check_strategy(strategy, is_shardable=is_shardable)
    check_strategy(ShardedStrategy(), is_shardable=True)
    check_strategy(DDPStrategy(), is_shardable=False)


def test_models_that_cannot_be_sharded_are_refused():
    plain = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"Linear has no blocks to shard.*trainer=ddp"):
        find_blocks(plain)
    quantised = build_module("gpt2").model.get_base_model()
    assert len(find_blocks(quantised)) == 1
    quantised.is_quantized = True
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel is quantised.*quantization=null"):
        find_blocks(quantised)
