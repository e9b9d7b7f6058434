"""Adapters that grow keep what they learnt; new tasks start where they are told to."""

import pytest
import torch

from polylab import PolyModel
from tests.poly.tiny import (
    N_SKILLS,
    N_TASKS,
    base,
    config_of,
    inputs_of,
    output_of,
    poly,
    task_ids,
    trained,
)

NAMES = [f"task{i}" for i in range(N_TASKS)]


def states(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "poly_" in name}


@pytest.mark.parametrize("changes", [{}, {"poly_type": "private"}, {"granularity": "block"}])
def test_added_tasks_leave_the_old_ones_bit_for_bit(changes, tolerance):
    model = poly("llama", **changes)
    before, weights = output_of(model, "llama", task_ids=task_ids()), model.task_weights()
    logits = {n: v for n, v in states(model).items() if "module_logits" in n}
    model.add_tasks(2)
    assert torch.equal(output_of(model, "llama", task_ids=task_ids()), before)
    for name, w in model.task_weights().items():
        assert w.shape[0] == N_TASKS + 2
        old = w[:N_TASKS, :, : weights[name].shape[2]]
        torch.testing.assert_close(old, weights[name], **tolerance)  # other lengths, other SIMD
    for name, old in logits.items():
        assert torch.equal(states(model)[name][:N_TASKS], old)
    new = output_of(model, "llama", task_ids=torch.full((4,), N_TASKS + 1))
    assert not torch.allclose(new, before, atol=1e-3)
    assert all(p.requires_grad for n, p in model.named_parameters() if "poly_" in n)


def test_added_tasks_of_c_poly_bring_their_skills(tolerance):
    model = poly("t5", poly_type="c-poly", n_private=2).double()
    before = output_of(model, "t5", task_ids=task_ids())
    model.add_tasks(1)
    torch.testing.assert_close(output_of(model, "t5", task_ids=task_ids()), before, **tolerance)
    model.add_skills(3)
    torch.testing.assert_close(output_of(model, "t5", task_ids=task_ids()), before, **tolerance)
    layer = next(iter(model.poly_layers().values()))
    assert layer.n_skills["default"] == N_SKILLS + 3 + (N_TASKS + 1) * 2


@pytest.mark.parametrize("kind", ["poly", "c-poly"])
def test_a_new_task_starts_like_another(kind, tolerance):
    model = poly("gpt2", poly_type=kind, task_names=NAMES)
    model.add_tasks(["new"], like="task2")
    for w in model.task_weights().values():
        shared = slice(0, N_SKILLS)
        torch.testing.assert_close(w[-1, :, shared], w[2, :, shared], **tolerance)
    if kind == "poly":
        ids = torch.full((4,), 2)
        wanted = output_of(model, "gpt2", task_ids=ids)
        torch.testing.assert_close(output_of(model, "gpt2", task_ids=ids * 0 + N_TASKS), wanted)
    model.add_tasks(["another"], like=N_TASKS)
    assert model.peft_config["default"].task_names == [*NAMES, "new", "another"]


def test_a_new_task_starts_at_the_mean(tolerance):
    model = poly("gpt2")
    means = {name: w.mean(0) for name, w in model.task_weights().items()}
    model.add_tasks(1, like="mean")
    for name, w in model.task_weights().items():
        torch.testing.assert_close(w[-1], means[name], **tolerance)


def test_added_skills_are_shut_for_old_tasks_and_open_for_new_ones(tolerance):
    model = poly("t5").double()
    before, weights = output_of(model, "t5", task_ids=task_ids()), model.task_weights()
    model.add_skills(2)
    model.add_tasks(1)
    for name, w in model.task_weights().items():
        torch.testing.assert_close(w[:N_TASKS, :, :N_SKILLS], weights[name], **tolerance)
        assert w[:N_TASKS, :, N_SKILLS:].max() < 1e-15
        assert w[N_TASKS].min() > 0.9 / (N_SKILLS + 2)
    torch.testing.assert_close(output_of(model, "t5", task_ids=task_ids()), before, **tolerance)
    output = model.train()(**inputs_of("t5"), task_ids=torch.full((4,), N_TASKS))
    output.loss.backward()
    layer = next(iter(model.poly_layers().values()))
    assert layer.poly_lora_B["default"].grad[:, N_SKILLS:].abs().max() > 0


