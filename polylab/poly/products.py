"""Products of one input with frozen weights, and their updates, in few launches.

An update `scale * (x A*) B*` of low rank costs little arithmetic; its price is the activations that
pass through memory once more. So the update is computed first, and the big product `x W` is added
onto it where its result is written anyway; in the backward the same for the gradient of x. Layers
that read the same x (q, k and v) share one product with their A*'s side by side, and the sum of
their gradients of x.

Eager calls go through an `autograd.Function`, and spend as little as they can in Python: a small
model waits for it. A compiler sees large calls as one opaque operator of the same arithmetic:
traced, its additions in place would become passes over memory again (and torch 2.11 returns zero
gradients for a compiled function that changes its output in place). Of small ones it is given the
formula, whose calls cost it no Python.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["routed_linears"]

_LARGE = 3e10
"""Multiplications from which on a compiled call is worth what Python takes for it."""


def routed_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    a: Tensor,
    bs: Sequence[Tensor],
    scale: float,
    is_transposed: bool,
) -> Sequence[Tensor]:
    """`x W + bias + scale * (x A*) B*` of each W; group n owns the n-th equal run of x's rows.

    Args:
        x: `[*rows, d_in]`.
        weights: Frozen, `[d_out, d_in]`.
        biases: Frozen, of all or none.
        a: A* side by side, `[groups or 1, d_in, m * k]`.
        bs: B* of each, `[groups, k, d_out]`; or one for all, `[groups, m * k, m * d_out]`, zero
            but for the blocks of its diagonal: fewer launches, more arithmetic. It takes no biases.
        scale: Of the updates.
        is_transposed: Weights are `[d_in, d_out]`.
    """
    if not torch.compiler.is_compiling():
        if torch.is_grad_enabled():
            return _Fused.apply(x, a, (weights, biases, scale, is_transposed), *bs)
        return _compute(x, weights, biases, a, bs, scale, is_transposed)[1]
    products = x.numel() // x.shape[-1] * sum(weight.numel() for weight in weights)
    # outputs of an operator must not be views of one tensor, as those of a joint B; and an exported
    # model needs no polylab
    is_joint = len(bs) < len(weights)
    if is_joint or products < _LARGE or not torch.compiler.is_dynamo_compiling():
        return _compose(x, weights, biases, a, bs, scale, is_transposed)
    return _compute_op(x, weights, biases, a, bs, scale, is_transposed)[1:]


def _compose(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    a: Tensor,
    bs: Sequence[Tensor],
    scale: float,
    is_transposed: bool,
) -> list[Tensor]:
    """The outputs, in operators that autograd and compilers know."""
    n, rank = len(bs[0]), bs[0].shape[1]
    hidden = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a).view(n, -1, a.shape[2])
    owns = [hidden] if len(bs) == 1 else hidden.split(rank, dim=2)
    updates = [torch.bmm(own, b) for own, b in zip(owns, bs, strict=True)]
    if len(bs) < len(weights):
        updates = updates[0].chunk(len(weights), dim=2)
    outputs = []
    for i, (weight, update) in enumerate(zip(weights, updates, strict=True)):
        weight = weight.t() if is_transposed else weight
        y = nn.functional.linear(x, weight, biases[i] if biases else None)
        outputs.append(y + (scale * update).reshape(y.shape))
    return outputs


def _compute(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    a: Tensor,
    bs: Sequence[Tensor],
    scale: float,
    is_transposed: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The hidden `scale * x A*`, and the outputs."""
    n, d_in, shape = len(bs[0]), a.shape[1], x.shape
    flat = x.reshape(-1, d_in)
    is_split = len(shape) == 3 and shape[0] == n
    if len(a) != n:
        hidden = torch.mm(flat, a[0]).view(n, -1, a.shape[2])
    else:
        hidden = torch.bmm(x if is_split else flat.view(n, -1, d_in), a)
    if scale != 1:
        hidden.mul_(scale)
    if len(bs) < len(weights):
        return hidden, _add_products(flat, weights, torch.bmm(hidden, bs[0]), shape, is_transposed)
    outputs, rank, start = [], bs[0].shape[1], 0
    for i, b in enumerate(bs):
        own = hidden if len(bs) == 1 else hidden.narrow(2, start, rank)
        weight = weights[i] if is_transposed else weights[i].t()
        start, width = start + rank, b.shape[2]
        if biases:
            y = torch.addmm(biases[i], flat, weight)
            y.view(n, -1, width).baddbmm_(own, b)
        else:
            y = torch.bmm(own, b)
            y.view(-1, width).addmm_(flat, weight)
        outputs.append(y if is_split and not biases else y.view(*shape[:-1], width))
    return hidden, outputs


def _add_products(
    flat: Tensor,
    weights: Sequence[Tensor],
    updates: Tensor,
    shape: torch.Size,
    is_transposed: bool,
) -> list[Tensor]:
    """The outputs of all weights, side by side in one tensor that holds their updates."""
    width = updates.shape[2] // len(weights)
    rows = updates.view(-1, updates.shape[2])
    for i, weight in enumerate(weights):
        rows.narrow(1, i * width, width).addmm_(flat, weight if is_transposed else weight.t())
    # parts that autograd does not know as views of one tensor: they are outputs of one function
    return list(
        torch.unsafe_split_with_sizes(rows.view(*shape[:-1], -1), [width] * len(weights), -1)
    )


