"""What is compared: the frozen backbone, PEFT's LoRA and Poly, and polylab, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from shapes import Shape
from torch import Tensor, nn

import polylab

RANK = 16


@dataclass
class Contender:
    """A model with an adapter, and its optimiser."""

    name: str
    model: nn.Module
    takes_ids: bool
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if trained:
            fused = trained[0].device.type == "cuda"
            self.optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=fused)

    @property
    def trained(self) -> list[Tensor]:
        """Trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

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


def shared_copy(base: nn.Module) -> nn.Module:
    """A copy of the module tree that holds the same weights, not copies of them."""
    kept = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    return copy.deepcopy(base, kept)


def frozen(base: nn.Module) -> Contender:
    """The backbone, whose gradients run to its embeddings' output: the floor of any adapter."""
    model = shared_copy(base)
    model.enable_input_require_grads()
    return Contender("frozen", model, takes_ids=False)


def lora(base: nn.Module, shape: Shape, name: str = "peft-lora") -> Contender:
    """PEFT's LoRA with the adapter in the backbone's dtype."""
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[*shape.targets])
    model = peft.get_peft_model(shared_copy(base), config, autocast_adapter_dtype=False)
    return Contender(name, model, takes_ids=False)


def peft_poly(base: nn.Module, shape: Shape, *, n_tasks: int, n_skills: int = 8) -> Contender:
    """PEFT's Poly, its adapter in float32 as PEFT makes it."""
    config = peft.PolyConfig(
        r=RANK,
        n_tasks=n_tasks,
        n_skills=n_skills,
        target_modules=[*shape.targets],
        task_type="SEQ_2_SEQ_LM" if shape.target_seq else "CAUSAL_LM",
    )
    model = peft.get_peft_model(shared_copy(base), config)
    return Contender("peft-poly", model, takes_ids=True)


def poly(
    base: nn.Module, shape: Shape, *, n_tasks: int, name: str = "poly", **changes: Any
) -> Contender:
    """Polylab's Poly: float32 skills on the backbone's dtype."""
    settings = {"r": RANK, "n_tasks": n_tasks, "n_skills": 8, "target_modules": [*shape.targets]}
    model = polylab.get_peft_model(shared_copy(base), polylab.PolyConfig(**settings | changes))
    return Contender(name, model, takes_ids=True)


def makers(n_tasks: int) -> dict[str, Callable[[nn.Module, Shape], Contender]]:
    """Contenders by name."""
    return {
        "frozen": lambda base, _: frozen(base),
        "peft-lora": lora,
        "peft-poly": lambda base, shape: peft_poly(base, shape, n_tasks=n_tasks),
        "poly": lambda base, shape: poly(base, shape, n_tasks=n_tasks),
        "mhr8": lambda base, shape: poly(base, shape, n_tasks=n_tasks, name="mhr8", n_splits=8),
        "poly32": lambda base, shape: poly(
            base, shape, n_tasks=n_tasks, name="poly32", n_skills=32
        ),
    }
