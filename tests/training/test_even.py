"""As many forward passes on every rank, however uneven the data: a sharded model needs it."""

import logging
import socket
from contextlib import ExitStack
from functools import partial
from unittest import mock

import numpy as np
import pytest
from lightning.pytorch import Trainer, seed_everything

from polylab.callbacks import RoutingUse
from polylab.callbacks.base import AllocationCallback
from polylab.callbacks.routing_use import ROUTINGS
from polylab.data import DataModule, Example, TaskCollection, TaskData
from polylab.training import ShardedStrategy
from polylab.training.distributed import gather_objects
from tests.training.conftest import Memory, _on_two_ranks, build_module, ddp

CHOICES = ("yes", "no", "perhaps", "neither of them")
KINDS = {  # and how many examples all ranks evaluate at a time
    "t5": ({"n_splits": 2}, 2),
    "gpt2": ({"poly_type": "mope"}, 4),
}
READERS = ("training.generation", "training.ranking", "callbacks.allocations")


def _data(tokenizer, *, is_encoder_decoder, eval_batch_size):
    """Seven examples to validate, of other lengths and with other options; one to test."""
    train = {name: [Example(f"{name}{i}", name * 3) for i in range(8)] for name in ("a", "b")}
    held_out = {
        "a": [Example("x" * (1 + 3 * i), "no", options=CHOICES[: 1 + i]) for i in range(4)],
        "b": [Example("y" * (2 + 5 * i), "yes" * (1 + i)) for i in range(3)],
    }
    test = {"a": [Example("z", "yes", options=CHOICES)], "b": []}
    tasks = [TaskData(name, train[name], held_out[name], test[name]) for name in train]
    return DataModule(
        lambda: TaskCollection(tasks),
        tokenizer,
        is_encoder_decoder=is_encoder_decoder,
        batch_size=4,
        eval_batch_size=eval_batch_size,
        steps_per_epoch=2,
        max_input_length=24,
        max_target_length=16,
    )


def _count(counts, i, *_call):
    counts[i] += 1


def _count_calls(model):
    """How often the backbone runs, counted in its first block; of an encoder-decoder either half.

    Returns:
        The growing counts.
    """
    base = model.get_base_model()
    stacks = [base.encoder.block, base.decoder.block] if hasattr(base, "encoder") else []
    counts = []
    for i, stack in enumerate(stacks or [base.transformer.h]):
        counts.append(0)
        stack[0].register_forward_hook(partial(_count, counts, i))
    return counts


class _Sees(AllocationCallback):
    def see(self, trainer, pl_module, sight):  # noqa: ARG002
        self.weights = {name: w.numpy() for name, w in sight.allocations.weights.items()}


def _run(kind, *, strategy=None):
    """A training with validations and a test: how often the backbone ran, and what was found."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adapter, eval_batch_size = KINDS[kind]
    poly = {"n_tasks": 2, "noise": "none", **adapter}
    module = build_module(
        kind,
        dropout=0.0,
        poly=poly,
        task_names=["a", "b"],
        max_new_tokens=9,
        predictions_per_task=3,
        optim={"eps": 0.01},  # else Adam makes steps of rounding errors
    )
    base = module.model.get_base_model()
    base.generation_config.eos_token_id = [*range(1, 384, 5)]  # answers end early, each elsewhere
    for parameter in base.parameters():
        parameter.data.mul_(4)
    counts, sees, memory = _count_calls(module.model), _Sees(), Memory()
    seed_everything(3, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy is None else 2,
        strategy=strategy or "auto",
        max_steps=2,
        callbacks=[sees, RoutingUse(examples_per_task=4)],
        logger=memory,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=1,
    )
    data = _data(module.tokenizer, is_encoder_decoder=kind == "t5", eval_batch_size=eval_batch_size)
    with mock.patch("polylab.callbacks.routing_use._SIZE", 3):  # which do not go into two ranks
        trainer.fit(module, data)
    trained = [*counts]
    trainer.test(module, data, verbose=False)
    lines = [
        (split, line)
        for split, found in module.predictions.items()
        for line in found  # the same ones in the same order
    ]
    return {
        "counts": [trained, counts],
        "texts": [(split, line["task"], line["prediction"]) for split, line in lines],
        "options": [line.get("options", {}) for _, line in lines],
        "results": flat(module.results),
        "weights": sees.weights,
        "use": {r: memory.series(f"routing/{r}_loss")[2] for r in ROUTINGS},
    }


def _on_a_rank(_folder):
    """First whatever asks whether a model is sharded hears that it is; then one really is."""
    with ExitStack() as patches:
        for name in READERS:
            patches.enter_context(mock.patch(f"polylab.{name}.is_sharded", return_value=True))
        found = {kind: _run(kind, strategy=ddp()) for kind in KINDS}
    first, *others = gather_objects([run["counts"] for run in found.values()])
    if others == [first]:  # else it would wait for ever
        found["sharded gpt2"] = _run("gpt2", strategy=ShardedStrategy())
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    return _on_two_ranks(_on_a_rank, port, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", [*KINDS, "sharded gpt2"])
def test_ranks_run_the_backbone_as_often_and_find_what_one_finds(ranks, case):
    kind = case.split()[-1]
    one, (first, second) = _run(kind), (rank[case] for rank in ranks)
    assert first["counts"] == second["counts"]
    trained, tested = first["counts"]
    assert all(0 < before < after for before, after in zip(trained, tested, strict=True))
    assert len({len(text) for *_, text in one["texts"]}) > 2
    assert first["use"] == second["use"] == pytest.approx(one["use"], rel=1e-5)
    assert len({*one["use"].values()}) == 3
    for rank in (first, second):
        assert rank["texts"] == one["texts"]
        for options, expected in zip(rank["options"], one["options"], strict=True):
            assert options == pytest.approx(expected, rel=1e-4)
        assert rank["results"] == pytest.approx(one["results"], rel=1e-4)
        for layer, weights in one["weights"].items():
            np.testing.assert_allclose(rank["weights"][layer], weights, rtol=1e-4, atol=1e-6)


def flat(results):
    """Numbers by their place in nested mappings and lists."""
    if not isinstance(results, dict | list | tuple):
        return {"": results}
    pairs = results.items() if isinstance(results, dict) else enumerate(results)
    parts = ((key, flat(value)) for key, value in pairs)
    return {f"/{key}{inner}": number for key, part in parts for inner, number in part.items()}
