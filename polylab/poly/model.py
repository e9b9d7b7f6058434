"""`PolyModel`: a transformers model with routed skills, called with `task_ids`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from polylab.poly.adapters import AdaptedModel
from polylab.poly.calls import (
    RoutedModule,
    check_prompt_mask,
    check_segment_ids,
    go_on,
    guard_checkpoints,
    keep_factors,
    observe_prompts,
)
from polylab.poly.config import PolyConfig
from polylab.poly.inspection import call_weights, task_gates, task_weights
from polylab.poly.interventions import Subject, parse_intervention
from polylab.poly.noise import KeyedNoise
from polylab.poly.prior_loss import WeightedPrior, add_to_output, make_priors, prior_loss
from polylab.poly.routers import Router
from polylab.poly.routing import (
    Override,
    Routing,
    check_task_ids,
    enter,
    entered,
    overridden,
    override_of,
)
from polylab.poly.signatures import blank, root_of, signed
from polylab.poly.structure import batch_shape, encoder_of, named_inputs, parameter_names
from polylab.poly.weighing import weigh_shared

__all__ = ["PolyModel", "get_peft_model"]


def get_peft_model(
    model: nn.Module,
    peft_config: PolyConfig,
    adapter_name: str = "default",
    *,
    autocast_adapter_dtype: bool = True,
) -> PolyModel:
    """Freeze `model` and put a fresh adapter into it, in place (PEFT's function).

    Args:
        model: A transformers model.
        peft_config: The adapter.
        adapter_name: Its name.
        autocast_adapter_dtype: Keep the adapter in float32 on a 16-bit model. False: the dtype of
            the model.

    Raises:
        ValueError: If the configuration does not fit the model.
    """
    poly_model = PolyModel(model, peft_config, adapter_name)
    if not autocast_adapter_dtype:
        for layer in poly_model.poly_layers().values():
            layer.cast_adapter(adapter_name, layer.weight.dtype)
    return poly_model


class PolyModel(AdaptedModel):
    """A frozen base model whose target layers are `PolyLayer`s, with named adapters.

    Everything it lacks (`config`, `device`, `resize_token_embeddings`, ...) is the base model's.

    Raises:
        ValueError: If the model is wrapped already, or `config` does not fit it.
    """

    _hf_peft_config_loaded = True  # the Trainer refuses a quantised model that holds no adapter

    def __new__(cls, model: nn.Module, *_args: Any, **_kwargs: Any) -> PolyModel:
        """An object of the subclass whose `forward` has the signature of this base model."""
        return super().__new__(signed(cls, type(model)))

    def __init__(self, model: nn.Module, config: PolyConfig, adapter_name: str = "default") -> None:
        self._priors: dict[str, list[WeightedPrior]] = {}
        self._uniform_shares: dict[str, Tensor] = {}
        make_priors(config)  # fails before any change
        super().__init__(model, config, adapter_name)
        self._names = parameter_names(model)
        self._encoder_decoder = encoder_of(model) is not None
        self._checkpointable = tuple(
            m for m in model.modules() if getattr(m, "gradient_checkpointing", None) is not None
        )
        self._noise = KeyedNoise()
        self._observers = observe_prompts(model)

    def add_adapter(self, adapter_name: str, config: PolyConfig) -> None:
        """See `AdaptedModel.add_adapter`."""
        priors = make_priors(config)
        super().add_adapter(adapter_name, config)
        self._priors[adapter_name] = priors
        self._note_share(adapter_name)

    def __reduce__(self) -> tuple:
        """For pickle and copy: `type(self)` has no import path."""
        return blank, (root_of(type(self)), type(self.model)), self.__dict__

    def _get_name(self) -> str:
        # By it the Trainer knows a causal model, whose labels its label smoothing must shift.
        return type(self.model).__name__

    # Calls

    def forward(
        self,
        *args: Any,
        task_ids: object = None,
        prompt_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output under the routing of `task_ids`.

        Args:
            *args: The base model's.
            task_ids: An int64 tensor `[batch]`; or `[batch, seq]`, one id per token of packed rows,
                for decoder-only models and encoders. Input routers (`mope`) and `shared` read none.
            prompt_mask: Tokens an input router may read. By default the attended ones (causal
                models: those before the row's first label). Other routers read none.
            segment_ids: For packed rows and an input router, `[batch, seq]`: the number of the
                example that a token belongs to. (The attention mask is the base model's business.)
            **kwargs: The base model's.

        Returns:
            The base model's. With priors, in training, it has `prior_loss`, and its `loss` holds
            that too.

        Raises:
            ValueError: If `task_ids` are missing, of a wrong type or shape, or out of range.
        """
        inputs = named_inputs(self._names, args, kwargs)
        routing = self._make_routing(
            inputs,
            task_ids,
            prompt_mask=prompt_mask,
            segment_ids=segment_ids,
            packable=not self._encoder_decoder,
        )
        keeps = routing.reads == "prompt" and not torch.is_grad_enabled()
        if keeps:
            go_on(routing, inputs)
        priors = self._priors[self.active_adapter] if self.training else None
        if priors:
            routing.records = {}
        previous = enter(routing)
        try:
            output = self.model(*args, **kwargs)
        finally:
            enter(previous)
        if keeps:
            keep_factors(output, routing)
        if priors and not routing.disabled:
            add_to_output(output, prior_loss(priors, self._active_layers(), routing))
        return output

    def generate(
        self,
        *args: Any,
        task_ids: object = None,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's `generate`; ids are per prompt, whatever the number of beams.

        Raises:
            ValueError: As `forward`; or if an input router gets its prompt in chunks.
        """
        inputs = named_inputs(["inputs"], args, kwargs)
        routing = self._make_routing(inputs, task_ids, prompt_mask=prompt_mask, packable=False)
        routing.factors = {}
        if routing.reads == "prompt" and not self._encoder_decoder:
            go_on(routing, inputs)
            routing.prompt_tokens = batch_shape(inputs)[1]
        with entered(routing):
            output = self.model.generate(*args, **kwargs)  # type: ignore[operator]
        if routing.reads == "prompt":
            keep_factors(output, routing)
        return output

    def get_encoder(self) -> RoutedModule:
        """The encoder alone, called with `task_ids` as the model is.

        Raises:
            ValueError: If the base model is not an encoder-decoder.
        """
        encoder = encoder_of(self.model)
        if encoder is None:
            raise ValueError(f"{type(self.model).__name__} has no encoder beside a decoder.")
        return RoutedModule(encoder, self._make_routing)

    def _make_routing(
        self,
        inputs: dict[str, Any],
        task_ids: object,
        *,
        prompt_mask: Tensor | None,
        segment_ids: Tensor | None = None,
        packable: bool = True,
    ) -> Routing:
        if self.training:
            guard_checkpoints(self._checkpointable)
        override = override_of(self)
        if override.disabled:
            return Routing(disabled=True)
        config, layers = self.config_of(self.active_adapter), self._active_layers()
        router = next(iter(layers.values())).router(self.active_adapter)
        batch, seq = batch_shape(inputs)
        packed_seq = seq if packable else None
        routing = Routing(
            intervention=override.intervention,
            reads=router.reads,
            uniform_share=self._uniform_shares.get(self.active_adapter),
        )
        if router.reads is not None:
            routing.prompt = check_prompt_mask(prompt_mask, batch, seq=seq)
            routing.segments = check_segment_ids(segment_ids, batch, seq=packed_seq)
        if router.needs_task_ids:
            if task_ids is None and override.intervention and batch is not None:
                task_ids = override.intervention.default_ids(batch)
            ids = check_task_ids(task_ids, config.n_tasks, batch=batch, seq=packed_seq)
            # Once, and without waiting for the device: a copy in each layer would wait.
            routing.task_ids = ids.to(next(self.parameters()).device, non_blocking=True)
            is_noisy = self.training and router.draws_noise and override.intervention is None
            if is_noisy and config.noise_source == "keyed":
                routing.noise = self._noise.key(len(ids))
        if router.reads is None:
            weigh_shared(layers.values(), routing, None)
        elif config.router_input == "embeddings":
            routing.weigh_shared = partial(weigh_shared, [*layers.values()])
        return routing

    # Routing

    @property
    def is_input_routed(self) -> bool:
        """Whether the active adapter's router reads the input, so that a task has no weights."""
        return self._router().reads is not None

    def _router(self) -> Router:
        """The router of any layer: what kind the active adapter has."""
        return next(iter(self._active_layers().values())).router(self.active_adapter)

    def set_noise_key(
        self,
        seed: int,
        step: int,
        first_row: int = 0,
        *,
        rows: Int64[Tensor, " batch"] | None = None,
    ) -> None:
        """Noise of the next training forwards, for `noise_source="keyed"`.

        Args:
            seed: The run's seed.
            step: The optimiser's step.
            first_row: Position of the batch's first row in the global batch.
            rows: Position of every row, where they are not consecutive.
        """
        n_layers = len(self.poly_layers())
        self._noise.set(seed, step, rows=first_row if rows is None else rows, n_layers=n_layers)

    def set_uniform_share(self, share: float) -> None:
        """Mix a uniform routing into the active adapter's: `w <- (1 - share) w + share * uniform`.

        It is part of the adapter, and saved with it.

        Raises:
            ValueError: If it is not from 0 to 1, or there is no routing to anneal.
        """
        name = self.active_adapter
        self.peft_config[name] = replace(self.peft_config[name], uniform_share=float(share))
        self._note_share(name)

    def _note_share(self, adapter_name: str) -> None:
        share = self.peft_config[adapter_name].uniform_share
        device = next(self.parameters()).device
        if share:
            self._uniform_shares[adapter_name] = torch.full((), share, device=device)
        else:
            self._uniform_shares.pop(adapter_name, None)

    @contextmanager
    def routing(self, spec: str) -> Iterator[PolyModel]:
        """Change the routing of every call inside, in this thread.

        `learned`; `uniform`, all 1/n_skills; `rounded`, gates above 1/2 only; `top1` of each head;
        `shuffled`, a fixed permutation of the tasks that leaves none in place (without tasks: the
        rows of the batch change places); `task:NAME_OR_ID` for all rows; `drop:SKILL`, aligned
        over layers, or `drop:LAYER/SKILL`: the weights of the others are normalised again.

        Raises:
            ValueError: If `spec` is none of these, or names no task, layer or skill.
        """
        config, layers = self.peft_config[self.active_adapter], self._active_layers()
        subject = Subject(
            router=self._router(),
            n_tasks=config.n_tasks,
            task_names=config.task_names,
            skill_counts=dict.fromkeys(layers, config.bank_size),
            task_weights=self.task_weights,
        )
        with overridden(self, Override(intervention=parse_intervention(spec, subject))):
            yield self

    @contextmanager
    def disable_adapter(self) -> Iterator[PolyModel]:
        """Compute the base model inside, in this thread; `task_ids` are not read."""
        with overridden(self, Override(disabled=True)), entered(Routing(disabled=True)):
            yield self

    def mixing_weights(
        self,
        *args: Any,
        task_ids: object = None,
        prompt_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Float[Tensor, "*batch splits skills"]]:
        """Weights of each layer for these inputs, without noise and under `routing(...)`.

        Routers by task need only `task_ids`; input routers need the model's inputs, and run it.

        Raises:
            ValueError: As `forward`.
        """
        inputs = named_inputs(self._names, args, kwargs)
        with overridden(self, replace(override_of(self), disabled=False)):
            routing = self._make_routing(
                inputs,
                task_ids,
                prompt_mask=prompt_mask,
                segment_ids=segment_ids,
                packable=not self._encoder_decoder,
            )
        return call_weights(self.model, inputs, routing=routing, layers=self._active_layers())

    def task_weights(self) -> dict[str, Float[Tensor, "tasks splits skills"]]:
        """Learned weights of every task by layer, without noise.

        Raises:
            ValueError: If the adapter is routed by the input.
        """
        share = self.peft_config[self.active_adapter].uniform_share
        layers = self._active_layers()
        return task_weights(layers, self.active_adapter, uniform_share=share)

    def task_gates(self) -> dict[str, Float[Tensor, "tasks splits skills"]]:
        """`sigmoid(Z)` of every task by layer; empty where the router has no gates."""
        return task_gates(self._active_layers(), self.active_adapter)