def test_growth_keeps_the_dtype_and_other_adapters():
    model = poly("llama").double()
    model.add_adapter("other", config_of("llama", n_tasks=2))
    model.set_adapter("other")
    model.add_tasks(3, adapter_name="default")
    assert model.active_adapter == "other"
    layer = next(iter(model.poly_layers().values()))
    assert layer.poly_lora_A["default"].dtype == torch.float64
    assert not layer.poly_lora_A["default"].requires_grad
    assert layer.n_tasks == {"default": N_TASKS + 3, "other": 2}


def test_a_grown_adapter_is_saved_and_loaded(tmp_path):
    model = poly("llama", task_names=NAMES)
    model.add_tasks(["x", "y"], like="mean")
    model.add_skills(1)
    model.save_pretrained(tmp_path)
    again = PolyModel.from_pretrained(base("llama"), tmp_path)
    ids = torch.tensor([0, 7, 3, 6])
    assert again.peft_config["default"].task_names == [*NAMES, "x", "y"]
    assert torch.equal(
        output_of(again, "llama", task_ids=ids), output_of(model, "llama", task_ids=ids)
    )


@pytest.mark.parametrize(
    ("changes", "call", "message"),
    [
        ({}, lambda m: m.add_tasks(0), "tasks=0: give at least one"),
        ({}, lambda m: m.add_tasks(["a"]), "6 tasks have no names"),
        ({"task_names": NAMES}, lambda m: m.add_tasks(1), "give the names of the new ones"),
        ({"task_names": NAMES}, lambda m: m.add_tasks(["task3"]), r"has \['task3'\] already"),
        ({}, lambda m: m.add_tasks(1, like="task9"), "like='task9' is no task.* 0 to 5"),
        ({"poly_type": "private"}, lambda m: m.add_tasks(1, like="mean"), "PrivateRouter has no"),
        ({"poly_type": "mope"}, lambda m: m.add_skills(1), "poly_type='mope' cannot get more"),
        ({}, lambda m: m.add_skills(0), "n_skills=0"),
        ({}, lambda m: m.add_tasks(1, adapter_name="gone"), "no adapter 'gone'"),
        ({}, lambda m: m.combine_adapters(["default"], "x"), "at least two different"),
        ({"combine": "products"}, lambda m: m.average_skills("x"), "combine='products' have no"),
    ],
)
def test_what_cannot_grow_says_so_and_stays(changes, call, message):
    model = poly("gpt2", **changes)
    before = states(model)
    with pytest.raises(ValueError, match=message):
        call(model)
    after = states(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [*model.peft_config] == ["default"]


@pytest.mark.parametrize("poly_type", ["poly", "private"])
def test_combined_adapters_compute_what_each_did(poly_type, tolerance):
    model = poly("llama", poly_type=poly_type, task_names=NAMES).double()
    names = ["a", "b", "c"]
    other = config_of("llama", poly_type=poly_type, n_tasks=3, n_skills=2, task_names=names)
    model.add_adapter("other", other)
    model.set_adapter("other")
    trained(model, seed=9)
    one, two = torch.tensor([0, 5, 2, 5]), torch.tensor([2, 0, 1, 2])
    wanted_two = output_of(model, "llama", task_ids=two)
    model.set_adapter("default")
    wanted_one = output_of(model, "llama", task_ids=one)
    model.combine_adapters(["default", "other"], "both")
    model.set_adapter("both")
    assert model.peft_config["both"].task_names == [*NAMES, *names]
    torch.testing.assert_close(output_of(model, "llama", task_ids=one), wanted_one, **tolerance)
    moved = two + N_TASKS
    torch.testing.assert_close(output_of(model, "llama", task_ids=moved), wanted_two, **tolerance)


def test_adapters_that_differ_are_not_combined():
    model = poly("llama")
    model.add_adapter("other", config_of("llama", r=2))
    with pytest.raises(ValueError, match="'default' and 'other' differ in r: 3 and 2"):
        model.combine_adapters(["default", "other"], "both")
    assert [*model.peft_config] == ["default", "other"]


@pytest.mark.parametrize("n_splits", [1, 2])
def test_the_average_of_the_skills_is_one_lora(n_splits, tolerance):
    model = poly("t5", n_splits=n_splits).double()
    with model.routing("uniform"):
        wanted = output_of(model, "t5", task_ids=task_ids())
    model.average_skills("mean")
    model.set_adapter("mean")
    assert next(iter(model.poly_layers().values())).n_skills["mean"] == 1
    torch.testing.assert_close(output_of(model, "t5"), wanted, **tolerance)
