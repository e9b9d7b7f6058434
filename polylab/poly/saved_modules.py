"""`modules_to_save`: modules of which each adapter trains and saves a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from polylab.poly.config import PolyConfig
from polylab.poly.layers import PolyLayer
from polylab.poly.routing import current

__all__ = [
    "SavedModule",
    "base_modules",
    "find_saved",
    "has_suffix",
    "is_inside",
    "saved_modules",
    "tied_groups",
    "unwrapped",
    "wrap_saved",
]


class SavedModule(nn.Module):
    """A frozen module, and a trainable copy of it for each adapter that saves it.

    The active adapter's copy computes; the frozen module does where that adapter has none, and
    while adapters are disabled in this thread. Every other attribute is that module's as well.
    """

    def __init__(self, original_module: nn.Module) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()
        self.active_adapter = ""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "modules_to_save" not in self.__dict__.get("_modules", {}):
                raise  # not there yet: the constructor is running
            return getattr(self.chosen(), name)

    def chosen(self) -> nn.Module:
        """The module that computes now, in this thread."""
        routing = current()
        is_off = routing is not None and routing.disabled
        if is_off or self.active_adapter not in self.modules_to_save:
            return self.original_module
        return self.modules_to_save[self.active_adapter]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The chosen module's output."""
        return self.chosen()(*args, **kwargs)

    def add_adapter(self, adapter_name: str, memo: dict[int, Any]) -> None:
        """Copy the frozen module for an adapter.

        Args:
            adapter_name: Its name.
            memo: Shared by all copies of one adapter, so that weights tied in the model are tied
                in its copies.
        """
        module = copy.deepcopy(self.original_module, memo)
        self.modules_to_save[adapter_name] = module.train(self.training)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Compute with this adapter's copy, if there is one; only it is trainable."""
        self.active_adapter = adapter_name
        self.modules_to_save.requires_grad_(False)
        if adapter_name in self.modules_to_save:
            self.modules_to_save[adapter_name].requires_grad_(not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter's copy, if there is one."""
        if adapter_name in self.modules_to_save:
            del self.modules_to_save[adapter_name]


def saved_modules(model: nn.Module) -> dict[str, SavedModule]:
    """All `SavedModule`s by their name in the base model, in module order."""
    named = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, SavedModule)}


def base_modules(model: nn.Module, *, remove_duplicate: bool = True) -> dict[str, nn.Module]:
    """The modules of the model as it was before anything was wrapped, by name."""
    seen: set[int] | None = set() if remove_duplicate else None
    return dict(_walk("", model, seen))


def unwrapped(module: nn.Module) -> nn.Module:
    """The base model's module in a `PolyLayer` or `SavedModule`; any other module itself."""
    if isinstance(module, PolyLayer):
        return module.base_layer
    return module.original_module if isinstance(module, SavedModule) else module


def _walk(name: str, module: nn.Module, seen: set[int] | None) -> Iterator[tuple[str, nn.Module]]:
    is_adapted, module = isinstance(module, PolyLayer), unwrapped(module)
    if seen is not None:
        if id(module) in seen:
            return
        seen.add(id(module))
    if name:
        yield name, module
    if is_adapted:
        return
    for child, inner in module._modules.items():
        if inner is not None:
            yield from _walk(f"{name}.{child}" if name else child, inner, seen)


def has_suffix(name: str, suffixes: Iterable[str]) -> bool:
    """Whether a module's name ends in one of `suffixes`, in whole parts."""
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)


def is_inside(name: str, names: Iterable[str]) -> bool:
    """Whether a module is one of `names`, or a part of one of them."""
    return any(name == outer or name.startswith(f"{outer}.") for outer in names)


