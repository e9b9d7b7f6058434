"""The two libraries under one surface: what a check may use of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LIBRARIES", "Library", "NotChecked", "Wrong", "agree", "open_library"]

LIBRARIES = ("peft", "polylab")


class Wrong(AssertionError):
    """It ran, and the result is not what the check asks for. The message is the table's text."""


class NotChecked(Exception):
    """The question cannot be asked on this machine. The message says what is missing."""


@dataclass(frozen=True)
class Library:
    """Names that both libraries have, and the one thing that they call differently."""

    name: str
    title: str
    config: Callable[..., Any]
    """`PolyConfig`."""
    wrap: Callable[..., Any]
    """`get_peft_model`."""
    load: Callable[..., Any]
    """`PeftModel.from_pretrained`."""
    load_into_more_tasks: Callable[[Any, str, int], Any]
    """A saved adapter on a base model, from its folder, with so many tasks more."""
    layer_type: type
    """`PolyLayer`."""
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]
    """The optimiser that training with the library makes, given the weight decay."""

    def layers(self, model: Any) -> dict[str, Any]:
        """Adapted layers by their name in the base model."""
        modules = model.get_base_model().named_modules()
        return {name: m for name, m in modules if isinstance(m, self.layer_type)}


def open_library(name: str) -> Library:
    """Import `peft` or `polylab`.

    Raises:
        ImportError: If it is not installed.
        ValueError: If it is another name.
    """
    if name == "polylab":
        return _polylab()
    if name == "peft":
        return _peft()
    raise ValueError(f"library {name!r} is unknown. Valid ones: {[*LIBRARIES]}.")


def agree(found: Tensor, wanted: Tensor, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Both are the same within the tolerance.

    Raises:
        Wrong: With the difference.
    """
    if found.shape != wanted.shape:
        raise Wrong(f"shape {[*found.shape]} instead of {[*wanted.shape]}")
    if not torch.allclose(found, wanted, rtol=rtol, atol=atol):
        difference = (found - wanted).abs().max()
        # one digit: the same on any machine
        raise Wrong(f"max difference {difference:.0e}")


def _polylab() -> Library:
    import polylab
    from polylab.training.optim import OptimConfig, build_optimizer

    def load_into_more_tasks(base: Any, folder: str, n_more: int) -> Any:
        model = polylab.PeftModel.from_pretrained(base, folder)
        model.add_tasks(n_more)
        return model.eval()

    return Library(
        name="polylab",
        title="polylab",
        config=polylab.PolyConfig,
        wrap=polylab.get_peft_model,
        load=polylab.PeftModel.from_pretrained,
        load_into_more_tasks=load_into_more_tasks,
        layer_type=polylab.PolyLayer,
        optimizer=lambda model, decay: build_optimizer(model, OptimConfig(weight_decay=decay)),
    )


def _peft() -> Library:
    import peft
    from peft.tuners.poly import PolyLayer

    def load_into_more_tasks(base: Any, folder: str, n_more: int) -> Any:
        config: Any = peft.PolyConfig.from_pretrained(folder)
        config.n_tasks += n_more
        return peft.PeftModel.from_pretrained(base, folder, config=config).eval()

    return Library(
        name="peft",
        title=f"PEFT {version('peft')}",
        config=peft.PolyConfig,
        wrap=peft.get_peft_model,
        load=peft.PeftModel.from_pretrained,
        load_into_more_tasks=load_into_more_tasks,
        layer_type=PolyLayer,
        optimizer=_trainer_optimizer,
    )


def _trainer_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """PEFT trains with transformers' Trainer, whose optimiser this is."""
    from tempfile import TemporaryDirectory

    from transformers import Trainer, TrainingArguments

    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, weight_decay=weight_decay, report_to="none", use_cpu=True, disable_tqdm=True
        )
        return Trainer(model=model, args=args).create_optimizer()
