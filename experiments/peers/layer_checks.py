"""D11 to D15: which layers are adapted, and what exactly they compute."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from experiments.peers.libraries import Library, Wrong, agree
from experiments.peers.models import (
    BATCH,
    IDS,
    N_TASKS,
    OneLinear,
    adapted,
    inputs,
    logits,
    merged,
    one_layer,
    update,
)


def d11_conv1d_gpt2(lib: Library) -> None:
    """GPT-2's `Conv1D` layers."""
    model = adapted(lib, "gpt2")
    _as_merged(lib, model, "gpt2")


def d11_linear_llama(lib: Library) -> None:
    """Llama's linear layers."""
    _as_merged(lib, adapted(lib, "llama"), "llama")


def d11_linear_t5(lib: Library) -> None:
    """T5's linear layers, encoder and decoder."""
    _as_merged(lib, adapted(lib, "t5"), "t5")


def _as_merged(lib: Library, model: Any, kind: str) -> None:
    found, batch = logits(model, kind), inputs(kind)
    for row, task in enumerate(IDS.tolist()):
        plain = merged(lib, model, kind, task)(**batch).logits
        agree(found[row], plain[row], rtol=1e-4, atol=1e-4)  # products in another order


def d11_any_module(lib: Library) -> None:
    """A module that is no transformers model, called with `task_ids`."""
    model, layer = one_layer(lib)
    x = torch.randn(BATCH, 7, 8)
    agree(model(x, task_ids=IDS), _wanted(layer, x))


def d11_input_2d(lib: Library) -> None:
    """An input `[batch, d_in]`."""
    _layer_computes(lib, (BATCH, 8))


def d11_input_3d(lib: Library) -> None:
    """An input `[batch, seq, d_in]`."""
    _layer_computes(lib, (BATCH, 7, 8))


def d11_input_4d(lib: Library) -> None:
    """An input `[batch, windows, seq, d_in]`."""
    _layer_computes(lib, (BATCH, 2, 7, 8))


def _layer_computes(lib: Library, shape: tuple[int, ...]) -> None:
    model, layer = one_layer(lib)
    x = torch.randn(shape)
    agree(model.base_model(x, task_ids=IDS), _wanted(layer, x))


def _wanted(layer: Any, x: Tensor) -> Tensor:
    rows = [update(layer, row, task) for row, task in zip(x, IDS.tolist(), strict=True)]
    return layer.base_layer(x) + torch.stack(rows)


class _Experts(nn.Module):
    """Two experts, each of which sees the tokens of all rows that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 12), nn.Linear(8, 12)])

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:-1], 12)
        for choice, expert in enumerate(self.experts):
            chosen = (x[..., 0] > 0) == bool(choice)
            out[chosen] = expert(x[chosen])
        return out


def d11_experts(lib: Library) -> None:
    """Experts of a mixture of experts: the right result, or refused by name."""
    torch.manual_seed(0)
    config = lib.config(r=3, n_tasks=N_TASKS, n_skills=5, target_modules=["experts.0", "experts.1"])
    if not _is_refused(lambda: lib.wrap(_Experts(), config), "expert"):
        model = lib.wrap(_Experts(), config)
        x = torch.randn(BATCH, 7, 8)
        agree(model.base_model(x, task_ids=IDS), _Experts.forward(model.get_base_model(), x))


def d12_indivisible_splits(lib: Library) -> None:
    """`n_splits=3` on a layer of 8 x 12: an error at construction that names it."""
    _refused_at_construction(lib, n_splits=3)


def d12_no_splits(lib: Library) -> None:
    """`n_splits=0`: an error at construction that names it."""
    _refused_at_construction(lib, n_splits=0)


def d12_no_skills(lib: Library) -> None:
    """`n_skills=0`: an error at construction that names it."""
    _refused_at_construction(lib, n_skills=0)


def d12_no_tasks(lib: Library) -> None:
    """`n_tasks=0`: an error at construction that names it."""
    _refused_at_construction(lib, n_tasks=0)


def d12_no_rank(lib: Library) -> None:
    """`r=0`: an error at construction that names it."""
    _refused_at_construction(lib, r=0)


def _refused_at_construction(lib: Library, **wrong: Any) -> None:
    (name,) = wrong
    if not _is_refused(lambda: one_layer(lib, **wrong), rf"\b{name}\b"):
        raise Wrong("constructed without a word")


def _is_refused(build: Callable[[], Any], pattern: str) -> bool:
    """Whether it raises an error that says `pattern`; any other error goes on."""
    try:
        build()
    except (ValueError, TypeError) as error:
        if not re.search(pattern, str(error)):
            raise
        return True
    return False


def d13_base_hook(lib: Library) -> None:
    """A hook on the base layer keeps the base layer's own output."""
    model, layer = one_layer(lib)
    kept: list[Tensor] = []
    layer.base_layer.register_forward_hook(lambda _module, _args, output: kept.append(output))
    x = torch.randn(BATCH, 7, 8)
    model.base_model(x, task_ids=IDS)
    agree(kept[0], nn.functional.linear(x, layer.base_layer.weight, layer.base_layer.bias))


