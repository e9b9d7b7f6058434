"""`RoutedModel`: an adapted model that knows how each of its calls is to be routed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import Self

from polylab.poly.adapters import AdaptedModel
from polylab.poly.calls import check_prompt_mask, check_segment_ids, guard_checkpoints
from polylab.poly.config import PolyConfig
from polylab.poly.inspection import task_gates, task_weights
from polylab.poly.interventions import Subject, parse_intervention
from polylab.poly.merged import merge_rows
from polylab.poly.noise import KeyedNoise
from polylab.poly.packing import Packed
from polylab.poly.plans import Plan
from polylab.poly.prior_loss import WeightedPrior, make_priors
from polylab.poly.routers import Router
from polylab.poly.routing import (
    Override,
    Routing,
    check_task_ids,
    current,
    entered,
    overridden,
    override_of,
)
from polylab.poly.sharding import is_sharded
from polylab.poly.structure import batch_shape, encoder_of

__all__ = ["RoutedModel"]


class RoutedModel(AdaptedModel):
    """Adapters with what routes them: noise, priors, annealing, interventions.

    Raises:
        ValueError: If the model is wrapped already, or `config` does not fit it.
    """

    def __init__(self, model: nn.Module, config: PolyConfig, adapter_name: str = "default") -> None:
        self._priors: dict[str, list[WeightedPrior]] = {}
        self._uniform_shares: dict[str, Tensor] = {}
        make_priors(config)  # fails before any change
        super().__init__(model, config, adapter_name)
        self._encoder_decoder = encoder_of(model) is not None
        self._noise = KeyedNoise()

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """See `AdaptedModel.set_adapter`."""
        super().set_adapter(adapter_name)
        self._make_plan()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Where `to`, `half`, `cuda` and the like arrive: the plan is for devices and dtypes."""
        super()._apply(fn, recurse)
        if self.peft_config:
            self._make_plan()
        return self

    def _make_plan(self) -> None:
        self._plan = Plan(self.active_layers(), self.active_adapter)

    def add_adapter(self, adapter_name: str, config: PolyConfig) -> None:
        """See `AdaptedModel.add_adapter`."""
        priors = make_priors(config)
        super().add_adapter(adapter_name, config)
        self._priors[adapter_name] = priors
        self._note_share(adapter_name)
        modules = self.model.modules()  # those that were copied among them
        self._checkpointable = tuple(
            m for m in modules if getattr(m, "gradient_checkpointing", None) is not None
        )

    @property
    def is_input_routed(self) -> bool:
        """Whether the active adapter's router reads the input, so that a task has no weights."""
        return self._router().reads is not None

    def _router(self) -> Router:
        """The router of any layer: what kind the active adapter has."""
        self.config_of(self.active_adapter)  # a model that was unloaded has none
        return next(iter(self.active_layers().values())).router(self.active_adapter)

    # How a call is routed

    def _make_routing(
        self,
        inputs: dict[str, Any],
        task_ids: object,
        *,
        prompt_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        packable: bool = True,
        packed: Packed | None = None,
        noiseless: bool = False,
        mixes: bool = True,
        merges: bool = False,
    ) -> Routing:
        """The routing of a call with these inputs.

        Args:
            inputs: Of the base model.
            task_ids: As given.
            prompt_mask: As given.
            segment_ids: As given.
            packable: Rows may have an id per token.
            packed: Rows hold several examples; then ids are those of the examples.
            noiseless: No noise in training mode either.
            mixes: Layers will be called.
            merges: Often: where all rows are routed alike, skills are to be merged.
        """
        if self.training:
            guard_checkpoints(self._checkpointable)
        override = override_of(self)
        if override.disabled:
            return Routing(disabled=True)
        _refuse_names(inputs, self.active_adapter)
        router, (batch, seq) = self._router(), batch_shape(inputs)
        packed_seq = seq if packable else None
        _check_override(override, self.active_adapter)
        routing = Routing(
            intervention=override.intervention,
            reads=router.reads,
            noiseless=noiseless,
            packed=packed,
        )
        self._set_share(routing)
        if router.reads is not None:
            routing.prompt = check_prompt_mask(prompt_mask, batch, seq=seq)
            routing.segments = check_segment_ids(segment_ids, batch, seq=packed_seq)
        if packed is not None:
            _set_packed_prompt(routing)
            batch, packed_seq = len(packed.input), None
        if router.needs_task_ids:
            if task_ids is None and override.intervention and batch is not None:
                task_ids = override.intervention.default_ids(batch)
            self._set_task_ids(routing, task_ids, router, batch=batch, seq=packed_seq)
        if not self._plan.is_current:
            self._make_plan()
        if router.reads is None:
            self._route_ahead(routing, mixes=mixes, merges=merges)
        elif self.peft_config[self.active_adapter].router_input == "embeddings":
            routing.weigh_shared = self._plan.weigh
        return routing

    def _route_ahead(self, routing: Routing, *, mixes: bool, merges: bool) -> None:
        """Evaluate all routers and mix all skills before the base model runs, where that pays."""
        plan, ids = self._plan, routing.task_ids
        if ids is not None and ids.ndim == 2 and not plan.shares_routers:
            return  # weights of every token in every layer at once would fill the memory
        plan.weigh(routing)
        if plan.is_sharded:
            return  # skills are whole while their block runs: see mix_block
        if merges and not is_sharded(self):  # the merged weights would be of all blocks at once
            merge_rows(routing)
        remakes = self.training and torch.is_grad_enabled() and self._is_checkpointing()
        if mixes and not remakes and plan.can_mix and (ids is None or ids.ndim == 1):
            plan.mix(routing)

    def mix_block(self, names: Sequence[str]) -> None:
        """Mix the skills of a block that is about to run, and whose parameters are whole then."""
        routing = current()
        if routing is None or routing.disabled or routing.weights is None:
            return
        if self.training and self._is_checkpointing():
            return  # whether a recompute comes by here again, releases of transformers differ
        ids, names = routing.task_ids, [name for name in names if name in self._active_layers]
        is_kept = routing.factors is not None and names and names[0] in routing.factors
        if names and not is_kept and self._plan.can_mix and (ids is None or ids.ndim == 1):
            self._plan.mix_block(routing, names)

    def forget_block(self, names: Sequence[str]) -> None:
        """Let go, in training, of what was mixed for a block; else a generation needs it again."""
        routing = current()
        if self.training and routing is not None and routing.factors is not None:
            for name in names:
                routing.factors.pop(name, None)

    def _is_checkpointing(self) -> bool:
        """Whether blocks run again in the backward: then each mixes its skills anew."""
        return any(getattr(m, "gradient_checkpointing", False) for m in self._checkpointable)

    def _set_task_ids(
        self,
        routing: Routing,
        task_ids: object,
        router: Router,
        *,
        batch: int | None,
        seq: int | None,
    ) -> None:
        config = self.peft_config[self.active_adapter]
        ids = check_task_ids(task_ids, config.n_tasks, batch=batch, seq=seq)
        # Once, and without waiting for the device: a copy in each layer would wait.
        routing.task_ids = ids.to(next(self.parameters()).device, non_blocking=True)
        is_noisy = self.training and router.draws_noise and not routing.noiseless
        if is_noisy and routing.intervention is None and config.noise_source == "keyed":
            routing.noise = self._noise.key(len(ids))

    def _set_share(self, routing: Routing) -> None:
        share = self._uniform_shares.get(self.active_adapter)
        if share is not None:
            routing.uniform_share = share.to(next(self.parameters()).device, non_blocking=True)

    # What changes it

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
        self.peft_config[name] = replace(self.config_of(name), uniform_share=float(share))
        self._note_share(name)

    def _note_share(self, adapter_name: str) -> None:
        share = self.peft_config[adapter_name].uniform_share
        if share:
            self._uniform_shares[adapter_name] = torch.full((), share)
        else:
            self._uniform_shares.pop(adapter_name, None)

    @contextmanager
    def routing(
        self,
        spec: str,
        *,
        task_weights: Mapping[str, Float[Tensor, "tasks splits skills"]] | None = None,
    ) -> Iterator[Self]:
        """Change the routing of every call inside, in this thread.

        `learned`; `uniform`, all 1/n_skills; `rounded`, gates above 1/2 only; `top1` of each head;
        `shuffled`, a fixed permutation of the tasks that leaves none in place (without tasks: the
        rows of the batch change places); `task:NAME_OR_ID` for all rows; `drop:SKILL`, aligned
        over layers, or `drop:LAYER/SKILL`: the weights of the others are normalised again.

        Args:
            spec: One of these.
            task_weights: By which `drop:SKILL` matches the skills of layers; those of all tasks
                if None. An input router has none: give mean weights of some tasks' examples.

        Raises:
            ValueError: If `spec` is none of these, or names no task, layer or skill.
        """
        config, layers = self.config_of(self.active_adapter), self.active_layers()
        subject = Subject(
            router=self._router(),
            n_tasks=config.n_tasks,
            task_names=config.task_names,
            skill_counts=dict.fromkeys(layers, config.bank_size),
            task_weights=self.task_weights if task_weights is None else lambda: task_weights,
            can_match=self._router().reads is None or task_weights is not None,
        )
        change = Override(
            disabled=override_of(self).disabled,
            intervention=parse_intervention(spec, subject),
            adapter=self.active_adapter,
        )
        with overridden(self, change):
            yield self

    @contextmanager
    def disable_adapter(self) -> Iterator[Self]:
        """Compute the base model inside, in this thread; `task_ids` are not read."""
        with overridden(self, Override(disabled=True)), entered(Routing(disabled=True)):
            yield self

    # What it is, by task

    def task_weights(self) -> dict[str, Float[Tensor, "tasks splits skills"]]:
        """Learned weights of every task by layer, without noise.

        Raises:
            ValueError: If the adapter is routed by the input.
        """
        share = self.config_of(self.active_adapter).uniform_share
        layers = self.active_layers()
        return task_weights(layers, self.active_adapter, uniform_share=share)

    def task_gates(self) -> dict[str, Float[Tensor, "tasks splits skills"]]:
        """`sigmoid(Z)` of every task by layer; empty where the router has no gates."""
        return task_gates(self.active_layers(), self.active_adapter)


def _refuse_names(inputs: dict[str, Any], active: str) -> None:
    if inputs.get("adapter_names") is not None:
        raise ValueError(
            f"adapter_names={inputs['adapter_names']!r} is not supported: one adapter is "
            f"active at a time, now {active!r}. Call set_adapter(name) first."
        )


def _set_packed_prompt(routing: Routing) -> None:
    assert routing.packed is not None
    if routing.prompt is None and routing.packed.decoder is not None:
        routing.prompt = routing.packed.input.attended
    elif routing.prompt is None and routing.reads == "prompt":
        raise ValueError(
            "packed_lengths with a router of the prompt: where the prompts end is unknown, and the "
            "router must not read targets. Give prompt_mask [batch, seq]."
        )


def _check_override(override: Override, active: str) -> None:
    if override.intervention is not None and override.adapter != active:
        raise ValueError(
            f"the adapter was changed to {active!r} inside routing(...), which was made for the "
            f"tasks and layers of {override.adapter!r}. Leave the context first."
        )
