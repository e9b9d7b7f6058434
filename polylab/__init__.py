"""polylab: multi-task fine-tuning with routed skills (Polytropon) in PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polylab.poly import (
        PolyConfig,
        PolyLayer,
        PolyModel,
        TaskType,
        compile_blocks,
        from_loras,
        from_mttl,
        get_peft_model,
    )
    from polylab.poly import PolyModel as PeftModel
    from polylab.runs import load

__version__ = "0.1.0"
__all__ = [
    "PeftModel",
    "PolyConfig",
    "PolyLayer",
    "PolyModel",
    "TaskType",
    "compile_blocks",
    "from_loras",
    "from_mttl",
    "get_peft_model",
    "load",
]

# Public name -> (module, name there). Resolved on first use, so that the commands' help and error
# messages do not wait for torch and transformers.
_EXPORTS = {
    "PeftModel": ("polylab.poly", "PolyModel"),
    "PolyConfig": ("polylab.poly", "PolyConfig"),
    "PolyLayer": ("polylab.poly", "PolyLayer"),
    "PolyModel": ("polylab.poly", "PolyModel"),
    "TaskType": ("polylab.poly", "TaskType"),
    "compile_blocks": ("polylab.poly", "compile_blocks"),
    "from_loras": ("polylab.poly", "from_loras"),
    "from_mttl": ("polylab.poly", "from_mttl"),
    "get_peft_model": ("polylab.poly", "get_peft_model"),
    "load": ("polylab.runs", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It has: {__all__}.")
    module, attribute = _EXPORTS[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value