class _SigmoidLinear(nn.Linear):
    """A linear layer whose output is needed again for its gradient."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sigmoid()


def d13_base_ends_in_sigmoid(lib: Library) -> None:
    """A base layer that ends in a sigmoid trains."""
    model, layer = one_layer(lib, _SigmoidLinear(8, 12))
    x = torch.randn(BATCH, 7, 8, requires_grad=True)
    model.base_model(x, task_ids=IDS).square().sum().backward()
    found, x.grad = x.grad, None
    _wanted(layer, x).square().sum().backward()
    assert found is not None
    assert x.grad is not None
    agree(found, x.grad, rtol=1e-4, atol=1e-5)  # sums in another order


def d14_autocast_dtype(lib: Library) -> None:
    """Under bfloat16 autocast a layer's output has the base layer's dtype."""
    model, layer = one_layer(lib)
    x = torch.randn(BATCH, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _same_dtype(model.base_model(x, task_ids=IDS), layer.base_layer(x))


def d14_bfloat16_base(lib: Library) -> None:
    """A bfloat16 base layer gives bfloat16, its adapter stays float32."""
    model, layer = one_layer(lib, nn.Linear(8, 12).to(torch.bfloat16))
    x = torch.randn(BATCH, 7, 8, dtype=torch.bfloat16)
    _same_dtype(model.base_model(x, task_ids=IDS), layer.base_layer(x))
    _same_dtype(layer.poly_lora_A["default"], torch.empty(0))


def _same_dtype(found: Tensor, wanted: Tensor) -> None:
    if found.dtype != wanted.dtype:
        names = [str(tensor.dtype).removeprefix("torch.") for tensor in (found, wanted)]
        raise Wrong(f"{names[0]}, not {names[1]}")


def d15_float16_router(lib: Library) -> None:
    """A float16 router with all logits at -20: no NaN."""
    model, layer = one_layer(lib)
    model.half()
    with torch.no_grad():
        layer.poly_router["default"].module_logits.fill_(-20)
    output = model.base_model(torch.randn(BATCH, 7, 8, dtype=torch.float16), task_ids=IDS)
    if not torch.isfinite(output).all():
        raise Wrong("NaN")


def d15_float8_base(lib: Library) -> None:
    """The adapter of a float8 base layer is not float8."""
    layer = one_layer(lib, nn.Linear(8, 12).to(torch.float8_e4m3fn))[1]
    for tensor in (layer.poly_lora_A["default"], layer.poly_lora_B["default"]):
        _same_dtype(tensor, torch.empty(0))


def d15_float8_base_asked_for(lib: Library) -> None:
    """A float8 base layer, `autocast_adapter_dtype=False`: the adapter is not float8."""
    config = lib.config(r=3, n_tasks=N_TASKS, target_modules=["lin"])
    base = OneLinear(nn.Linear(8, 12).to(torch.float8_e4m3fn))
    model = lib.wrap(base, config, autocast_adapter_dtype=False)
    dtype = lib.layers(model)["lin"].poly_lora_A["default"].dtype
    if dtype.itemsize < 2:
        raise Wrong(str(dtype).removeprefix("torch."))
