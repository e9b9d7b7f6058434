"""Find the layers that a configuration means, and put `PolyLayer`s around them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from torch import nn

from polylab.poly.config import PolyConfig
from polylab.poly.granularity import Seat
from polylab.poly.layers import PolyLayer
from polylab.poly.linears import check_splits, features_of
from polylab.poly.patterns import check_patterns, is_chosen_layer
from polylab.poly.routers import Router, make_router
from polylab.poly.saved_modules import (
    base_modules,
    find_saved,
    has_suffix,
    is_inside,
    saved_modules,
    unwrapped,
)

__all__ = [
    "default_targets",
    "find_targets",
    "layers_of",
    "poly_layers",
    "seat_adapter",
    "wrap_targets",
]

# The attention's query and value, or the one projection that holds both, as LoRA's paper adapts:
# PEFT's choices for LoRA, and those of related architectures.
_DEFAULTS: dict[tuple[str, ...], list[str] | str] = {
    ("t5", "mt5", "umt5", "longt5", "switch_transformers"): ["q", "v"],
    ("gpt2", "gpt_bigcode"): ["c_attn"],
    ("btlm",): ["c_proj", "c_attn"],
    (
        *("gpt_neox", "bloom", "falcon", "chatglm"),
        *("RefinedWeb", "RefinedWebModel"),
    ): ["query_key_value"],
    ("bert", "roberta", "xlm-roberta", "electra", "layoutlm", "camembert"): ["query", "value"],
    ("deberta",): ["in_proj"],
    ("deberta-v2",): ["query_proj", "value_proj"],
    ("distilbert",): ["q_lin", "v_lin"],
    ("codegen", "phi3"): ["qkv_proj"],
    ("mpt",): ["Wqkv"],
    ("phi",): ["q_proj", "v_proj", "fc1", "fc2"],
    ("blip-2",): ["q", "v", "q_proj", "v_proj"],
    ("gemma4",): r".*language_model\..*\.(q_proj|v_proj)",
    ("nemotron_h",): ["q_proj", "k_proj", "v_proj", "o_proj"],
    ("rwkv",): ["key", "value", "receptance", "output"],
    ("rwkv7",): ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
    (
        *("llama", "llama4", "llama4_text", "mistral", "mixtral", "gemma", "gemma2"),
        *("gemma3_text", "qwen2", "qwen3", "olmo", "olmo2", "stablelm", "starcoder2", "cohere"),
        *("granite", "smollm3", "opt", "gptj", "gpt_neo", "bart", "mbart", "pegasus", "m2m_100"),
        "blenderbot",
    ): ["q_proj", "v_proj"],
}
_ALL_LINEAR = "all-linear"


def default_targets(model: nn.Module) -> list[str] | str:
    """The usual target modules of the model's architecture (`config.model_type`).

    Raises:
        ValueError: If the architecture is not a known one.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for kinds, targets in _DEFAULTS.items():
        if kind in kinds:
            return targets
    known = sorted(name for kinds in _DEFAULTS for name in kinds)
    raise ValueError(
        f"target_modules=None, and no default is known for model_type={kind!r} (there is one for "
        f"{known}). Give target_modules: {_linear_suffixes(model)}, or 'all-linear'."
    )


def find_targets(model: nn.Module, config: PolyConfig) -> dict[str, nn.Module]:
    """The base layers that the adapter goes around, by name, in module order.

    Raises:
        TypeError: If a named module is not a linear layer.
        ValueError: If nothing matches (with near misses), also a pattern of single layers or
            `modules_to_save`; a match is one expert of a mixture of experts or in a module that
            another adapter copies; or `n_splits` does not divide a layer.
    """
    spec = config.target_modules if config.target_modules is not None else default_targets(model)
    copied = find_saved(model, config)
    matched = {}
    for name, module in base_modules(model).items():
        if _is_match(name, config.exclude_modules) or is_inside(name, copied):
            continue
        if spec == _ALL_LINEAR:
            if _is_inner_linear(model, name, module):
                matched[name] = module
        elif _is_match(name, spec):
            matched[name] = module
    if not matched:
        raise ValueError(_no_match(model, spec, config))
    check_patterns(matched, config)
    found = {name: module for name, module in matched.items() if is_chosen_layer(name, config)}
    others = saved_modules(model)
    for name, module in found.items():
        if is_inside(name, others):
            raise ValueError(
                f"target module {name!r} is, or is in, a module that another adapter copies "
                f"(modules_to_save): {[*others]}. Leave it out of one of the two."
            )
        _check_target(name, module, n_splits=config.n_splits)
    return found


