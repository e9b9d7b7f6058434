"""All layers routed and mixed at once: what holds the plan together, and what makes it anew."""

import copy

import pytest
import torch

from polylab.poly import mixing
from tests.poly.tiny import config_of, gradients, inputs_of, output_of, poly, task_ids

SIBLINGS = {
    "t5": ["q", "k", "v", "o", "wi_0", "wi_1"],
    "llama": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
}


def loss_and_gradients(model, kind):
    model.zero_grad()
    torch.manual_seed(3)
    loss = model(**inputs_of(kind), task_ids=task_ids()).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("n_splits", [1, 2])
def test_groups_with_one_joint_b(kind, n_splits, monkeypatch):
    model = poly(kind, target_modules=SIBLINGS[kind], n_splits=n_splits, alpha=5.0).train()
    wanted = loss_and_gradients(model, kind)
    seen = []

    def joint(group, adapter_name):
        shapes = {layer.poly_lora_B[adapter_name].shape for layer in group}
        seen.append(len(group) if len(shapes) == 1 else 1)
        return [group] if len(shapes) == 1 else [(layer,) for layer in group]

    monkeypatch.setattr(mixing, "_parts", joint)
    model.set_adapter("default")  # plans anew
    found = loss_and_gradients(model, kind)
    assert max(seen) == (3 if kind == "t5" else 2)
    torch.testing.assert_close(found[0], wanted[0])
    for name, grad in wanted[1].items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-5)
    model.eval()
    one = torch.full_like(task_ids(), 2)
    merged = model.generate(inputs_of(kind)["input_ids"], task_ids=one, max_new_tokens=4)
    monkeypatch.undo()
    model.set_adapter("default")
    plain = model.generate(inputs_of(kind)["input_ids"], task_ids=one, max_new_tokens=4)
    assert torch.equal(merged, plain)


def test_only_small_groups_without_biases_on_a_gpu_get_one(monkeypatch):
    model = poly("t5", target_modules=["q", "k", "v"])
    layers = [layer for name, layer in model.poly_layers().items() if "decoder" in name]
    group = tuple(layers[:3])
    assert [len(part) for part in mixing._parts(group, "default")] == [1, 1, 1]  # on a CPU
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    assert mixing._parts(group, "default") == [group]
    assert mixing._parts(group[:1], "default") == [group[:1]]
    monkeypatch.setattr(mixing, "_SMALL", group[0].weight.numel() * 3 - 1)
    assert [len(part) for part in mixing._parts(group, "default")] == [1, 1, 1]
    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    group[1].scaling["default"] *= 2
    assert [len(part) for part in mixing._parts(group, "default")] == [1, 1, 1]


def test_a_layer_that_gets_an_adapter_by_itself_is_planned_anew():
    model = poly("llama")
    before = output_of(model, "llama", task_ids=task_ids())
    layer = next(iter(model.poly_layers().values()))
    layer.update_layer("default", config_of("llama", r=7), router=layer.router("default"))
    layer.reset_poly_parameters("default", False)
    after = output_of(model, "llama", task_ids=task_ids())
    assert (after - before).abs().max() > 1e-3
    again = copy.deepcopy(model)
    assert torch.equal(output_of(again, "llama", task_ids=task_ids()), after)


def test_dtypes_follow_the_model():
    model = poly("llama")
    wanted = output_of(model, "llama", task_ids=task_ids())
    found = output_of(model.double(), "llama", task_ids=task_ids())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), wanted, rtol=1e-3, atol=1e-4)
    model.set_adapter("default")  # plans anew
    exact = output_of(model, "llama", task_ids=task_ids())
    torch.testing.assert_close(found, exact, rtol=1e-13, atol=1e-13)


def test_a_base_layer_that_was_exchanged_is_the_one_that_is_called():
    model = poly("llama", target_modules=SIBLINGS["llama"])
    before = output_of(model, "llama", task_ids=task_ids())
    layer = next(iter(model.poly_layers().values()))
    other = copy.deepcopy(layer.base_layer)
    with torch.no_grad():
        other.weight.mul_(1.5)
    layer.base_layer = other
    after = output_of(model, "llama", task_ids=task_ids())
    fresh = poly("llama", target_modules=SIBLINGS["llama"])
    with torch.no_grad():
        next(iter(fresh.poly_layers().values())).weight.mul_(1.5)
    wanted = output_of(fresh, "llama", task_ids=task_ids())
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-5)
