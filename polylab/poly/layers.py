"""`PolyLayer`: a frozen linear layer with a bank of LoRA skills for each named adapter."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly.config import PolyConfig
from polylab.poly.linears import check_splits, features_of, float_dtype_of
from polylab.poly.mixing import Factors, add_update, mix, pick, update_per_token
from polylab.poly.patterns import rank_of, scaling_of
from polylab.poly.prompts import pool_prompt
from polylab.poly.routers import InputRouter, PrivateRouter, Router, SharedRouter, TaskRouter
from polylab.poly.routing import Routing, TaskIds, current

__all__ = ["PolyLayer", "make_router"]


class PolyLayer(nn.Module):
    """`y = base(x) + alpha / r * (x A*) B*`, with A* and B* mixed from skills per example.

    Polytropon (https://arxiv.org/abs/2202.13914); `n_splits > 1` is the multi-head routing of
    https://arxiv.org/abs/2211.03831. Task ids come from the `Routing` of the running forward.

    Args:
        base_layer: An `nn.Linear`, also one of bitsandbytes, or transformers' `Conv1D` (a
            linear with a transposed weight).
        name: The layer's name in the base model.
        index: Its position among the adapted layers.
        d_router: Width of what an input router reads; None: the layer's own input.

    Raises:
        TypeError: If `base_layer` is of another type.
    """

    adapter_layer_names = ("poly_lora_A", "poly_lora_B", "poly_router")
    other_param_names = ("r", "n_tasks", "n_skills", "n_splits", "poly_type", "scaling")

    def __init__(
        self, base_layer: nn.Module, *, name: str = "", index: int = 0, d_router: int | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = features_of(base_layer)
        self.base_layer = base_layer
        self.name, self.index, self.d_router = name, index, d_router
        self.active_adapter = ""
        self.r: dict[str, int] = {}
        self.n_tasks: dict[str, int] = {}
        self.n_skills: dict[str, int] = {}
        self.n_splits: dict[str, int] = {}
        self.poly_type: dict[str, str] = {}
        self.scaling: dict[str, float] = {}
        self._init: dict[str, str] = {}
        self.poly_router = nn.ModuleDict()
        self.poly_lora_A = nn.ParameterDict()
        self.poly_lora_B = nn.ParameterDict()

    def update_layer(
        self, adapter_name: str, poly_config: PolyConfig, inference_mode: bool = False
    ) -> None:
        """Add the adapter `adapter_name`, or replace it, with fresh weights; make it active.

        Raises:
            ValueError: If `n_splits` does not divide both sides of the layer.
        """
        config = poly_config
        check_splits(self.name, self.base_layer, n_splits=config.n_splits)
        splits, skills, rank = config.n_splits, config.skill_count, rank_of(self.name, config)
        self.r[adapter_name] = rank
        self.n_tasks[adapter_name] = config.n_tasks
        self.n_skills[adapter_name] = skills
        self.n_splits[adapter_name] = splits
        self.poly_type[adapter_name] = config.poly_type
        self.scaling[adapter_name] = scaling_of(self.name, config)
        self._init[adapter_name] = config.init
        block_in, block_out = self.in_features // splits, self.out_features // splits
        a, b = (splits, skills, block_in, rank), (splits, skills, rank, block_out)
        self.poly_lora_A[adapter_name] = nn.Parameter(torch.empty(a))
        self.poly_lora_B[adapter_name] = nn.Parameter(torch.empty(b))
        router = make_router(config, self.d_router or self.in_features)
        self.poly_router[adapter_name] = router.train(self.training)
        self.reset_poly_parameters(adapter_name, config.init_weights)
        # Full precision for a 16-bit, 8-bit or quantised base; double for a double one.
        is_double = self.weight.dtype == torch.float64
        self.cast_adapter(adapter_name, torch.float64 if is_double else torch.float32)
        self.set_adapter(adapter_name, inference_mode=inference_mode)

    def reset_poly_parameters(self, adapter_name: str, init_weights: bool) -> None:
        """Draw A and the router anew; B is zero, or drawn too if `init_weights` is False."""
        a, b = self.poly_lora_A[adapter_name], self.poly_lora_B[adapter_name]
        bound = 1 / math.sqrt(a.shape[2])
        if self._init[adapter_name] == "mttl":
            bound = math.sqrt(1 / 3) / math.sqrt(self.in_features)
        _fill_uniform(a, bound)
        if init_weights:
            nn.init.zeros_(b)
        else:
            _fill_uniform(b, 1 / math.sqrt(b.shape[2]))
        self.router(adapter_name).reset()

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
        y = self.base_layer(x, *args, **kwargs)
        name = self.active_adapter
        if name not in self.poly_lora_A:
            return y
        routing = current() if task_ids is None else Routing(task_ids=task_ids)
        if routing is None:
            raise ValueError(
                f"layer {self.name!r} has no task_ids: the base model was called by itself. Call "
                "the PolyModel, or its get_encoder(), with task_ids=."
            )
        if routing.disabled:
            return y
        if routing.factors is not None and self.name in routing.factors:
            factors = routing.factors[self.name]
            return add_update(y, x, factors=factors, scale=self.scaling[name])
        weights = self._weights(x, routing)
        if weights.ndim == 4:
            return y + self._update_tokens(x, weights).to(y.dtype).reshape(y.shape)
        factors = self._factors(weights, routing)
        return add_update(y, x, factors=factors, scale=self.scaling[name])

    def mixing_weights(self, routing: Routing) -> Float[Tensor, "*batch splits skills"]:
        """The active adapter's weights for the ids and the pooled encoder of `routing`."""
        return self._weights(None, routing)

    def _weights(self, x: Tensor | None, routing: Routing) -> Float[Tensor, "*batch splits skills"]:
        router = self.router(self.active_adapter)
        change = routing.intervention
        ids = routing.task_ids if router.needs_task_ids else None
        if ids is not None:
            ids = ids.to(self.poly_lora_A[self.active_adapter].device)
            ids = change.remap(ids) if change and change.remap else ids
        hidden = self._pooled(x, routing) if router.needs_prompt else None
        samples = router.draws_noise and router.training and change is None
        samples = samples and routing.records is None
        uniform = self._keyed_noise(ids, routing) if samples and routing.noise else None
        weights = router(ids, hidden, uniform=uniform, sample=samples)
        if change and change.reweigh:
            weights = change.reweigh(self.name, router, ids, weights)
        if routing.records is not None:
            routing.records[self.name] = weights
        return weights

    def _pooled(self, x: Tensor | None, routing: Routing) -> Float[Tensor, "batch d_router"]:
        if self.d_router is None:
            assert x is not None
            return pool_prompt(x, routing.prompt, where=self.name)
        if routing.encoder is None:
            raise ValueError(
                f"layer {self.name!r} is routed by the encoder's output, and none was computed. "
                "Call the PolyModel with input_ids or encoder_outputs."
            )
        return routing.encoder.to(self.poly_lora_A[self.active_adapter].device)

    def _keyed_noise(self, ids: Tensor | None, routing: Routing) -> Tensor:
        assert routing.noise is not None
        assert ids is not None
        n_splits, n_skills = self.n_splits[self.active_adapter], self.n_skills[self.active_adapter]
        if ids.ndim == 2:
            return routing.noise.uniform_per_task(
                self.index, n_splits, n_skills=n_skills, task_ids=ids
            )
        return routing.noise.uniform(self.index, n_splits, n_skills=n_skills, device=ids.device)

    def _factors(self, weights: Tensor, routing: Routing) -> Factors:
        name = self.active_adapter
        a, b = self.poly_lora_A[name], self.poly_lora_B[name]
        is_one_hot = self.router(name).is_hard and routing.intervention is None
        factors = pick(weights, a, b) if is_one_hot else mix(weights, a, b)
        if routing.factors is not None:
            routing.factors[self.name] = factors
        return factors

    def _update_tokens(self, x: Tensor, weights: Tensor) -> Float[Tensor, "tokens d_out"]:
        name = self.active_adapter
        tokens, flat = x.reshape(-1, self.in_features), weights.flatten(0, 1)
        if len(tokens) != len(flat):
            raise ValueError(
                f"task_ids of shape {[*weights.shape[:2]]} cannot be matched to layer "
                f"{self.name!r}, which sees {len(tokens)} tokens. Give ids [batch]."
            )
        banks = self.poly_lora_A[name], self.poly_lora_B[name]
        return update_per_token(tokens, flat, banks=banks) * self.scaling[name]

    def _set_trainable(self, adapter_name: str, trainable: bool) -> None:
        self.poly_lora_A[adapter_name].requires_grad_(trainable)
        self.poly_lora_B[adapter_name].requires_grad_(trainable)
        self.poly_router[adapter_name].requires_grad_(trainable)


def make_router(config: PolyConfig, d_in: int) -> Router:
    """The router of one layer; `d_in` is the width of what an input router reads."""
    if config.poly_type == "shared":
        return SharedRouter(config.n_splits)
    if config.poly_type == "private":
        return PrivateRouter(config.n_tasks, config.n_splits)
    if config.poly_type == "mope":
        return InputRouter(
            d_in, config.n_skills, n_splits=config.n_splits, temperature=config.temperature
        )
    return TaskRouter(
        config.n_tasks,
        config.n_skills,
        n_splits=config.n_splits,
        noise=config.noise == "relaxed_bernoulli",
        temperature=config.temperature,
    )


def _fill_uniform(bank: Tensor, bound: float) -> None:
    """U(-bound, bound), in the order of PEFT's draws: skill by skill, rank before width."""
    splits, skills, rows, columns = bank.shape
    drawn = torch.empty(skills, splits, columns, rows, device=bank.device).uniform_(-bound, bound)
    with torch.no_grad():
        bank.copy_(drawn.permute(1, 0, 3, 2))
