"""Whether a routing is used, at the end of a training: the numbers, the warning, no traces."""

import copy
import logging

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils.data import DataLoader

from polylab.callbacks import RoutingUse
from polylab.callbacks.routing_use import _spread
from tests.callbacks.tiny import TASKS, TinyData

KEYS = ["routing/learned_loss", "routing/shuffled_loss", "routing/uniform_loss"]


def _spoken(memory):
    return {key: memory.series(key) for key in KEYS if memory.series(key)}


def _warnings(caplog):
    ours = [r for r in caplog.records if r.name.startswith("polylab")]
    return [r.getMessage() for r in ours if r.levelno == logging.WARNING]


def _spread_out(model):
    """Weights and skills that differ from task to task."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "poly_router" in name or "poly_lora_B" in name:
                p.normal_(std=2)


@pytest.mark.parametrize(
    ("kind", "poly_type"), [("t5", "poly"), ("t5", "mope"), ("gpt2", "poly"), ("gpt2", "mope")]
)
def test_a_module_that_is_not_ours(build, fit, memory, caplog, kind, poly_type):
    """The losses are those of the model itself, over the tokens of all batches."""
    module = build(kind, poly_type=poly_type, learning_rate=0.0)
    model = module.network["inner"]
    _spread_out(model)
    data = TinyData(decoder_only=kind == "gpt2")
    fit(module, data, [RoutingUse(margin=1e-5)], logger=memory, max_steps=2)
    found = _spoken(memory)
    assert [*found] == KEYS
    module.eval()
    with torch.no_grad():
        for key in KEYS:
            with model.routing(key.removeprefix("routing/").removesuffix("_loss")):
                losses = [module.loss(batch).item() for batch in data.batches()]
            # all batches have the same number of label tokens
            ((step, value),) = found[key]
            assert (step, value) == (2, pytest.approx(sum(losses) / 3, rel=1e-5))
    values = [found[key][0][1] for key in KEYS]
    assert min(abs(values[0] - x) for x in values[1:]) > 1e-4 * values[0]
    assert not _warnings(caplog)


@pytest.mark.parametrize("poly_type", ["poly", "mope"])
def test_an_unused_routing_is_said(build, fit, memory, caplog, poly_type):
    fit(build(poly_type=poly_type, learning_rate=0.0), TinyData(), [RoutingUse()], logger=memory)
    (said,) = _warnings(caplog)
    whose = {"poly": "task", "mope": "example"}[poly_type]
    assert f"The routing is not used: with the allocation of another {whose} the" in said
    assert f"instead of {memory.series(KEYS[0])[0][1]:.4g}," in said


@pytest.mark.parametrize(
    "poly", [{"poly_type": "shared"}, {"poly_type": "private"}, {"n_skills": 1}, {"n_tasks": 1}]
)
def test_nothing_to_ask(build, fit, memory, caplog, poly):
    data = TinyData(task_names=["only"], truth=None) if "n_tasks" in poly else TinyData()
    batches = data.batches()
    if "n_tasks" in poly:
        for batch in batches:
            batch["task_ids"].zero_()
    data.batches = lambda: batches
    fit(build(**poly), data, [RoutingUse()], logger=memory)
    assert not _spoken(memory)
    assert not _warnings(caplog)
    fit(build(), TinyData(), [RoutingUse(examples_per_task=0)], logger=memory)
    assert not _spoken(memory)


def test_batches_that_have_no_losses(build, fit, memory, caplog):
    with caplog.at_level(logging.INFO, logger="polylab"):
        fit(build(), TinyData(), [RoutingUse()], logger=memory, limit_val_batches=0)
    assert not _spoken(memory)
    assert "no validation batches with input_ids, attention_mask, labels, task_ids" in caplog.text


def test_a_model_in_parts(build, fit, memory, caplog):
    use, module = RoutingUse(), build()
    trainer = fit(module, TinyData(), [use], logger=memory, max_steps=1)
    before = len(memory.rows)
    strategy = FSDPStrategy.__new__(FSDPStrategy)
    trainer._accelerator_connector.strategy = strategy
    with caplog.at_level(logging.INFO, logger="polylab"):
        use.on_train_end(trainer, module)
    assert "a model under FSDPStrategy is in parts" in caplog.text
    assert len(memory.rows) == before


def test_no_traces(build, fit):
    """Weights, modes, random streams and what is still to come are as without it."""
    states = []
    for callbacks in ([], [RoutingUse()]):
        module = build()
        module.on_train_start = module.network["inner"].get_base_model().eval  # another mode
        torch.manual_seed(3)
        trainer = fit(module, TinyData(), callbacks)
        modes = [part.training for part in module.modules()]
        optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())
        states.append((module.state_dict(), modes, optimizer, torch.get_rng_state()))
    (a, modes, opt, draws), (b, same_modes, same_opt, same_draws) = states
    assert all(torch.equal(p, b[name]) for name, p in a.items())
    assert modes == same_modes
    assert torch.equal(draws, same_draws)
    assert all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(same_opt["state"][i][k]))
        for i, state in opt["state"].items()
        for k, x in state.items()
    )


def test_batches_are_spread_over_the_split():
    loader = DataLoader(range(100), batch_size=4)
    assert [b.tolist() for b in _spread(loader, 12)] == [
        [0, 1, 2, 3],
        [32, 33, 34, 35],
        [64, 65, 66, 67],
    ]
    assert len(_spread(loader, 1000)) == 25
    batches = [{"labels": torch.zeros(5, 2)}] * 7
    assert len(_spread(DataLoader(batches, batch_size=None), 11)) == 3
    assert _spread(batches, 0) == []


@pytest.mark.parametrize("name", ["examples_per_task", "max_examples", "margin"])
def test_arguments_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name}=-1 must be 0 or more"):
        RoutingUse(**{name: -1})


def test_the_bound_is_on_all_tasks_together(build, fit, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "polylab.callbacks.routing_use._spread", lambda _, rows: asked.append(rows) or []
    )
    for bound in (8, 3):
        fit(build(), TinyData(), [RoutingUse(examples_per_task=bound, max_examples=20)])
    assert asked == [20, 3 * len(TASKS)]
