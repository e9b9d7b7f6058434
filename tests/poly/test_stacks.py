"""Mixing in stacks: the loop over its formula, on a CPU and by the kernels for CUDA."""

import importlib.util
import os

import pytest
import torch

from polylab.poly.stacks import Layout, mix

HAS_TRITON = importlib.util.find_spec("triton") is not None
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SHAPES = [  # routers, layers a group, groups, rows, splits, skills, x, y
    (7, 3, 2, 5, 2, 4, 24, 3),
    (2, 1, 4, 32, 8, 8, 16, 16),
    (5, 2, 2, 16, 1, 33, 20, 8),
    (3, 1, 3, 17, 1, 5, 37, 11),
    (4, 1, 2, 40, 4, 9, 16, 4),
]


def drawn(shape, is_a, dtype, device="cpu"):
    routers, members, groups, rows, splits, skills, x, y = shape
    torch.manual_seed(0)
    weights = torch.rand(routers, rows, splits, skills, dtype=dtype)
    weights = (weights / weights.sum(-1, keepdim=True)).to(device).requires_grad_()
    layers = members * groups
    index = torch.randint(routers, (layers,), device=device)
    banks = [torch.randn(splits, skills, x, y, dtype=dtype) for _ in range(layers)]
    banks = [bank.to(device).requires_grad_() for bank in banks]
    return weights, index, banks, Layout(layers, members, is_a, dtype, 0.75)


def looped(weights, index, banks, layout):
    """Row by row and head by head."""
    mixed = []
    for router, bank in zip(index.tolist(), banks, strict=True):
        rows = []
        for w in weights[router]:
            blocks = [torch.einsum("s,sxy->xy", w[q], bank[q]) for q in range(len(bank))]
            rows.append(torch.cat(blocks, dim=0 if layout.is_a else 1))
        mixed.append(layout.scale * torch.stack(rows))
    m = layout.members
    groups = [mixed[i : i + m] for i in range(0, len(mixed), m)]
    if layout.is_a:
        return [torch.cat(group, dim=-1) for group in groups]
    return [
        torch.stack([torch.block_diag(*row) for row in zip(*group, strict=True)])
        for group in groups
    ]


def check(shape, is_a, dtype, device, tolerance):
    weights, index, banks, layout = drawn(shape, is_a, dtype, device)
    (found,) = mix(weights, index, [(layout, banks)])
    wanted = looped(weights, index, banks, layout)
    pulls = [torch.randn_like(w) for w in wanted]  # also where there are no blocks
    for mine, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, its, **tolerance)
    mine = torch.autograd.grad(found, [weights, *banks], pulls)
    its = torch.autograd.grad(wanted, [weights, *banks], pulls)
    for a, b in zip(mine, its, strict=True):
        size = b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=tolerance["rtol"], atol=tolerance["rtol"] * size)


@pytest.mark.parametrize("is_a", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_mixes_as_a_loop_does(shape, is_a):
    check(shape, is_a, torch.float64, "cpu", {"rtol": 1e-10, "atol": 1e-10})


@pytest.mark.skipif(not HAS_TRITON, reason="no triton: it comes with torch for CUDA")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("is_a", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_mix_as_a_loop_does(shape, is_a):
    torch.backends.cuda.matmul.allow_tf32 = False
    check(shape, is_a, torch.float32, "cuda", {"rtol": 2e-5, "atol": 2e-5})


@pytest.mark.skipif(not HAS_TRITON or not IS_INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("is_a", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_kernels(shape, is_a, monkeypatch):
    monkeypatch.setattr("polylab.poly.stacks._has_kernel", lambda _: True)
    check(shape, is_a, torch.float32, "cpu", {"rtol": 2e-5, "atol": 2e-5})


def test_several_stacks_share_routers():
    weights, index, banks, layout = drawn(SHAPES[0], True, torch.float64)
    _, _, others, other = drawn((7, 1, 6, 5, 2, 4, 3, 8), False, torch.float64)
    both = torch.cat([index, index.flip(0)])
    a, b = mix(weights, both, [(layout, banks), (other, others)])
    wanted_a = looped(weights, index, banks, layout)
    wanted_b = looped(weights, index.flip(0), others, other)
    for mine, its in zip([*a, *b], [*wanted_a, *wanted_b], strict=True):
        torch.testing.assert_close(mine, its)
    loss, wanted = (sum(t.square().sum() for t in ts) for ts in ([*a, *b], [*wanted_a, *wanted_b]))
    found = torch.autograd.grad(loss, [weights, *banks, *others])
    for mine, its in zip(
        found, torch.autograd.grad(wanted, [weights, *banks, *others]), strict=True
    ):
        torch.testing.assert_close(mine, its)


def test_an_unused_stack_has_no_gradient():
    weights, index, banks, layout = drawn(SHAPES[0], True, torch.float64)
    _, _, others, other = drawn((7, 1, 6, 5, 2, 4, 3, 8), False, torch.float64)
    a, _ = mix(weights, torch.cat([index, index]), [(layout, banks), (other, others)])
    found = torch.autograd.grad(a[0].sum(), [weights, banks[0], others[0]], allow_unused=True)
    (wanted,) = torch.autograd.grad(looped(weights, index, banks, layout)[0].sum(), [weights])
    torch.testing.assert_close(found[0], wanted)
    assert found[1].abs().max() > 0
    assert found[2] is None


def test_result_in_16_bits_is_rounded_once():
    weights, index, banks, layout = drawn(SHAPES[0], True, torch.float32)
    short = Layout(layout.layers, layout.members, True, torch.bfloat16, layout.scale)
    (exact,), (found,) = (mix(weights, index, [(own, banks)]) for own in (layout, short))
    for mine, its in zip(found, exact, strict=True):
        assert torch.equal(mine, its.bfloat16())
