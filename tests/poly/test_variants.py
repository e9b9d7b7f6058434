"""Every variant against explicit loops over examples, heads and skills, and its identities."""

import math

import pytest
import torch
from torch import nn

from polylab import PolyConfig, PolyLayer
from polylab.poly.routing import Routing, entered
from tests.poly.tiny import base, gradients, inputs_of, output_of, poly, task_ids

D_IN, D_OUT, RANK, TASKS, SKILLS, BATCH, SEQ = 8, 12, 3, 5, 4, 6, 7
IDS = torch.tensor([0, 4, 2, 2, 1, 0])
ALLOCATION = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 2, 0, 6], [1, 1, 1, 1], [0, 0, 1, 3]]
VARIANTS = {
    "poly": {"poly_type": "poly"},
    "c-poly": {"poly_type": "c-poly", "n_private": 2},
    "shared": {"poly_type": "shared"},
    "private": {"poly_type": "private"},
    "uniform": {"poly_type": "uniform"},
    "custom": {"poly_type": "custom", "allocation": ALLOCATION},
}


def make_layer(**changes):
    torch.manual_seed(0)
    layer = PolyLayer(nn.Linear(D_IN, D_OUT), name="some.layer").double()
    values = {"r": RANK, "n_tasks": TASKS, "n_skills": SKILLS, "n_splits": 2, "init_weights": False}
    layer.update_layer("default", PolyConfig(**{**values, **changes}))
    for parameter in layer.poly_router.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


def slow_weights(layer, kind, task):
    """`w[q][s]` of one task by the definition of its variant."""
    splits, bank = layer.n_splits["default"], layer.n_skills["default"]
    rows = []
    for q in range(splits):
        if kind == "shared":
            row = [1.0]
        elif kind == "uniform":
            row = [1 / bank] * bank
        elif kind == "private":
            row = [float(s == task) for s in range(bank)]
        elif kind == "custom":
            row = [value / sum(ALLOCATION[task]) for value in ALLOCATION[task]]
        else:
            router = layer.poly_router["default"]
            row = [router.module_logits[task, q * SKILLS + s] for s in range(SKILLS)]
            row = [torch.sigmoid(z) for z in row] + [0.0] * (bank - SKILLS)
            if kind == "c-poly":
                for p in range(2):
                    gate = torch.sigmoid(router.private_logits[task, q * 2 + p])
                    row[SKILLS + task * 2 + p] = gate
            row = [value / sum(row) for value in row]
        rows.append(row)
    return rows


def slow_forward(layer, kind, x, *, combine):
    a, b = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    splits, bank, block_in, _ = a.shape
    outputs = []
    for row, task in zip(x, IDS.tolist(), strict=True):
        w = slow_weights(layer, kind, task)
        blocks = [row[..., q * block_in : (q + 1) * block_in] for q in range(splits)]
        if combine == "factors":
            hidden = sum(
                blocks[q] @ sum(w[q][s] * a[q, s] for s in range(bank)) for q in range(splits)
            )
            update = [hidden @ sum(w[q][s] * b[q, s] for s in range(bank)) for q in range(splits)]
        else:
            hidden = [sum(blocks[q] @ a[q, s] for q in range(splits)) for s in range(bank)]
            update = [
                sum(w[q][s] * (hidden[s] @ b[q, s]) for s in range(bank)) for q in range(splits)
            ]
        outputs.append(layer.base_layer(row) + torch.cat(update, -1) / RANK)
    return torch.stack(outputs)


@pytest.mark.parametrize("combine", ["factors", "products"])
@pytest.mark.parametrize("n_splits", [1, 2, 4])
@pytest.mark.parametrize("kind", VARIANTS)
def test_outputs_and_gradients_equal_loops(kind, n_splits, combine):
    layer = make_layer(**VARIANTS[kind], n_splits=n_splits, combine=combine)
    x = torch.randn(BATCH, SEQ, D_IN, dtype=torch.float64)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    with entered(Routing(task_ids=IDS)):
        ours = layer(x)
    slow = slow_forward(layer, kind, x, combine=combine)
    torch.testing.assert_close(ours, slow)
    upstream = torch.randn_like(slow)
    ours_grads = torch.autograd.grad((ours * upstream).sum(), parameters)
    slow_grads = torch.autograd.grad((slow * upstream).sum(), parameters)
    for ours_grad, slow_grad in zip(ours_grads, slow_grads, strict=True):
        torch.testing.assert_close(ours_grad, slow_grad)


