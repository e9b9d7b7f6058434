"""What is compared: the frozen backbone, PEFT's LoRA and Poly, and polylab, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import torch
from shapes import Shape
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

import polylab
from polylab.poly.blocks import compile_blocks

RANK, N_TASKS = 16, 16


class Contender:
    """A model with an adapter, and its optimiser.

    Args:
        name: What it is called in tables.
        model: On the weights that all share.
        takes_ids: Whether its batches hold `task_ids`.
        is_ours: Whether polylab wrapped it.
    """

    def __init__(self, name: str, model: nn.Module, *, takes_ids: bool, is_ours: bool) -> None:
        self.name, self.model = name, model
        self.takes_ids, self.is_ours = takes_ids, is_ours
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = None
        if self.trained:
            self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Forward."""
        inputs = batch if self.takes_ids else {k: v for k, v in batch.items() if k != "task_ids"}
        return self.model(**inputs).loss

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One training step."""
        loss = self.loss(batch)
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def gradients(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss under a fixed seed, and the gradients by parameter."""
        torch.manual_seed(1)
        loss = self.loss(batch)
        loss.backward()
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return loss.detach(), found

    def compile_blocks(self) -> None:
        """Each block by itself: what compiles fast, and all backbones allow."""
        if self.is_ours:
            compile_blocks(self.model)
            return
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(fullgraph=True)


def shared_copy(base: nn.Module) -> nn.Module:
    """A copy of the module tree that holds the same weights, not copies of them."""
    kept = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    return copy.deepcopy(base, kept)


def frozen(base: nn.Module) -> Contender:
    """The backbone, whose gradients run to its embeddings' output: the floor of any adapter."""
    model = shared_copy(base)
    model.enable_input_require_grads()
    return Contender("frozen", model, takes_ids=False, is_ours=False)


def lora(base: nn.Module, shape: Shape) -> Contender:
    """PEFT's LoRA with the adapter in the backbone's dtype."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[*shape.targets])
    model = peft.get_peft_model(shared_copy(base), config, autocast_adapter_dtype=False)
    return Contender("peft-lora", model, takes_ids=False, is_ours=False)


def peft_poly(
    base: nn.Module, shape: Shape, *, n_tasks: int, name: str, **changes: Any
) -> Contender:
    """PEFT's Poly, its adapter in float32 as PEFT makes it."""
    kind = "SEQ_2_SEQ_LM" if shape.target_seq else "CAUSAL_LM"
    config = peft.PolyConfig(task_type=kind, **_settings(shape, n_tasks, changes))
    model = peft.get_peft_model(shared_copy(base), config)
    return Contender(name, model, takes_ids=True, is_ours=False)


def poly(base: nn.Module, shape: Shape, *, n_tasks: int, name: str, **changes: Any) -> Contender:
    """Poly of this project: float32 skills on the backbone's dtype."""
    config = polylab.PolyConfig(**_settings(shape, n_tasks, changes))
    model = polylab.get_peft_model(shared_copy(base), config)
    return Contender(name, model, takes_ids=True, is_ours=True)


def _settings(shape: Shape, n_tasks: int, changes: dict[str, Any]) -> dict[str, Any]:
    settings = {"r": RANK, "n_tasks": n_tasks, "n_skills": 8, "target_modules": [*shape.targets]}
    return settings | changes


Maker = Callable[[nn.Module, Shape], Contender]
_VARIANTS: dict[str, dict[str, Any]] = {
    "poly": {},
    "poly-q8": {"n_splits": 8},
    "poly-s32": {"n_skills": 32},
    "poly-s128": {"n_skills": 128},
    "mope": {"poly_type": "mope"},
    "mope-tokens": {"poly_type": "mope", "router_level": "token"},
}


def makers(n_tasks: int = N_TASKS) -> dict[str, Maker]:
    """Contenders by name."""
    found: dict[str, Maker] = {"frozen": lambda base, _: frozen(base), "peft-lora": lora}

    def add(name: str, make: Callable[..., Contender], changes: dict[str, Any]) -> None:
        found[name] = lambda base, shape: make(base, shape, n_tasks=n_tasks, name=name, **changes)

    for name in ("poly", "poly-q8", "poly-s32"):
        add(f"peft-{name}", peft_poly, _VARIANTS[name])
    for name, changes in _VARIANTS.items():
        add(name, poly, changes)
    return found
