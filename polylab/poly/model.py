"""`PolyModel`: a transformers model with routed skills, called with `task_ids`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly import exporting
from polylab.poly.caches import go_on, keep_factors
from polylab.poly.calls import RoutedModule, widen_padding
from polylab.poly.config import PolyConfig
from polylab.poly.growth import add_skills, add_tasks, average_skills, combine_adapters
from polylab.poly.inspection import call_weights
from polylab.poly.observing import observe_prompts
from polylab.poly.packing import Lengths, call_packed, make_packed
from polylab.poly.prior_loss import add_to_output, prior_loss
from polylab.poly.routed import RoutedModel
from polylab.poly.routing import enter, entered, overridden, override_of
from polylab.poly.sharding import is_sharded
from polylab.poly.signatures import blank, root_of, signed
from polylab.poly.structure import batch_shape, encoder_of, named_inputs, parameter_names

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


class PolyModel(RoutedModel):
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
        super().__init__(model, config, adapter_name)
        self._names = parameter_names(model)
        self._observers = observe_prompts(model)

    def __reduce__(self) -> tuple:
        """For pickle and copy: `type(self)` has no import path."""
        return blank, (root_of(type(self)), type(self.model)), self.__dict__

    def _get_name(self) -> str:
        # By it the Trainer knows a causal model, whose labels its label smoothing must shift.
        return type(self.model).__name__

    def forward(
        self,
        *args: Any,
        task_ids: object = None,
        prompt_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        packed_lengths: Lengths | None = None,
        decoder_packed_lengths: Lengths | None = None,
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
            packed_lengths: For packed rows whose examples have one id each (`task_ids` is
                `[examples]`, row by row): the tokens of the examples of every row. Then attention
                and positions are those of each example by itself, for any router; the output has
                logits only. A decoder-only or an encoder-decoder model.
            decoder_packed_lengths: The same of `decoder_input_ids`, for an encoder-decoder model.
            **kwargs: The base model's.

        Returns:
            The base model's. With priors, in training, it has `prior_loss`, and its `loss` holds
            that too.

        Raises:
            ValueError: If `task_ids` are missing, of a wrong type or shape, or out of range; or if
                rows cannot be packed in this model or with these inputs.
        """
        inputs = named_inputs(self._names, args, kwargs)
        packed = make_packed(
            self.model,
            {**inputs, "segment_ids": segment_ids},
            packed_lengths,
            decoder_packed_lengths,
        )
        routing = self._make_routing(
            inputs,
            task_ids,
            prompt_mask=prompt_mask,
            segment_ids=segment_ids,
            packable=not self._encoder_decoder,
            packed=packed,
        )
        keeps = routing.reads == "prompt" and not torch.is_grad_enabled() and packed is None
        if keeps:
            go_on(routing, inputs, adapter_name=self.active_adapter)
        learns = self.training and torch.is_grad_enabled() and routing.intervention is None
        priors = self._priors.get(self.active_adapter) if learns else None
        if priors:
            routing.records = {}
        previous = enter(routing)
        try:
            if packed is None:
                output = self.model(*args, **widen_padding(self.model, kwargs))
            else:
                output = call_packed(self.model, inputs, packed)
        finally:
            enter(previous)
        if keeps:
            keep_factors(output, routing, adapter_name=self.active_adapter)
        if priors and not routing.disabled:
            add_to_output(output, prior_loss(priors, self.active_layers(), routing))
        return output

    def generate(
        self,
        *args: Any,
        task_ids: object = None,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's `generate`; ids are per prompt, whatever the number of beams.

        Skills are mixed once. Where all prompts are of one task they are merged into a copy of the
        adapted weights, which lasts for the call and takes their memory again.

        Raises:
            ValueError: As `forward`; or if an input router gets its prompt in chunks.
        """
        inputs = named_inputs(["inputs"], args, kwargs)
        routing = self._make_routing(
            inputs, task_ids, prompt_mask=prompt_mask, packable=False, merges=True
        )
        if routing.factors is None:
            routing.factors = {}
        if routing.reads == "prompt" and not self._encoder_decoder:
            go_on(routing, inputs, adapter_name=self.active_adapter)
            routing.prompt_tokens = batch_shape(inputs)[1]
        with entered(routing):
            output = self.model.generate(*args, **kwargs)  # type: ignore[operator]
        if routing.reads == "prompt":
            keep_factors(output, routing, adapter_name=self.active_adapter)
        return output

    def get_encoder(self) -> RoutedModule:
        """The encoder alone, called with `task_ids` as the model is.

        Raises:
            ValueError: If the base model is not an encoder-decoder, or is sharded.
        """
        encoder = encoder_of(self.model)
        if is_sharded(self):
            raise ValueError(
                "get_encoder() of a sharded model: its embeddings are whole while the model itself "
                "runs. Call the model."
            )
        if encoder is None:
            raise ValueError(f"{type(self.model).__name__} has no encoder beside a decoder.")
        return RoutedModule(encoder, self._make_routing)

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
                noiseless=True,
                mixes=False,
            )
        return call_weights(self.model, inputs, routing=routing, layers=self.active_layers())

    # Adapters as objects

    def add_tasks(
        self, tasks: int | Sequence[str], *, like: int | str = "fresh", adapter_name: str = ""
    ) -> None:
        """Append tasks to a trained adapter; what the old ones compute stays bit for bit.

        The adapter's parameters are new objects afterwards: make a new optimiser.

        Args:
            tasks: Their names; or how many, for an adapter without names.
            like: Where their routing starts: `fresh`, `mean` of all old tasks, or a task's name or
                id.
            adapter_name: The active one by default.

        Raises:
            ValueError: If a name is taken or unknown, or the router cannot grow.
        """
        add_tasks(self, adapter_name or self.active_adapter, tasks, like=like)

    def add_skills(self, n_skills: int, *, adapter_name: str = "") -> None:
        """Append skills to a trained adapter, shut for all old tasks, whose outputs stay.

        A later task mixes all of them. New parameters as in `add_tasks`.

        Raises:
            ValueError: If the number is below 1, or the router cannot grow.
        """
        add_skills(self, adapter_name or self.active_adapter, n_skills)

    def combine_adapters(self, adapter_names: Sequence[str], new_name: str) -> None:
        """Add an adapter with the tasks and the skills of several, side by side.

        Each task computes what it did; the skills of the others are shut for it.

        Raises:
            ValueError: If the adapters differ in more than tasks and skills, or two tasks share a
                name.
        """
        combine_adapters(self, adapter_names, new_name)

    def average_skills(self, new_name: str, *, adapter_name: str = "") -> None:
        """Add an adapter of one shared skill, the mean of all: Poly-mu and MHR-mu.

        https://arxiv.org/abs/2211.03831. It computes what the `uniform` routing of the
        old adapter does.

        Raises:
            ValueError: If the update is not that of averaged factors.
        """
        average_skills(self, adapter_name or self.active_adapter, new_name)

    def export_lora(
        self, task: str | int, directory: str | Path, *, adapter_name: str | None = None
    ) -> None:
        """Write one task's adapter as a plain PEFT LoRA.

        Raises:
            ValueError: If the adapter is routed by the input, or there is no such task or adapter.
        """
        exporting.export_lora(self, task, directory, adapter_name=adapter_name)

    def merge_and_unload(self, task: str | int, *, adapter_name: str | None = None) -> nn.Module:
        """The plain base model with one task's update in its weights; this object is spent.

        Raises:
            ValueError: As `export_lora`, or if a weight is quantised or tied.
        """
        return exporting.merge_task(self, task, adapter_name=adapter_name)

    def unload(self) -> nn.Module:
        """The plain base model with its own weights, frozen; this object is spent."""
        return exporting.unwrap(self)