def _differentiate(
    grads: Sequence[Tensor | None],
    x: Tensor,
    hidden: Tensor,
    weights: Sequence[Tensor],
    a: Tensor,
    bs: Sequence[Tensor],
    scale: float,
    is_transposed: bool,
    needs_x: bool,
    needs_factors: bool,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Gradients of x, of A*, and of each B*."""
    is_joint, width = len(bs) < len(weights), bs[0].shape[2] // len(weights)
    if is_joint:
        parts = [x.new_zeros(*x.shape[:-1], width) if g is None else g for g in grads]
        grads = [torch.cat(parts, dim=-1)]
    n, d_in, rank, start = len(bs[0]), a.shape[1], bs[0].shape[1], 0
    spread = torch.empty_like(hidden)  # gradient of `x A*`
    flats: list[Tensor | None] = []
    b_grads: list[Tensor | None] = []
    for grad, b in zip(grads, bs, strict=True):
        to, own = spread, hidden
        if len(bs) > 1:
            to, own = spread.narrow(2, start, rank), hidden.narrow(2, start, rank)
            start += rank
        if grad is None:
            to.zero_()
            flats.append(None)
            b_grads.append(None)
            continue
        flat = grad.reshape(-1, b.shape[2]).contiguous()  # once for three products
        split = flat.view(n, -1, b.shape[2])
        to.baddbmm_(split, b.transpose(1, 2), beta=0, alpha=scale)
        flats.append(flat)
        b_grads.append(torch.bmm(own.transpose(1, 2), split) if needs_factors else None)
    wide = spread if len(a) == n else spread.view(1, -1, a.shape[2])
    a_grad = x_grad = None
    if needs_factors:
        a_grad = torch.bmm(x.reshape(len(a), -1, d_in).transpose(1, 2), wide)
    if needs_x:
        x_grad = torch.bmm(wide, a.transpose(1, 2)).view(-1, d_in)
        if is_joint and flats[0] is not None:
            flats = [*flats[0].split(width, dim=1)]
        for flat, weight in zip(flats, weights, strict=True):
            if flat is not None:
                x_grad.addmm_(flat, weight.t() if is_transposed else weight)
        x_grad = x_grad.view(x.shape)
    return x_grad, a_grad, b_grads


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, frozen, *bs):  # type: ignore[override]
        weights, biases, scale, is_transposed = frozen
        hidden, outputs = _compute(x, weights, biases, a, bs, scale, is_transposed)
        ctx.save_for_backward(x, hidden, a, *bs)
        ctx.frozen = frozen
        ctx.versions = [weight._version for weight in weights]
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[override]
        x, hidden, a, *bs = ctx.saved_tensors
        weights, _, scale, is_transposed = ctx.frozen
        if [weight._version for weight in weights] != ctx.versions:
            raise RuntimeError(
                "a frozen weight has been changed in place between the forward and the backward "
                "pass of its layer, whose gradients would be wrong. Change weights between steps."
            )
        needs_x, needs_a, _, needs_b = ctx.needs_input_grad[:4]
        x_grad, a_grad, b_grads = _differentiate(
            grads, x, hidden, weights, a, bs, scale, is_transposed, needs_x, needs_a or needs_b
        )
        return (x_grad, a_grad, None, *b_grads)


# For compilers: the same two functions as operators of their own


@torch.library.custom_op("polylab::routed_linears", mutates_args=())
def _compute_op(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    a: Tensor,
    bs: Sequence[Tensor],
    scale: float,
    is_transposed: bool,
) -> list[Tensor]:
    hidden, outputs = _compute(x, weights, biases, a, bs, scale, is_transposed)
    return [hidden, *outputs]


@_compute_op.register_fake
def _(x, weights, biases, a, bs, scale, is_transposed):  # noqa: ARG001
    n = len(bs[0])
    hidden = x.new_empty(n, x.numel() // x.shape[-1] // n, a.shape[-1])
    return [hidden, *(x.new_empty(*x.shape[:-1], b.shape[-1]) for b in bs)]


@torch.library.custom_op("polylab::routed_linears_backward", mutates_args=())
def _differentiate_op(
    grads: Sequence[Tensor],
    x: Tensor,
    hidden: Tensor,
    weights: Sequence[Tensor],
    a: Tensor,
    bs: Sequence[Tensor],
    scale: float,
    is_transposed: bool,
    needs_x: bool,
) -> list[Tensor]:
    x_grad, a_grad, b_grads = _differentiate(
        grads, x, hidden, weights, a, bs, scale, is_transposed, needs_x, True
    )
    made = [a_grad, *b_grads, *([x_grad] if needs_x else [])]
    return [gradient for gradient in made if gradient is not None]


@_differentiate_op.register_fake
def _(grads, x, hidden, weights, a, bs, scale, is_transposed, needs_x):  # noqa: ARG001
    made = [a.new_empty(a.shape), *(b.new_empty(b.shape) for b in bs)]
    return [*made, *([x.new_empty(x.shape)] if needs_x else [])]


def _save(ctx, inputs, output) -> None:
    x, weights, biases, a, bs, ctx.scale, ctx.is_transposed = inputs
    ctx.counts = len(bs), len(biases)
    ctx.save_for_backward(x, output[0], a, *bs, *weights)


def _backward_op(ctx, grads):
    x, hidden, a, *rest = ctx.saved_tensors
    count, n_biases = ctx.counts
    needs_x = ctx.needs_input_grad[0]
    a_grad, *others = _differentiate_op(
        grads[1:], x, hidden, rest[count:], a, rest[:count], ctx.scale, ctx.is_transposed, needs_x
    )
    x_grad = others[-1] if needs_x else None
    return x_grad, [None] * count, [None] * n_biases, a_grad, others[:count], None, None


_compute_op.register_autograd(_backward_op, setup_context=_save)
