"""`PolyLayer`: a frozen linear layer with a bank of LoRA skills for each named adapter."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly.classes import build, is_custom
from polylab.poly.combining import AverageFactors, Combine, Factors, SumProducts
from polylab.poly.config import PolyConfig
from polylab.poly.fused import Group, Mixed
from polylab.poly.linears import check_splits, features_of, float_dtype_of
from polylab.poly.merged import mixed_of
from polylab.poly.patterns import rank_of, scaling_of
from polylab.poly.routers import Router, make_router
from polylab.poly.routing import Routing, TaskIds, current
from polylab.poly.weighing import layer_weights, mix_uniform

__all__ = ["PolyLayer", "make_combine"]

_COMBINE: dict[str, type[AverageFactors] | type[SumProducts]] = {
    "factors": AverageFactors,
    "products": SumProducts,
}


class PolyLayer(nn.Module):
    """`y = base(x) + alpha / r * (x A*) B*`, with A* and B* mixed from skills per example.

    Polytropon (https://arxiv.org/abs/2202.13914); `n_splits > 1` is the multi-head routing of
    https://arxiv.org/abs/2211.03831. Task ids come from the `Routing` of the running forward.

    Args:
        base_layer: An `nn.Linear`, also one of bitsandbytes, or transformers' `Conv1D` (a
            linear with a transposed weight).
        name: The layer's name in the base model.
        index: Its position among the adapted layers.

    Raises:
        TypeError: If `base_layer` is of another type.
    """

    adapter_layer_names = ("poly_lora_A", "poly_lora_B", "poly_router")
    other_param_names = (
        *("r", "n_tasks", "n_skills", "n_splits", "poly_type", "scaling"),
        *("combine", "dropout", "d_router", "trainable"),
    )

    def __init__(self, base_layer: nn.Module, *, name: str = "", index: int = 0) -> None:
        super().__init__()
        self.in_features, self.out_features = features_of(base_layer)
        self.base_layer = base_layer
        self.name, self.index = name, index
        self.active_adapter = ""
        self.r: dict[str, int] = {}
        self.n_tasks: dict[str, int] = {}
        self.n_skills: dict[str, int] = {}
        self.n_splits: dict[str, int] = {}
        self.poly_type: dict[str, str] = {}
        self.scaling: dict[str, float] = {}
        self.combine: dict[str, Combine] = {}
        self.dropout: dict[str, float] = {}
        self.trainable: dict[str, str] = {}
        self.d_router: dict[str, int | None] = {}
        """Width of what a router of the prompt reads; None: the layer's own input, pooled."""
        self._init: dict[str, str] = {}
        self.block_name = ""
        """Its name within a compiled block."""
        self.revision = 0
        """Grows with every change of the adapters that the layer has."""
        self.poly_router = nn.ModuleDict()
        self.poly_lora_A = nn.ParameterDict()
        self.poly_lora_B = nn.ParameterDict()

    def update_layer(
        self,
        adapter_name: str,
        poly_config: PolyConfig,
        inference_mode: bool = False,
        *,
        router: Router | None = None,
        d_router: int | None = None,
    ) -> None:
        """Add the adapter `adapter_name`, or replace it, with fresh weights; make it active.

        Args:
            adapter_name: Its name.
            poly_config: What it is.
            inference_mode: Freeze it.
            router: That of the layer's group, initialised already; None makes one.
            d_router: Width of what a router by input reads; None: the layer's own input.

        Raises:
            ValueError: If `n_splits` does not divide both sides of the layer.
        """
        config = poly_config
        self.revision += 1
        check_splits(self.name, self.base_layer, n_splits=config.n_splits)
        splits, skills, rank = config.n_splits, config.bank_size, rank_of(self.name, config)
        self.r[adapter_name] = rank
        self.n_tasks[adapter_name] = config.n_tasks
        self.n_skills[adapter_name] = skills
        self.n_splits[adapter_name] = splits
        self.poly_type[adapter_name] = config.poly_type
        self.scaling[adapter_name] = scaling_of(self.name, config)
        self.combine[adapter_name] = make_combine(config)
        self.dropout[adapter_name] = config.dropout
        self.trainable[adapter_name] = config.trainable
        self.d_router[adapter_name] = d_router
        self._init[adapter_name] = config.init
        block_in, block_out = self.in_features // splits, self.out_features // splits
        a, b = (splits, skills, block_in, rank), (splits, skills, rank, block_out)
        self.poly_lora_A[adapter_name] = nn.Parameter(torch.empty(a))
        self.poly_lora_B[adapter_name] = nn.Parameter(torch.empty(b))
        own = router or make_router(config, d_router or self.in_features)
        self.poly_router[adapter_name] = own.train(self.training)
        self._reset_bank(adapter_name, config.init_weights)
        if router is None:
            own.reset()
        # Full precision for a 16-bit, 8-bit or quantised base; double for a double one.
        is_double = self.weight.dtype == torch.float64
        self.cast_adapter(adapter_name, torch.float64 if is_double else torch.float32)
        self.set_adapter(adapter_name, inference_mode=inference_mode)

    def reset_poly_parameters(self, adapter_name: str, init_weights: bool) -> None:
        """Draw A and the router anew; B is zero, or drawn too if `init_weights` is False."""
        self._reset_bank(adapter_name, init_weights)
        self.router(adapter_name).reset()

    def _reset_bank(self, adapter_name: str, init_weights: bool) -> None:
        a, b = self.poly_lora_A[adapter_name], self.poly_lora_B[adapter_name]
        bound = 1 / math.sqrt(a.shape[2])
        if self._init[adapter_name] == "mttl":
            bound = math.sqrt(1 / 3) / math.sqrt(self.in_features)
        _fill_uniform(a, bound)
        if init_weights:
            nn.init.zeros_(b)
        else:
            _fill_uniform(b, 1 / math.sqrt(b.shape[2]))

    def router(self, adapter_name: str) -> Router:
        """The router of one adapter."""
        router = self.poly_router[adapter_name]
        assert isinstance(router, Router)
        return router

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Compute with this adapter (with none, if this layer lacks it); only it is trainable."""
        self.active_adapter = adapter_name
        for name in self.poly_lora_A:
            self._set_trainable(name, name == adapter_name and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter's weights and settings."""
        for part in (*self.adapter_layer_names, *self.other_param_names, "_init"):
            del getattr(self, part)[adapter_name]

    def cast_adapter(self, adapter_name: str, dtype: torch.dtype) -> None:
        """Move an adapter to the base layer's device, in `dtype`.

        A dtype to store weights in (8 bits or fewer) gives the dtype that the layer computes in.
        """
        if not dtype.is_floating_point or dtype.itemsize < 2:
            dtype = float_dtype_of(self.base_layer)
        device = self.weight.device
        self.revision += 1
        for bank in (self.poly_lora_A, self.poly_lora_B):
            bank[adapter_name].data = bank[adapter_name].data.to(device, dtype)
        self.poly_router[adapter_name].to(device, dtype)

    def get_base_layer(self) -> nn.Module:
        """The wrapped layer."""
        return self.base_layer

    @property
    def weight(self) -> Tensor:
        """The base layer's weight (T5 reads the dtype of `wo.weight`)."""
        return self.base_layer.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        bias = self.base_layer.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def forward(
        self,
        x: Float[Tensor, "*rows d_in"],
        *args: Any,
        task_ids: TaskIds | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`y = base(x) + alpha / r * (x A*) B*`; `task_ids` stand in for those of a model's call.

        Raises:
            ValueError: If no `PolyModel` call is running, or its task ids do not fit `x`.
        """
        routing = current() if task_ids is None else Routing(task_ids=task_ids)
        if routing is not None and routing.factors is not None:
            known = routing.factors.get(self.block_name if routing.is_local else self.name)
            if known is not None:
                return self._add(x, *known, *args, **kwargs)
        name = self.active_adapter
        if name not in self.poly_lora_A:
            return self.base_layer(x, *args, **kwargs)
        if routing is None:
            raise ValueError(
                f"layer {self.name!r} has no task_ids: the base model was called by itself. Call "
                "the PolyModel, or its get_encoder(), with task_ids=."
            )
        if routing.disabled:
            return self.base_layer(x, *args, **kwargs)
        weights = layer_weights(self, x, routing)
        if weights.ndim == 4:
            y, p = self.base_layer(x, *args, **kwargs), self.dropout[name]
            x = nn.functional.dropout(x, p, self.training) if p else x
            return y + self._update_tokens(x, weights).to(y.dtype).reshape(y.shape)
        a, b = self._factors(weights, routing)
        mixed = mixed_of(routing, Group([self.base_layer], self.scaling[name]), a, [b])
        if routing.factors is not None and not routing.is_local:
            routing.factors[self.name] = mixed, 0
        return self._add(x, mixed, 0, *args, **kwargs)

    def _add(
        self, x: Tensor, mixed: Mixed, place: int, *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*rows d_out"]:
        """`base(x)` and the update, the layer's place in its group being `place`."""
        p = self.dropout[self.active_adapter] if self.training else 0.0
        is_own = mixed.group.bases[place] is self._modules["base_layer"]
        y = mixed.output(place, x) if is_own and not (args or kwargs or p) else None
        if y is not None:
            return y
        y = self.base_layer(x, *args, **kwargs)
        x = nn.functional.dropout(x, p) if p else x
        return mixed.add(place, y, x)

    def mixing_weights(self, routing: Routing) -> Float[Tensor, "*batch splits skills"]:
        """The active adapter's weights for the ids and the pooled encoder of `routing`."""
        return layer_weights(self, None, routing)

    @torch.no_grad()
    def task_factors(
        self, adapter_name: str, task: int, *, uniform_share: float = 0.0
    ) -> tuple[Float[Tensor, "d_in k"], Float[Tensor, "k d_out"]]:
        """A* and B* of one task without noise: its update is `scaling * (x A*) B*`.

        `k` is r for `combine="factors"` and n_skills * r for `products`.

        Raises:
            ValueError: If the adapter is routed by the input.
        """
        router = self.router(adapter_name)
        if router.reads is not None:
            raise ValueError(
                f"the adapter {adapter_name!r} is routed by the input: no single pair of factors "
                "is a task's update."
            )
        bank_a, bank_b = self.poly_lora_A[adapter_name], self.poly_lora_B[adapter_name]
        ids = torch.tensor([task], device=bank_a.device)
        weights = router(ids, sample=False)
        if uniform_share:
            weights = mix_uniform(weights, router, ids=ids, share=uniform_share)
        a, b = self.combine[adapter_name].factors(weights, bank_a, bank_b)
        return a[0], b[0]

    def _factors(self, weights: Tensor, routing: Routing) -> Factors:
        name = self.active_adapter
        a, b = self.poly_lora_A[name], self.poly_lora_B[name]
        is_own = routing.intervention is None and routing.uniform_share is None
        is_one_hot = self.router(name).is_hard and is_own
        rule = self.combine[name]
        device = a.device.type
        is_cast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if is_cast else nullcontext():
            # in the banks' own precision, whatever autocast says
            return rule.pick(weights, a, b) if is_one_hot else rule.factors(weights, a, b)

    def _update_tokens(self, x: Tensor, weights: Tensor) -> Float[Tensor, "tokens d_out"]:
        name = self.active_adapter
        tokens, flat = x.reshape(-1, self.in_features), weights.flatten(0, 1)
        if len(tokens) != len(flat):
            raise ValueError(
                f"routing per token, of shape {[*weights.shape[:2]]}, cannot be matched to layer "
                f"{self.name!r}, which sees {len(tokens)} tokens. Give task_ids [batch]."
            )
        banks = self.poly_lora_A[name].to(x.dtype), self.poly_lora_B[name].to(x.dtype)
        update = self.combine[name].per_token(tokens, flat.to(x.dtype), banks=banks)
        return update * self.scaling[name]

    def _set_trainable(self, adapter_name: str, is_active: bool) -> None:
        what = self.trainable[adapter_name]
        for bank in (self.poly_lora_A, self.poly_lora_B):
            bank[adapter_name].requires_grad_(is_active and what != "router")
        self.poly_router[adapter_name].requires_grad_(is_active and what != "skills")


def make_combine(config: PolyConfig) -> Combine:
    """The rule that `config.combine` names.

    Raises:
        ValueError: If it names a class that cannot be built.
    """
    if is_custom(config.combine):
        assert isinstance(config.combine, dict)
        return build("combine", config.combine, kind=Combine, given={})
    return _COMBINE[str(config.combine)]()


def _fill_uniform(bank: Tensor, bound: float) -> None:
    """U(-bound, bound), in the order of PEFT's draws: skill by skill, rank before width."""
    splits, skills, rows, columns = bank.shape
    drawn = torch.empty(skills, splits, columns, rows, device=bank.device).uniform_(-bound, bound)
    with torch.no_grad():
        bank.copy_(drawn.permute(1, 0, 3, 2))
