"""The layer against explicit loops, and identities that hold for any correct one."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from polylab import PolyConfig, PolyLayer, get_peft_model
from polylab.poly.routing import Routing, entered
from tests.poly.tiny import base, config_of, inputs_of, output_of, poly, task_ids

D_IN, D_OUT, RANK, TASKS, SKILLS, BATCH, SEQ = 8, 12, 3, 5, 4, 6, 7


def make_layer(kind, **changes):
    torch.manual_seed(0)
    linear = nn.Linear(D_IN, D_OUT) if kind == "linear" else Conv1D(D_OUT, D_IN)
    layer = PolyLayer(linear, name="some.layer")
    values = {"r": RANK, "n_tasks": TASKS, "n_skills": SKILLS, "n_splits": 2, "init_weights": False}
    layer.update_layer("default", PolyConfig(**{**values, **changes}))
    for parameter in layer.poly_router.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


def slow_forward(layer, x, ids, *, scale):
    """Loops over examples, heads and skills, straight from the formula."""
    a, b = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    splits, skills, block_in, _ = a.shape
    block_out = b.shape[3]
    logits = layer.poly_router["default"].module_logits.view(-1, splits, skills)
    rows = []
    for row, task in zip(x, ids.tolist(), strict=True):
        hidden, blocks = 0, []
        z = torch.sigmoid(logits[task])
        w = [[z[q, s] / z[q].sum() for s in range(skills)] for q in range(splits)]
        for q in range(splits):
            mixed = sum(w[q][s] * a[q, s] for s in range(skills))
            hidden = hidden + row[..., q * block_in : (q + 1) * block_in] @ mixed
        for q in range(splits):
            mixed = sum(w[q][s] * b[q, s] for s in range(skills))
            blocks.append(hidden @ mixed)
            assert blocks[-1].shape[-1] == block_out
        rows.append(layer.base_layer(row) + scale * torch.cat(blocks, -1))
    return torch.stack(rows)


@pytest.mark.parametrize("alpha", [1.0, 5.0])
@pytest.mark.parametrize("shape", [(), (SEQ,), (2, SEQ)], ids=["2d", "3d", "4d"])
@pytest.mark.parametrize("n_splits", [1, 2, 4])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_outputs_and_gradients_equal_loops(kind, n_splits, shape, alpha, tolerance):
    layer = make_layer(kind, n_splits=n_splits, alpha=alpha)
    ids = torch.tensor([0, 4, 2, 2, 1, 0])
    x = torch.randn(BATCH, *shape, D_IN)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    with entered(Routing(task_ids=ids)):
        ours = layer(x)
    slow = slow_forward(layer, x, ids, scale=alpha / RANK)
    torch.testing.assert_close(ours, slow, **tolerance)
    upstream = torch.randn_like(slow)
    ours_grads = torch.autograd.grad((ours * upstream).sum(), parameters)
    slow_grads = torch.autograd.grad((slow * upstream).sum(), parameters)
    for ours_grad, slow_grad in zip(ours_grads, slow_grads, strict=True):
        torch.testing.assert_close(ours_grad, slow_grad, **tolerance)


def test_rows_of_one_example_may_be_several(tolerance):
    layer = make_layer("linear")
    ids, x = torch.tensor([3, 1]), torch.randn(BATCH, SEQ, D_IN)
    with entered(Routing(task_ids=ids)):
        three_beams = layer(x)
    with entered(Routing(task_ids=ids.repeat_interleave(3))):
        torch.testing.assert_close(three_beams, layer(x), **tolerance)


def test_a_layer_takes_ids_itself():
    layer, ids, x = make_layer("linear"), torch.tensor([3, 1]), torch.randn(2, SEQ, D_IN)
    with entered(Routing(task_ids=ids)):
        wanted = layer(x)
    assert torch.equal(layer(x, task_ids=ids), wanted)


def test_rows_that_do_not_divide_are_refused():
    layer = make_layer("linear")
    with entered(Routing(task_ids=torch.tensor([3, 1, 0, 2]))):
        with pytest.raises(ValueError, match=r"42 rows .* task_ids of length 4"):
            layer(torch.randn(BATCH, SEQ, D_IN))
        assert layer(torch.randn(0, D_IN)).shape == (0, D_OUT)


@pytest.mark.parametrize("n_splits", [1, 2])
def test_private_equals_indexing(n_splits, tolerance):
    layer = make_layer("linear", poly_type="private", n_splits=n_splits)
    ids, x = torch.tensor([4, 0, 2, 2, 1, 4]), torch.randn(BATCH, SEQ, D_IN)
    a, b = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    assert a.shape[1] == TASKS
    with entered(Routing(task_ids=ids)):
        ours = layer(x)
    for row, task in enumerate(ids.tolist()):
        one_a = torch.cat([*a[:, task]], 0)
        one_b = torch.cat([*b[:, task]], 1)
        wanted = layer.base_layer(x[row]) + x[row] @ one_a @ one_b / RANK
        torch.testing.assert_close(ours[row], wanted, **tolerance)
    ours.sum().backward()
    assert a.grad is not None
    assert a.grad[:, 3].abs().max() == 0  # the absent task
    assert a.grad[:, 0].abs().max() > 0


@pytest.mark.parametrize("changes", [{"n_skills": 1}, {"poly_type": "shared"}])
def test_one_skill_is_a_plain_lora(changes, tolerance):
    layer = make_layer("linear", **changes)
    x = torch.randn(BATCH, SEQ, D_IN)
    a, b = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    assert a.shape[1] == 1
    for training in (True, False):
        layer.train(training)
        with entered(Routing(task_ids=torch.tensor([4, 0, 2, 2, 1, 4]))):
            ours = layer(x)
        lora = x @ a[:, 0].flatten(0, 1) @ torch.cat([*b[:, 0]], 1) / RANK
        torch.testing.assert_close(ours, layer.base_layer(x) + lora, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_low_logits_in_half_precision_are_uniform_not_nan(dtype, training):
    layer = make_layer("linear")
    router = layer.poly_router["default"].to(dtype).train(training)
    nn.init.constant_(router.module_logits, -20.0)
    weights = router(task_ids=torch.tensor([0, 4]))
    assert torch.isfinite(weights).all()
    if not training:
        # EPS takes 1e-12 of a sum of 8e-9: 1.2e-4 of the weight
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / SKILLS), rtol=2e-4, atol=0)
    weights.square().sum().backward()
    assert torch.isfinite(router.module_logits.grad).all()


def test_the_base_layer_sees_its_own_output_unchanged():
    layer, seen = make_layer("linear"), []
    layer.base_layer.register_forward_hook(lambda *args: seen.append(args[2]))
    x = torch.randn(BATCH, SEQ, D_IN)
    with entered(Routing(task_ids=torch.tensor([0, 4, 2, 2, 1, 0]))):
        layer(x)
    assert torch.equal(seen[0], nn.functional.linear(x, layer.weight, layer.bias))


def test_at_the_start_only_b_gets_a_gradient():
    layer = make_layer("linear", init_weights=True)
    with entered(Routing(task_ids=torch.tensor([0, 4, 2, 2, 1, 0]))):
        layer(torch.randn(BATCH, SEQ, D_IN)).square().sum().backward()
    adapter = [(n, p) for n, p in layer.named_parameters() if n.startswith("poly_")]
    largest = {name: parameter.grad.abs().max() for name, parameter in adapter}
    assert {name for name, value in largest.items() if value > 0} == {"poly_lora_B.default"}


def test_init_mttl():
    bound = (1 / 3) ** 0.5 / D_IN**0.5
    a = make_layer("linear", init="mttl", n_skills=64).poly_lora_A["default"]
    assert 0.98 * bound < a.abs().max() <= bound
    a = make_layer("linear", n_skills=64).poly_lora_A["default"]
    bound = 1 / (D_IN / 2) ** 0.5
    assert 0.98 * bound < a.abs().max() <= bound


def test_temperature_sharpens_the_samples():
    def spread(temperature):
        router = make_layer("linear", temperature=temperature).poly_router["default"].train()
        torch.manual_seed(0)
        return router(task_ids=torch.zeros(500, dtype=torch.int64)).std()

    assert spread(0.2) > spread(1.0) > spread(5.0)


def test_without_noise_training_equals_evaluation():
    model = poly("llama", noise="none")
    evaluated = output_of(model, "llama", task_ids=task_ids())
    before = torch.get_rng_state()
    assert torch.equal(output_of(model.train(), "llama", task_ids=task_ids()), evaluated)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "encoder"])
@torch.no_grad()  # with gradients torch may choose other kernels for the frozen model
def test_a_fresh_adapter_is_the_base(kind):
    wanted = output_of(base(kind), kind)
    model = get_peft_model(base(kind), config_of(kind))
    assert not any(module.training for module in model.modules())
    for training in (True, False):
        assert torch.equal(output_of(model.train(training), kind, task_ids=task_ids()), wanted)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "encoder"])
@pytest.mark.parametrize("poly_type", ["poly", "mope", "private", "shared"])
@torch.no_grad()
def test_a_disabled_adapter_is_the_base(kind, poly_type):
    model = poly(kind, poly_type=poly_type)
    ids = {"task_ids": task_ids()}
    wanted = output_of(base(kind), kind)
    enabled = output_of(model, kind, **ids)
    assert not torch.allclose(enabled, wanted, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(output_of(model, kind), wanted)
        assert torch.equal(output_of(model.get_base_model(), kind), wanted)
    assert torch.equal(output_of(model, kind, **ids), enabled)


def test_an_example_does_not_depend_on_its_neighbours(tolerance):
    model, inputs = poly("llama"), inputs_of("llama")
    together = model(**inputs, task_ids=task_ids()).logits
    for row, task in enumerate(task_ids()):
        alone = model(inputs["input_ids"][row : row + 1], task_ids=task[None]).logits
        torch.testing.assert_close(alone[0], together[row], **tolerance)


def test_absent_tasks_get_no_gradient():
    model = poly("gpt2").train()
    model(**inputs_of("gpt2"), task_ids=task_ids()).loss.backward()
    for layer in model.poly_layers().values():
        grad = layer.poly_router["default"].module_logits.grad
        assert (grad.abs().sum(1) > 0).tolist() == [True, False, True, False, False, True]