def wrap_targets(model: nn.Module, targets: dict[str, nn.Module]) -> dict[str, PolyLayer]:
    """Replace each target in `model` by a `PolyLayer` around it; keep those that are wrapped.

    Args:
        model: Changed in place.
        targets: From `find_targets`.
    """
    for name, module in targets.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        child = name.rpartition(".")[2]
        if not isinstance(parent.get_submodule(child), PolyLayer):
            wrapped = PolyLayer(module, name=name)
            setattr(parent, child, wrapped.train(module.training))
    layers = poly_layers(model)
    for index, layer in enumerate(layers.values()):
        layer.index = index
    return {name: layers[name] for name in targets}


def seat_adapter(
    layers: Mapping[str, PolyLayer],
    seats: Mapping[str, Seat],
    *,
    adapter_name: str,
    config: PolyConfig,
) -> None:
    """Give each layer a fresh adapter, with the router of its group."""
    routers: dict[str, Router] = {}
    for name, layer in layers.items():
        seat = seats[name]
        if seat.group is not None and seat.group not in routers:
            routers[seat.group] = make_router(config, seat.d_router or layer.in_features)
            routers[seat.group].reset()
        router = None if seat.group is None else routers[seat.group]
        layer.update_layer(adapter_name, config, router=router, d_router=seat.d_router)


def poly_layers(model: nn.Module) -> dict[str, PolyLayer]:
    """All `PolyLayer`s by their name in the base model, in module order."""
    return {n: module for n, module in model.named_modules() if isinstance(module, PolyLayer)}


def layers_of(model: nn.Module, adapter_name: str) -> dict[str, PolyLayer]:
    """The layers of the wrapped `model` that an adapter is in, by name."""
    layers = poly_layers(model).items()
    return {name: layer for name, layer in layers if adapter_name in layer.poly_lora_A}


def _is_match(name: str, spec: list[str] | str | None) -> bool:
    if not spec:
        return False
    if isinstance(spec, str):
        return re.fullmatch(spec, name) is not None
    return has_suffix(name, spec)


def _is_inner_linear(model: nn.Module, name: str, module: nn.Module) -> bool:
    """A linear layer that is neither the output head nor one of many experts."""
    try:
        features_of(module)
    except TypeError:
        return False
    heads = [getattr(model, "get_output_embeddings", lambda: None)()]
    heads += [getattr(model, head, None) for head in ("score", "classifier")]
    is_head = any(head is not None and unwrapped(head) is module for head in heads)
    return not is_head and not _is_expert(name)


def _is_expert(name: str) -> bool:
    return "experts" in name.split(".")


def _check_target(name: str, module: nn.Module, *, n_splits: int) -> None:
    try:
        features_of(module)
    except TypeError as error:
        raise TypeError(f"target module {name!r}: {error}") from error
    if _is_expert(name):
        raise ValueError(
            f"target module {name!r} is an expert of a mixture of experts: it sees tokens gathered "
            "from many examples, so task_ids cannot be matched to them. Use exclude_modules."
        )
    check_splits(name, module, n_splits=n_splits)


def _linear_suffixes(model: nn.Module) -> list[str]:
    modules = base_modules(model)
    linear = [name for name in modules if _is_inner_linear(model, name, modules[name])]
    return sorted({name.rpartition(".")[2] for name in linear})


def _no_match(model: nn.Module, spec: list[str] | str, config: PolyConfig) -> str:
    suffixes = _linear_suffixes(model)
    modules = base_modules(model)
    words = [spec] if isinstance(spec, str) else spec
    near = [w for s in words for w in get_close_matches(s, [*suffixes, *modules], n=3, cutoff=0.5)]
    hint = f" Near misses: {[*dict.fromkeys(near)]}." if near else ""
    for name, module in modules.items():
        fused = [part for part, _ in module.named_parameters(recurse=False) if part in words]
        if fused:
            hint = f" {fused} of {name!r} is a parameter, not a module: it cannot be adapted."
            break
    kept = {"exclude_modules": config.exclude_modules, "modules_to_save": config.modules_to_save}
    less = " and ".join(f"{option}={value!r}" for option, value in kept.items() if value)
    less = f" ({less} left out)" if less else ""
    return (
        f"target_modules={spec!r} matches no module of {type(model).__name__}{less}.{hint} Linear "
        f"layers here: {suffixes}; a string is a regular expression for the whole name."
    )