@pytest.mark.parametrize("combine", ["factors", "products"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_tokens_of_packed_rows_compute_the_same(kind, combine):
    layer = make_layer(**VARIANTS[kind], combine=combine)
    x = torch.randn(BATCH, SEQ, D_IN, dtype=torch.float64)
    with entered(Routing(task_ids=IDS)):
        rows = layer(x)
    with entered(Routing(task_ids=IDS[:, None].expand(-1, SEQ).contiguous())):
        torch.testing.assert_close(layer(x), rows)


def test_products_of_a_one_hot_routing_are_factors():
    private = {"poly_type": "private", "init_weights": False}
    averaged, summed = make_layer(**private), make_layer(**private, combine="products")
    summed.load_state_dict(averaged.state_dict())
    x = torch.randn(BATCH, SEQ, D_IN, dtype=torch.float64)
    with entered(Routing(task_ids=IDS)):
        torch.testing.assert_close(averaged(x), summed(x))


def test_products_of_a_mixture_are_not_factors():
    averaged, summed = make_layer(), make_layer(combine="products")
    summed.load_state_dict(averaged.state_dict())
    x = torch.randn(BATCH, SEQ, D_IN, dtype=torch.float64)
    with entered(Routing(task_ids=IDS)):
        assert (averaged(x) - summed(x)).abs().max() > 0.05


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("combine", ["factors", "products"])
def test_task_factors_are_the_update(kind, combine):
    layer = make_layer(**VARIANTS[kind], combine=combine)
    x = torch.randn(1, SEQ, D_IN, dtype=torch.float64)
    for task in range(TASKS):
        a, b = layer.task_factors("default", task)
        rank = RANK * (1 if combine == "factors" else layer.n_skills["default"])
        assert a.shape == (D_IN, rank)
        with entered(Routing(task_ids=torch.tensor([task]))):
            wanted = layer(x)
        torch.testing.assert_close(layer.base_layer(x) + x @ a @ b / RANK, wanted)


def test_private_skills_of_c_poly_are_for_their_task_only():
    layer = make_layer(poly_type="c-poly", n_private=2)
    layer.train()
    x = torch.randn(BATCH, SEQ, D_IN, dtype=torch.float64)
    with entered(Routing(task_ids=IDS)):
        layer(x).sum().backward()
    grad = layer.poly_lora_B["default"].grad.abs().sum((0, 2, 3))
    absent = [SKILLS + 3 * 2, SKILLS + 3 * 2 + 1]
    assert [s for s, value in enumerate(grad) if value == 0] == absent
    assert layer.poly_router["default"].private_logits.grad[3].abs().max() == 0


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        ("all", {"poly_lora_A", "poly_lora_B", "poly_router"}),
        ("skills", {"poly_lora_A", "poly_lora_B"}),
        ("router", {"poly_router"}),
    ],
)
def test_what_is_trainable(trainable, parts):
    model = poly("t5", trainable=trainable)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {
        part for part in ("poly_lora_A", "poly_lora_B", "poly_router") for n in names if part in n
    } == parts
    model(**inputs_of("t5"), task_ids=task_ids()).loss.backward()
    assert gradients(model).keys() == names


@pytest.mark.parametrize("source", ["global", "keyed"])
@pytest.mark.parametrize("noise", ["relaxed_bernoulli", "straight_through"])
def test_noise_per_task_is_shared_by_its_examples(noise, source, tolerance):
    model = poly("llama", noise=noise, noise_per="task", noise_source=source).train()
    model.set_noise_key(3, 4)
    ids = torch.tensor([1, 3, 1, 3])
    routing = model._make_routing({"input_ids": torch.zeros(4, 2)}, ids, prompt_mask=None)
    for layer in model.poly_layers().values():
        w = layer.mixing_weights(routing)
        torch.testing.assert_close(w[:2], w[2:], **tolerance)
        assert not torch.allclose(w[0], w[1])
    per_example = poly("llama", noise=noise, noise_source=source).train()
    per_example.set_noise_key(3, 4)
    routing = per_example._make_routing({"input_ids": torch.zeros(4, 2)}, ids, prompt_mask=None)
    w = next(iter(per_example.poly_layers().values())).mixing_weights(routing)
    assert not torch.allclose(w[0], w[2])


