"""`AdaptedModel`: a frozen base model with named adapters, which can be saved and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from polylab.poly import exporting, io
from polylab.poly.config import PolyConfig
from polylab.poly.granularity import router_seats
from polylab.poly.growth import add_skills, add_tasks, average_skills, combine_adapters
from polylab.poly.injection import (
    default_targets,
    find_targets,
    poly_layers,
    seat_adapter,
    wrap_targets,
)
from polylab.poly.layers import PolyLayer, make_combine
from polylab.poly.tied import name_tied_weights_once

__all__ = ["AdaptedModel"]

_Model = TypeVar("_Model", bound="AdaptedModel")


class AdaptedModel(nn.Module):
    """Adapters by name around the layers of one base model, of which one is active.

    The base model is changed in place, and frozen.

    Raises:
        ValueError: If the model is wrapped already, or `config` does not fit it.
    """

    def __init__(self, model: nn.Module, config: PolyConfig, adapter_name: str = "default") -> None:
        super().__init__()
        if isinstance(model, AdaptedModel) or poly_layers(model):
            raise ValueError(
                f"{type(model).__name__} is wrapped already. Add a second adapter with "
                "add_adapter(name, config), or start from a fresh base model."
            )
        # these fail before any change
        router_seats(model, find_targets(model, config), config)
        make_combine(config)
        _check_name(adapter_name, ())
        self.model = model.requires_grad_(False)
        self.training = model.training
        self.peft_config: dict[str, PolyConfig] = {}
        self._observers: list[RemovableHandle] = []
        self.active_adapter = adapter_name
        self.add_adapter(adapter_name, config)
        name_tied_weights_once(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not there yet: the base's constructor is running
                raise
            return getattr(self.model, name)

    @property
    def base_model(self: _Model) -> _Model:
        """This object: code written for PEFT finds the base as `base_model.model`."""
        return self

    def get_base_model(self) -> nn.Module:
        """The base model, its layers still wrapped."""
        return self.model

    def poly_layers(self) -> dict[str, PolyLayer]:
        """The adapted layers by their name in the base model, in module order."""
        return poly_layers(self.model)

    def _active_layers(self) -> dict[str, PolyLayer]:
        layers = self.poly_layers().items()
        return {name: layer for name, layer in layers if self.active_adapter in layer.poly_lora_A}

    @property
    def active_adapters(self) -> list[str]:
        """The active adapter: one at a time, as two would need ids of their own."""
        return [self.active_adapter]

    def add_adapter(self, adapter_name: str, config: PolyConfig) -> None:
        """Add a fresh adapter; `set_adapter` makes it the active one.

        Raises:
            ValueError: If the name is taken or has a dot, or `config` does not fit the model.
        """
        _check_name(adapter_name, self.peft_config)
        config = _resolve(config, self.model)
        targets = find_targets(self.model, config)
        seats = router_seats(self.model, targets, config)
        make_combine(config)
        layers = wrap_targets(self.model, targets)
        seat_adapter(layers, seats, adapter_name=adapter_name, config=config)
        self.peft_config[adapter_name] = config
        self.set_adapter(self.active_adapter)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Compute with this adapter and train only it.

        Raises:
            ValueError: If there is no such adapter, or there are several.
        """
        name = adapter_name if isinstance(adapter_name, str) else "+".join(adapter_name)
        config = self.config_of(name)
        for layer in self.poly_layers().values():
            layer.set_adapter(name, inference_mode=config.inference_mode)
        self.active_adapter = name

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it was active, the first remaining one becomes active.

        Raises:
            ValueError: If there is no such adapter, or it is the last.
        """
        self.config_of(adapter_name)
        if len(self.peft_config) == 1:
            raise ValueError(f"adapter {adapter_name!r} is the last one: use disable_adapter().")
        for layer in self.poly_layers().values():
            if adapter_name in layer.poly_lora_A:
                layer.delete_adapter(adapter_name)
        del self.peft_config[adapter_name]
        if self.active_adapter == adapter_name:
            self.set_adapter(next(iter(self.peft_config)))

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

    def config_of(self, adapter_name: str) -> PolyConfig:
        """The configuration of an adapter.

        Raises:
            ValueError: If there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(
                f"no adapter {adapter_name!r}. There are: {[*self.peft_config]}; give one of them."
            )
        return self.peft_config[adapter_name]

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        *,
        is_trainable: bool = False,
    ) -> _Model:
        """Put a saved adapter, polylab's or PEFT's Poly, into a fresh base model.

        Args:
            model: The base model; unchanged if the adapter does not fit.
            model_id: Folder of the adapter.
            adapter_name: Its name here.
            is_trainable: False: frozen, and in evaluation mode.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the adapter does not fit the model, with the difference.
        """
        config, tensors = io.read_adapter(model_id)
        io.check_tensors(tensors, config, model=model)
        adapted = cls(model, replace(config, inference_mode=not is_trainable), adapter_name)
        io.copy_tensors(tensors, adapted.model, adapter_name=adapter_name)
        return adapted if is_trainable else adapted.eval()

    def load_adapter(
        self, model_id: str | Path, adapter_name: str, *, is_trainable: bool = False
    ) -> None:
        """Add a saved adapter beside the others; `set_adapter` makes it the active one.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the name is taken, or the adapter does not fit the model.
        """
        _check_name(adapter_name, self.peft_config)
        config, tensors = io.read_adapter(model_id)
        io.check_tensors(tensors, config, model=self.model)
        self.add_adapter(adapter_name, replace(config, inference_mode=not is_trainable))
        io.copy_tensors(tensors, self.model, adapter_name=adapter_name)

    def save_pretrained(
        self, save_directory: str | Path, *, selected_adapters: Sequence[str] | None = None
    ) -> None:
        """Write adapters in PEFT's layout: `default` into the folder, others into subfolders.

        Raises:
            ValueError: If there is no such adapter.
        """
        for name in selected_adapters if selected_adapters is not None else self.peft_config:
            directory = Path(save_directory) / ("" if name == "default" else name)
            config = self.config_of(name)
            io.write_adapter(directory, config, model=self.model, adapter_name=name)

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

    def forget(self) -> None:
        """Hold no adapter: the base model has been taken out."""
        self.peft_config.clear()
        for handle in self._observers:
            handle.remove()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """The base model's, by its current or its former name."""
        assert isinstance(self.model, PreTrainedModel)
        former = self.model.gradient_checkpointing_enable
        getattr(self.model, "activation_checkpointing_enable", former)(
            gradient_checkpointing_kwargs
        )

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """`(trainable, all)` parameters."""
        sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """One line: trainable and all parameters, and their ratio."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(
            f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"
        )


def _check_name(adapter_name: str, taken: Iterable[str]) -> None:
    if adapter_name in taken or "." in adapter_name or not adapter_name:
        raise ValueError(
            f"adapter name {adapter_name!r} is empty, has a dot or is taken. Taken: {[*taken]}."
        )


def _resolve(config: PolyConfig, model: nn.Module) -> PolyConfig:
    """What will be saved: the default targets and the base model's name are filled in."""
    targets = config.target_modules if config.target_modules is not None else default_targets(model)
    base = config.base_model_name_or_path or getattr(model, "name_or_path", None)
    return replace(config, target_modules=targets, base_model_name_or_path=base)
