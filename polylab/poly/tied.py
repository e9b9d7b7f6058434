"""Tied weights in a state dict: one entry each.

The Trainer of transformers writes the state dict of a model that is not its own with safetensors,
which refuses two names of one memory: T5's embeddings have four.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["name_tied_weights_once"]


def name_tied_weights_once(model: nn.Module) -> None:
    """Leave later names of a parameter out of `model`'s state dicts, and add them on loading."""
    model.register_state_dict_post_hook(_drop)
    model.register_load_state_dict_pre_hook(_restore)


def _drop(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in _first_names(module):
        state.pop(prefix + name, None)


def _restore(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_unused: Any, **_kwargs: Any
) -> None:
    for name, first in _first_names(module).items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


def _first_names(module: nn.Module) -> dict[str, str]:
    """Later names of each parameter, and its first."""
    seen: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    first = {name: seen.setdefault(id(parameter), name) for name, parameter in named}
    return {name: one for name, one in first.items() if name != one}
