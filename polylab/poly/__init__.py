"""The method: a bank of LoRA skills per layer, mixed by a router, on a transformers model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polylab.poly.blocks import compile_blocks
    from polylab.poly.config import PolyConfig, TaskType
    from polylab.poly.importing import from_loras
    from polylab.poly.layers import PolyLayer
    from polylab.poly.model import PolyModel, get_peft_model
    from polylab.poly.mttl import from_mttl

__all__ = [
    "PolyConfig",
    "PolyLayer",
    "PolyModel",
    "TaskType",
    "compile_blocks",
    "from_loras",
    "from_mttl",
    "get_peft_model",
]

# Resolved on first use: `polylab.poly.config` alone needs neither torch nor transformers.
_MODULES = {
    "PolyConfig": "config",
    "PolyLayer": "layers",
    "PolyModel": "model",
    "TaskType": "config",
    "compile_blocks": "blocks",
    "from_loras": "importing",
    "from_mttl": "mttl",
    "get_peft_model": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It has: {__all__}.")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
