"""Layers that read one input: the formula, its gradients, and when they are computed apart."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from polylab.poly import products
from polylab.poly.fused import Group, Mixed
from polylab.poly.products import _compose

WIDTHS = (5, 8, 3)


def bases(kind, bias, dtype=torch.float64, widths=WIDTHS, d_in=6):
    torch.manual_seed(0)
    if kind is Conv1D:
        layers = [Conv1D(width, d_in) for width in widths]
        for layer in layers:
            nn.init.normal_(layer.bias)
    else:
        layers = [nn.Linear(d_in, width, bias=bias) for width in widths]
    return [layer.to(dtype).requires_grad_(False) for layer in layers]


def factors(n, rank=2, d_in=6, widths=WIDTHS, one_a=False, dtype=torch.float64):
    a = torch.randn(1 if one_a else n, d_in, rank * len(widths), dtype=dtype)
    bs = [torch.randn(n, rank, width, dtype=dtype) for width in widths]
    return a.requires_grad_(), [b.requires_grad_() for b in bs]


def formula(layers, x, a, bs, scale):
    """Group by group, of rows."""
    n, rank = len(bs[0]), bs[0].shape[1]
    outputs = []
    for i, (layer, b) in enumerate(zip(layers, bs, strict=True)):
        rows = x.reshape(n, -1, x.shape[-1])
        own = a[..., i * rank : (i + 1) * rank]
        parts = [rows[g] @ own[g if len(a) == n else 0] @ b[g] for g in range(n)]
        y = layer(x)
        outputs.append(y + scale * torch.stack(parts).reshape(y.shape))
    return outputs


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, False), (nn.Linear, True), (Conv1D, True)])
@pytest.mark.parametrize("x_shape", [(4, 7, 6), (12, 6), (2, 6, 5, 6)])
@pytest.mark.parametrize("one_a", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_outputs_and_gradients(kind, bias, x_shape, one_a, scale, count):
    widths = WIDTHS[:count]
    layers = bases(kind, bias, widths=widths)
    a, bs = factors(4, one_a=one_a, widths=widths)
    x = torch.randn(*x_shape, dtype=torch.float64, requires_grad=True)
    group = Group(layers, scale)
    assert group.can_fuse(x)
    found, wanted = group.outputs(x, a, bs), formula(layers, x, a, bs, scale)
    pulls = [torch.randn_like(y) for y in wanted]
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its)
    mine = torch.autograd.grad(found, [x, a, *bs], pulls)
    its = torch.autograd.grad(wanted, [x, a, *bs], pulls)
    for one, other in zip(mine, its, strict=True):
        torch.testing.assert_close(one, other)
    biases = [layer.bias for layer in layers] if bias else []
    weights = [layer.weight for layer in layers]
    composed = _compose(x, weights, biases, a, bs, scale, kind is Conv1D)
    for one, other in zip(composed, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_gradcheck_with_an_output_unused():
    layers = bases(nn.Linear, False)
    a, bs = factors(2)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    group = Group(layers, 0.5)
    assert torch.autograd.gradcheck(lambda *t: tuple(group.outputs(t[0], t[1], t[2:])), (x, a, *bs))
    q, _, v = group.outputs(x, a, bs)
    found = torch.autograd.grad(q.sum() + v.square().sum(), [x, a, *bs], allow_unused=True)
    q, _, v = formula(layers, x, a, bs, 0.5)
    wanted = torch.autograd.grad(q.sum() + v.square().sum(), [x, a, *bs], allow_unused=True)
    assert found[3] is None
    assert wanted[3] is None
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("needs", ["x", "a", "bs"])
def test_only_what_needs_a_gradient(needs):
    layers = bases(nn.Linear, True)
    a, bs = factors(2)
    given = {"x": [torch.randn(2, 3, 6, dtype=torch.float64)], "a": [a], "bs": bs}
    for name, tensors in given.items():
        for tensor in tensors:
            tensor.requires_grad_(name == needs)
    outputs = [
        make(*given["x"], *given["a"], given["bs"])
        for make in (Group(layers, 1.0).outputs, lambda x, a, bs: formula(layers, x, a, bs, 1.0))
    ]
    grads = [torch.autograd.grad([y.square().sum() for y in ys], given[needs]) for ys in outputs]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_transposed_input_and_gradient():
    layers = bases(nn.Linear, False)
    a, bs = factors(4)
    x = torch.randn(7, 4, 6, dtype=torch.float64, requires_grad=True)
    pulls = [torch.randn(7, 4, width, dtype=torch.float64).transpose(0, 1) for width in WIDTHS]
    results = []
    for make in (Group(layers, 1.0).outputs, lambda x, a, bs: formula(layers, x, a, bs, 1.0)):
        results.append(torch.autograd.grad(make(x.transpose(0, 1), a, bs), [x, a, *bs], pulls))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    layers = bases(nn.Linear, False, dtype)
    a, bs = factors(4, dtype=torch.float32)
    x = torch.randn(4, 7, 6).to(dtype).requires_grad_()
    found = Group(layers, 1.0).outputs(x, a, bs)
    exact = formula(
        [copy.deepcopy(layer).double() for layer in layers],
        x.double(),
        a.double(),
        [b.double() for b in bs],
        1.0,
    )
    for mine, its in zip(found, exact, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), its, rtol=0.03, atol=0.1)
    grads = torch.autograd.grad([y.float().sum() for y in found], [x, a, *bs])
    assert [g.dtype for g in grads] == [dtype, *[torch.float32] * 4]


def refuse_gradient(layer):
    layer.weight.requires_grad_()


def refuse_hook(layer):
    layer.register_forward_hook(lambda *_: None)


def refuse_pre_hook(layer):
    layer.register_forward_pre_hook(lambda *_: None)


def refuse_patch(layer):
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)


def refuse_dtype(layer):
    layer.to(torch.float32)


@pytest.mark.parametrize(
    "change", [refuse_gradient, refuse_hook, refuse_pre_hook, refuse_patch, refuse_dtype]
)
def test_other_layers_are_not_fused(change):
    layers = bases(nn.Linear, False)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assert Group(layers, 1.0).can_fuse(x)
    change(layers[1])
    assert not Group(layers, 1.0).can_fuse(x)


def test_subclasses_mixed_biases_and_autocast_are_not_fused():
    class Own(nn.Linear):
        pass

    x = torch.randn(2, 3, 6)
    plain = nn.Linear(6, 5).requires_grad_(False)
    assert not Group([Own(6, 5).requires_grad_(False)], 1.0).can_fuse(x)
    assert not Group([plain, nn.Linear(6, 5, bias=False).requires_grad_(False)], 1.0).can_fuse(x)
    assert not Group([plain], 1.0).can_fuse(x[:0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not Group([plain], 1.0).can_fuse(x)
        assert Group([plain.bfloat16()], 1.0).can_fuse(x.bfloat16())


def test_rows_that_do_not_divide():
    a, bs = factors(4)
    with pytest.raises(ValueError, match="cannot be split among task_ids of length 4"):
        Group(bases(nn.Linear, False), 1.0).outputs(torch.randn(9, 6, dtype=torch.float64), a, bs)


def test_a_weight_changed_before_the_backward():
    layers = bases(nn.Linear, False)
    a, bs = factors(2)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    outputs = Group(layers, 1.0).outputs(x, a, bs)
    layers[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between the forward and the backward"):
        outputs[0].sum().backward()


def test_a_layer_called_with_another_input_is_computed_by_itself():
    layers = bases(nn.Linear, False)
    a, bs = factors(2)
    mixed = Mixed(Group(layers, 1.0), a, bs)
    x, other = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        q = mixed.output(0, x)
        k = mixed.output(1, other)
        again = mixed.output(1, other)
        v = mixed.output(2, x)
        for found, given, place in ((q, x, 0), (k, other, 1), (again, other, 1), (v, x, 2)):
            torch.testing.assert_close(found, formula(layers, given, a, bs, 1.0)[place])


def test_outputs_are_let_go_once_read():
    layers = bases(nn.Linear, False)
    a, bs = factors(2)
    mixed = Mixed(Group(layers, 1.0), a, bs)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        for place in range(3):
            mixed.output(place, x)
    assert mixed._x is None
    assert not any(left is not None for left in mixed._left)


@pytest.mark.parametrize("large", [0, 1e30])
@pytest.mark.parametrize("bias", [False, True])
def test_compiled_as_one_operator_or_as_the_formula(bias, large, monkeypatch):
    monkeypatch.setattr(products, "_LARGE", large)
    layers = bases(nn.Linear, bias)
    a, bs = factors(2)
    group = Group(layers, 0.5)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def run(x, a, bs):
        return group.outputs(x, a, bs)

    wanted = torch.autograd.grad([y.square().sum() for y in run(x, a, bs)], [x, a, *bs])
    graphs = []

    def backend(graph, _):
        graphs.append("routed_linears" in graph.code)
        return graph

    for backend_ in (backend, "aot_eager"):
        torch._dynamo.reset()
        outputs = torch.compile(run, fullgraph=True, backend=backend_)(x, a, bs)
        found = torch.autograd.grad([y.square().sum() for y in outputs], [x, a, *bs])
        for mine, its in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, its)
    assert graphs == [large == 0]


@pytest.mark.parametrize("needs_x", [True, False])
def test_the_operators_keep_torchs_rules(needs_x):
    weights = [layer.weight for layer in bases(nn.Linear, False)]
    a, bs = factors(2)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=needs_x)
    given = (x, weights, [], a, bs, 0.5, False)
    torch.library.opcheck(torch.ops.polylab.routed_linears, given)


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("x_shape", [(4, 7, 6), (12, 6), (2, 6, 5, 6)])
@pytest.mark.parametrize("unused", [None, 1])
def test_blocks_of_one_b(x_shape, scale, unused):
    layers = bases(nn.Linear, False, widths=(5, 5, 5))
    a, bs = factors(4, widths=(5, 5, 5))
    joint = torch.stack([torch.block_diag(*row) for row in zip(*bs, strict=True)])
    x = torch.randn(*x_shape, dtype=torch.float64, requires_grad=True)
    group = Group(layers, scale)
    results = []
    composed = _compose(x, [layer.weight for layer in layers], [], a, [joint], scale, False)
    with torch.no_grad():
        silent = group.outputs(x, a, [joint])
    for outputs in (formula(layers, x, a, bs, scale), group.outputs(x, a, [joint]), composed):
        loss = sum(y.square().sum() for i, y in enumerate(outputs) if i != unused)
        how = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        results.append([*outputs, *torch.autograd.grad(loss, [x, a, *bs], **how)])
    for found in results[1:]:
        for mine, its in zip(found, results[0], strict=True):
            torch.testing.assert_close(mine, its)
    for mine, its in zip(silent, results[0], strict=False):
        torch.testing.assert_close(mine, its)
    mixed = Mixed(group, a, [joint])
    for place, b in enumerate(bs):
        own_a, own_b = mixed.factors(place)
        assert torch.equal(own_a, a[..., 2 * place : 2 * place + 2])
        assert torch.equal(own_b, b)


def test_a_joint_b_is_compiled_as_the_formula(monkeypatch):
    monkeypatch.setattr(products, "_LARGE", 0)
    torch._dynamo.reset()
    layers = bases(nn.Linear, False, widths=(5, 5))
    a, bs = factors(2, widths=(5, 5))
    joint = torch.stack([torch.block_diag(*row) for row in zip(*bs, strict=True)])
    joint = joint.detach().requires_grad_()
    group = Group(layers, 0.5)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def run(x, a, joint):
        return group.outputs(x, a, [joint])

    results = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        outputs = call(x, a, joint)
        loss = sum(y.square().sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [x, a, joint])])
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine, its)
