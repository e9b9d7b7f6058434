"""D16 and D17: options of an adapter, and variants of its routing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from experiments.peers.libraries import Library, Wrong, agree
from experiments.peers.models import BATCH, IDS, N_TASKS, RANK, adapted, logits, one_layer, update


def d16_alpha(lib: Library) -> None:
    """`alpha`: the update is scaled by alpha / r."""
    _scaled(lib, 6.0, alpha=6.0)


def d16_rslora(lib: Library) -> None:
    """`use_rslora`: the update is scaled by alpha / sqrt(r)."""
    _scaled(lib, 6.0 * math.sqrt(RANK), alpha=6.0, use_rslora=True)


def _scaled(lib: Library, factor: float, **options: Any) -> None:
    model, layer = one_layer(lib, **options)
    x = torch.randn(BATCH, 7, 8)
    rows = [update(layer, row, task) for row, task in zip(x, IDS.tolist(), strict=True)]
    agree(model.base_model(x, task_ids=IDS), layer.base_layer(x) + factor * torch.stack(rows))


def d16_dropout(lib: Library) -> None:
    """`dropout`: on in training, off in evaluation."""
    model = one_layer(lib, dropout=0.5, noise="none")[0]
    plain = one_layer(lib)[0]
    x = torch.randn(BATCH, 7, 8)
    agree(model.base_model(x, task_ids=IDS), plain.base_model(x, task_ids=IDS))
    model.train()
    if torch.allclose(model.base_model(x, task_ids=IDS), model.base_model(x, task_ids=IDS)):
        raise Wrong("no randomness in training")


def d16_rank_pattern(lib: Library) -> None:
    """`rank_pattern`: a rank of its own for some layers."""
    model = adapted(lib, "llama", rank_pattern={"v_proj": 2})
    for name, layer in lib.layers(model).items():
        wanted = 2 if name.endswith("v_proj") else RANK
        if layer.poly_lora_A["default"].shape[-1] != wanted:
            raise Wrong(f"rank {layer.poly_lora_A['default'].shape[-1]} in {name}")
    logits(model, "llama")


def d16_layers_to_transform(lib: Library) -> None:
    """`layers_to_transform`: only those blocks are adapted."""
    names = [*lib.layers(adapted(lib, "llama", layers_to_transform=[1]))]
    if not names or not all(".1." in name for name in names):
        raise Wrong(f"adapted: {names}")


def d17_one_hot_splits(lib: Library) -> None:
    """One-hot logits with `n_splits=2` equal indexing the skill."""
    model, layer = one_layer(lib, n_skills=N_TASKS)
    with torch.no_grad():
        one_hot = (60 * torch.eye(N_TASKS) - 30).repeat(1, 2)  # tasks, splits * skills
        layer.poly_router["default"].module_logits.copy_(one_hot)
    _indexed(model, layer)


def d17_private_splits(lib: Library) -> None:
    """`poly_type="private"` with `n_splits=2` equals indexing the skill."""
    _indexed(*one_layer(lib, poly_type="private"))


def _indexed(model: Any, layer: Any) -> None:
    a, b = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
    x = torch.randn(BATCH, 7, 8)
    rows = [
        row @ torch.cat([*a[:, task]], dim=0) @ torch.cat([*b[:, task]], dim=1) / RANK
        for row, task in zip(x, IDS.tolist(), strict=True)
    ]
    agree(model.base_model(x, task_ids=IDS), layer.base_layer(x) + torch.stack(rows))


def d17_products(lib: Library) -> None:
    """`combine="products"`: the sum of the skills' weighted products."""
    model, layer = one_layer(lib, combine="products", n_splits=1)
    a, b = layer.poly_lora_A["default"][0], layer.poly_lora_B["default"][0]
    z = layer.poly_router["default"].module_logits.sigmoid()
    x = torch.randn(BATCH, 7, 8)

    def row_update(row: Tensor, task: int) -> Tensor:
        w = z[task] / z[task].sum()
        terms = [w[s] * (row @ a[s] @ b[s]) for s in range(len(w))]
        return torch.stack(terms).sum(0) / RANK

    rows = [row_update(row, task) for row, task in zip(x, IDS.tolist(), strict=True)]
    agree(model.base_model(x, task_ids=IDS), layer.base_layer(x) + torch.stack(rows))


def d17_products_splits(lib: Library) -> None:
    """`combine="products"` with `n_splits=2`: as its own factors say, or refused by name."""
    try:
        model, layer = one_layer(lib, combine="products")
    except ValueError as error:
        if "n_splits" not in str(error):
            raise
        return
    x = torch.randn(BATCH, 7, 8)
    pairs = [layer.task_factors("default", task) for task in IDS.tolist()]
    rows = [row @ a @ b * layer.scaling["default"] for row, (a, b) in zip(x, pairs, strict=True)]
    agree(model.base_model(x, task_ids=IDS), layer.base_layer(x) + torch.stack(rows))