def test_straight_through_gates_are_open_or_shut_and_never_all_shut():
    layer = make_layer(noise="straight_through", n_splits=1)
    router = layer.poly_router["default"].train()
    nn.init.constant_(router.module_logits, -1.0)
    nn.init.constant_(router.module_logits[2], -50.0)
    with torch.no_grad():
        router.module_logits[2, 1] = -49.0
    torch.manual_seed(1)
    ids = torch.tensor([0] * 3000 + [2])
    w = router(ids)
    active = (w > 1e-6).sum(-1)
    torch.testing.assert_close(w.max(-1).values, 1 / active.double())
    gate = 1 / (1 + math.exp(1))
    none = (1 - gate) ** SKILLS  # then the most probable one opens
    wanted = gate * SKILLS + none
    assert abs(active[:-1].double().mean() - wanted) < 0.08
    assert w[-1, 0].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-9)
    (w * torch.arange(SKILLS)).sum().backward()
    assert router.module_logits.grad[0].abs().min() > 0


def test_a_relaxed_bernoulli_has_the_mean_of_its_gates():
    layer = make_layer(n_splits=1)
    router = layer.poly_router["default"]
    (logits,) = router._logits([router], torch.zeros(20000, dtype=torch.int64))
    torch.manual_seed(0)
    opened = (router.sampler(logits, torch.rand_like(logits)) > 0.5).double().mean(0)
    torch.testing.assert_close(opened, router.gates(torch.tensor([0]))[0], atol=0.015, rtol=0)


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("kind", ["poly", "c-poly", "custom", "mope"])
def test_a_uniform_share_mixes_towards_uniform(kind, share):
    changes = {"c-poly": {"n_private": 2}, "custom": {}}.get(kind, {})
    if kind == "custom":
        changes = {"allocation": [[float(t == s) + 0.5 for s in range(5)] for t in range(6)]}
    model = poly("gpt2", poly_type=kind, **changes)
    call = {**inputs_of("gpt2")} | ({} if kind == "mope" else {"task_ids": task_ids()})
    plain = model.mixing_weights(**call)
    with model.routing("uniform"):
        uniform = model.mixing_weights(**call)
    model.set_uniform_share(share)
    for name, w in model.mixing_weights(**call).items():
        if kind != "mope" or name == next(iter(plain)):  # later inputs change with the routing
            wanted = plain[name] + share * (uniform[name] - plain[name])
            torch.testing.assert_close(w, wanted)
    if kind != "mope":
        for name, w in model.task_weights().items():
            torch.testing.assert_close(w[task_ids()], model.mixing_weights(**call)[name])
    if kind == "c-poly":
        assert (uniform[name][0] > 0).sum(-1).tolist() == [7, 7]  # 5 shared and 2 of its own
    model.set_uniform_share(0)
    again = model.mixing_weights(**call)
    assert all(torch.equal(w, again[name]) for name, w in plain.items())


def test_a_uniform_share_is_saved(tmp_path):
    from polylab import PolyModel

    model = poly("llama")
    model.set_uniform_share(0.4)
    wanted = output_of(model, "llama", task_ids=task_ids())
    model.save_pretrained(tmp_path)
    again = PolyModel.from_pretrained(base("llama"), tmp_path)
    assert torch.equal(output_of(again, "llama", task_ids=task_ids()), wanted)
    with pytest.raises(ValueError, match=r"uniform_share=1\.5 is not valid"):
        model.set_uniform_share(1.5)


@pytest.mark.parametrize("kind", ["linear", "tokens"])
def test_dropout_is_on_the_input_of_a_in_training_only(kind):
    layer = make_layer(dropout=0.5, poly_type="shared")
    x = torch.randn(BATCH, SEQ, D_IN, dtype=torch.float64)
    ids = IDS if kind == "linear" else IDS[:, None].expand(-1, SEQ).contiguous()
    a, b = layer.task_factors("default", 0)
    with entered(Routing(task_ids=ids)):
        torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ a @ b / RANK)
        torch.manual_seed(5)
        trained = layer.train()(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(trained, layer.base_layer(x) + dropped @ a @ b / RANK)