def find_saved(model: nn.Module, config: PolyConfig) -> dict[str, nn.Module]:
    """The frozen modules whose names end in one of `modules_to_save`, in module order.

    As in PEFT the ends need not be whole parts: `norm` means every `input_layernorm` too.

    Raises:
        ValueError: If a suffix matches nothing (with near misses), or a module cannot be copied
            and trained: it has no forward or no weights, is quantised, holds adapted layers or
            another such module, or shares a weight with a module that is not named.
    """
    suffixes = config.modules_to_save
    if not suffixes:
        return {}
    modules = base_modules(model, remove_duplicate=False)
    found = {name: module for name, module in modules.items() if name.endswith((*suffixes,))}
    for suffix in suffixes:
        if not any(name.endswith(suffix) for name in found):
            raise ValueError(_no_match(suffix, modules, kind=type(model).__name__))
    adapted = [name for name, module in model.named_modules() if isinstance(module, PolyLayer)]
    for name, module in found.items():
        problem = _problem(name, module, others=[*saved_modules(model), *found], adapted=adapted)
        if problem:
            raise ValueError(f"modules_to_save={suffixes}: {name!r} {problem}")
    _check_ties(modules, found, suffixes=suffixes)
    return found


def wrap_saved(model: nn.Module, found: Mapping[str, nn.Module], *, adapter_name: str) -> None:
    """Give an adapter its copies of the modules from `find_saved`, in place."""
    memo: dict[int, Any] = {}
    for name, module in found.items():
        parent, _, child = name.rpartition(".")
        holder = model.get_submodule(parent)
        saved = holder.get_submodule(child)
        if not isinstance(saved, SavedModule):
            saved = SavedModule(module).train(module.training)
            setattr(holder, child, saved)
        saved.add_adapter(adapter_name, memo)


def tied_groups(found: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of the tensors of these modules that are one and the same, group by group."""
    groups: dict[int, list[str]] = {}
    for name, module in found.items():
        for part, tensor in module.state_dict(keep_vars=True).items():
            groups.setdefault(id(tensor), []).append(f"{name}.{part}")
    return [names for names in groups.values() if len(names) > 1]


def _problem(
    name: str, module: nn.Module, *, others: Collection[str], adapted: Iterable[str]
) -> str | None:
    inner = [other for other in adapted if is_inside(other, [name])]
    if inner:
        return f"holds layers that an adapter is in, {inner[:3]}: name other modules."
    nested = [other for other in others if other != name and is_inside(other, [name])]
    nested += [other for other in others if other != name and is_inside(name, [other])]
    if nested:
        return f"and {nested[0]!r} are one inside the other: name only one of them."
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return f"is a {type(module).__name__}, which is never called: name the modules in it."
    weights = [*module.parameters()]
    if not weights:
        return "has no weights to train: leave it out."
    fixed = {str(weight.dtype) for weight in weights if not weight.is_floating_point()}
    if fixed or any(weight.element_size() < 2 for weight in weights):
        return (
            f"is quantised ({sorted({str(weight.dtype) for weight in weights})}) and cannot be "
            "trained: adapt it with target_modules."
        )
    return None


def _check_ties(
    modules: Mapping[str, nn.Module], found: Mapping[str, nn.Module], *, suffixes: list[str]
) -> None:
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), []).append(name)
    for name, module in found.items():
        for weight in module.parameters():
            left = [owner for owner in owners[id(weight)] if not is_inside(owner, found)]
            if left:
                raise ValueError(
                    f"modules_to_save={suffixes}: {name!r} shares a weight with {left}, which "
                    "would keep the frozen one. Name these too (the copies share theirs), or load "
                    "the model with tie_word_embeddings=False."
                )


def _no_match(suffix: str, modules: Mapping[str, nn.Module], *, kind: str) -> str:
    names = [*dict.fromkeys(name.rpartition(".")[2] for name in modules), *modules]
    near = get_close_matches(suffix, names, n=3, cutoff=0.5)
    hint = f" Near misses: {near}." if near else ""
    return (
        f"modules_to_save has {suffix!r}, which matches no module of {kind}.{hint} Give the ends "
        "of module names."
    )
