"""`AdaptedModel`: a frozen base model with named adapters, which can be saved and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from polylab.poly import io
from polylab.poly.config import PolyConfig
from polylab.poly.granularity import router_seats
from polylab.poly.injection import (
    default_targets,
    find_targets,
    layers_of,
    poly_layers,
    seat_adapter,
    wrap_targets,
)
from polylab.poly.layers import PolyLayer
from polylab.poly.linears import features_of, keep_differentiable
from polylab.poly.saved_modules import find_saved, saved_modules, wrap_saved
from polylab.poly.tensors import check_tensors, copy_tensors
from polylab.poly.tied import name_tied_weights_once
from polylab.poly.trial import try_own_classes

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
        _check_fit(model, config)
        _check_name(adapter_name, ())
        keep_differentiable(model)
        self.model = model.requires_grad_(False)
        self.training = model.training
        self.peft_config: dict[str, PolyConfig] = {}
        self._observers: list[RemovableHandle] = []
        self._active_layers: dict[str, PolyLayer] = {}
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

    def active_layers(self) -> dict[str, PolyLayer]:
        """Those that the active adapter is in. Kept: every call asks for them."""
        return self._active_layers

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
        _check_fit(self.model, config)
        targets = find_targets(self.model, config)
        seats = router_seats(self.model, targets, config)
        copied = find_saved(self.model, config)
        layers = wrap_targets(self.model, targets)
        seat_adapter(layers, seats, adapter_name=adapter_name, config=config)
        wrap_saved(self.model, copied, adapter_name=adapter_name)
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
        for module in saved_modules(self.model).values():
            module.set_adapter(name, inference_mode=config.inference_mode)
        self.active_adapter = name
        self._active_layers = layers_of(self.model, name)

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
        for module in saved_modules(self.model).values():
            module.delete_adapter(adapter_name)
        del self.peft_config[adapter_name]
        if self.active_adapter == adapter_name:
            self.set_adapter(next(iter(self.peft_config)))

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
        trust_code: bool = False,
    ) -> _Model:
        """Put a saved adapter, polylab's or PEFT's Poly, into a fresh base model.

        Args:
            model: The base model; unchanged if the adapter does not fit.
            model_id: Folder of the adapter.
            adapter_name: Its name here.
            is_trainable: False: frozen, and in evaluation mode.
            trust_code: Import and run the classes of the adapter's author that its files name.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the adapter does not fit the model, with the difference, or names code
                that is not trusted.
        """
        config, tensors = io.read_adapter(model_id, trust_code=trust_code)
        check_tensors(tensors, config, model=model)
        adapted = cls(model, replace(config, inference_mode=not is_trainable), adapter_name)
        copy_tensors(tensors, adapted.model, adapter_name=adapter_name)
        return adapted if is_trainable else adapted.eval()

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        *,
        is_trainable: bool = False,
        trust_code: bool = False,
    ) -> None:
        """Add a saved adapter beside the others; `set_adapter` makes it the active one.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If the name is taken, the adapter does not fit the model, or it names code
                that is not trusted.
        """
        _check_name(adapter_name, self.peft_config)
        config, tensors = io.read_adapter(model_id, trust_code=trust_code)
        check_tensors(tensors, config, model=self.model)
        self.add_adapter(adapter_name, replace(config, inference_mode=not is_trainable))
        copy_tensors(tensors, self.model, adapter_name=adapter_name)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        selected_adapters: Sequence[str] | None = None,
        is_main_process: bool = True,
    ) -> None:
        """Write adapters in PEFT's layout: `default` into the folder, others into subfolders.

        Args:
            save_directory: The folder.
            selected_adapters: Their names; all by default.
            is_main_process: Whether this process writes. Of a model that is sharded over ranks all
                must call this, and one of them writes.

        Raises:
            ValueError: If there is no such adapter.
        """
        self.config_of(self.active_adapter)  # a model that was unloaded has none
        for name in selected_adapters if selected_adapters is not None else self.peft_config:
            directory = Path(save_directory) / ("" if name == "default" else name)
            config = self.config_of(name)
            io.write_adapter(
                directory,
                config,
                model=self.model,
                adapter_name=name,
                is_main_process=is_main_process,
            )

    def forget(self) -> None:
        """Hold no adapter: the base model has been taken out."""
        self.peft_config.clear()
        self._active_layers = {}
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


def _check_fit(model: nn.Module, config: PolyConfig) -> None:
    targets = find_targets(model, config)
    router_seats(model, targets, config)
    try_own_classes(config, features_of(next(iter(targets.values())))[0])


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
