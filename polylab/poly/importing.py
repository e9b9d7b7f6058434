"""Make a `PolyModel` whose skills are LoRAs that PEFT has trained."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly.config import PolyConfig
from polylab.poly.files import capped, read_json, read_tensors
from polylab.poly.injection import find_targets
from polylab.poly.io import CONFIG_FILE, WEIGHTS_FILE
from polylab.poly.linears import features_of
from polylab.poly.model import PolyModel
from polylab.poly.tensors import is_storable

__all__ = ["from_loras", "shortest_targets"]

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
# What makes a LoRA more than `W + scale B A`, by its field of PEFT's LoraConfig.
_MORE_THAN_LORA = (
    *(
        "use_dora",
        "use_qalora",
        "use_bdlora",
        "lora_bias",
        "layer_replication",
        "target_parameters",
    ),
    *("modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "arrow_config"),
)
# Every other start takes something out of the base's weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class _Lora:
    name: str
    a: dict[str, Float[Tensor, "r d_in"]]
    b: dict[str, Float[Tensor, "d_out r"]]
    scales: dict[str, float]

    @property
    def ranks(self) -> dict[str, int]:
        return {layer: a.shape[0] for layer, a in self.a.items()}


def from_loras(
    model: nn.Module,
    directories: Sequence[str | Path],
    *,
    adapter_name: str = "default",
    **options: Any,
) -> PolyModel:
    """Wrap `model` with one skill for each saved PEFT LoRA, scale included (rslora too).

    A task that is routed to one skill alone computes exactly that LoRA: `poly_type="private"` does
    so from the start, one task for each LoRA. The default is a learned routing that starts almost
    uniform. Skills are combined as `products`, `sum_s w_s A_s B_s`: with `factors`, a mixture
    of LoRAs that were trained apart also holds the products of one's A with another's B.

    Args:
        model: The base model that all of them were trained on.
        directories: Their folders, whose names become the names of the tasks.
        adapter_name: Name of the new adapter.
        **options: Fields of `PolyConfig` beside the targets, the rank and the number of skills.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is no plain LoRA, they differ in layers or rank, or do not fit `model`,
            which is unchanged then.
    """
    loras = [_read_lora(Path(directory)) for directory in directories]
    _check_alike(loras)
    _check_shapes(loras[0], model)
    rank = next(iter(loras[0].ranks.values()))
    names = [lora.name for lora in loras]
    defaults: dict[str, Any] = {"n_tasks": len(loras), "combine": "products"}
    if options.get("n_tasks", len(loras)) == len(loras):
        defaults["task_names"] = names
    targets = shortest_targets(model, [*loras[0].a])
    fixed = {"r": rank, "n_skills": len(loras), "target_modules": targets, "rank_pattern": {}}
    _check_options(options, fixed)
    config = PolyConfig(**{**defaults, **options, **fixed})
    if config.bank_size != len(loras):
        raise ValueError(
            f"poly_type={config.poly_type!r} with n_tasks={config.n_tasks} has "
            f"{config.bank_size} skills, but there are {len(loras)} LoRAs: {capped(names)}."
        )
    wrapped = PolyModel(model, config, adapter_name)
    for key, layer in wrapped.poly_layers().items():
        back = 1 / layer.scaling[adapter_name]
        a = torch.stack([lora.a[key].T for lora in loras])  # s d r
        b = torch.stack([lora.b[key].T.double() * (lora.scales[key] * back) for lora in loras])
        with torch.no_grad():
            layer.poly_lora_A[adapter_name].copy_(_in_blocks(a, config.n_splits, dim=1))
            layer.poly_lora_B[adapter_name].copy_(_in_blocks(b, config.n_splits, dim=2))
    return wrapped


def shortest_targets(model: nn.Module, layers: list[str]) -> list[str]:
    """The layers' last names, if these mean no other layer, else their full names."""
    suffixes = sorted({name.rpartition(".")[2] for name in layers})
    found = find_targets(model, PolyConfig(target_modules=suffixes))
    return suffixes if {*found} == {*layers} else sorted(layers)


def _in_blocks(bank: Tensor, n_splits: int, *, dim: int) -> Float[Tensor, "splits skills ..."]:
    """Cut every skill into the heads' blocks of the input (A) or of the output (B)."""
    return torch.stack(bank.chunk(n_splits, dim=dim))


def _read_lora(directory: Path) -> _Lora:
    values = read_json(directory, CONFIG_FILE)
    problems = [*_more_than_lora(values)]
    if problems:
        raise ValueError(
            "\n".join([f"{directory / CONFIG_FILE} is not a plain LoRA:", *capped(problems)])
        )
    tensors, _ = read_tensors(directory, WEIGHTS_FILE)
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            problems.append(f"unexpected: {key} {[*tensor.shape]}")
        elif not is_storable(tensor):
            problems.append(f"not finite, or of no floating type: {key} ({tensor.dtype})")
        else:
            sides[match["side"]][match["layer"]] = tensor
    a, b = sides["A"], sides["B"]
    problems += [f"missing: the other side of {layer}" for layer in a.keys() ^ b.keys()]
    problems += [
        f"shape: {layer} has A {[*a[layer].shape]} and B {[*b[layer].shape]}"
        for layer in a.keys() & b.keys()
        if a[layer].ndim != 2 or b[layer].ndim != 2 or a[layer].shape[0] != b[layer].shape[1]
    ]
    if problems or not a:
        lines = capped(sorted(problems)) or ["no tensors at all"]
        raise ValueError("\n".join([f"{directory / WEIGHTS_FILE} is not a plain LoRA:", *lines]))
    scales = {layer: _scale(values, layer, rank=tensor.shape[0]) for layer, tensor in a.items()}
    return _Lora(directory.resolve().name, a, b, scales)


def _more_than_lora(values: Mapping[str, Any]) -> list[str]:
    problems = []
    if values.get("peft_type") != "LORA":
        problems.append(f"peft_type={values.get('peft_type')!r}; LORA is needed.")
    problems += [f"{key}={reprlib.repr(values[key])}" for key in _MORE_THAN_LORA if values.get(key)]
    if values.get("bias", "none") != "none":
        problems.append(f"bias={values['bias']!r}; none is needed.")
    start = values.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        problems.append(
            f"init_lora_weights={start!r} changes the base's weights: convert it with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    return [*problems, *_alpha_problems(values)]


def _alpha_problems(values: Mapping[str, Any]) -> Iterable[str]:
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        yield f"alpha_pattern={patterns!r}; an object of numbers is needed."
        return
    for alpha in (values.get("lora_alpha", 8), *patterns.values()):
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha < math.inf:
            yield f"lora_alpha={alpha!r}; a number is needed."
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"alpha_pattern has {pattern!r}, which is no regular expression: {error}."


def _scale(values: Mapping[str, Any], layer: str, *, rank: int) -> float:
    """PEFT's `lora_alpha / r`, or `lora_alpha / sqrt(r)`; its patterns end a layer's name."""
    alpha = values.get("lora_alpha", 8)
    for pattern, other in (values.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = other
            break
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)


def _check_alike(loras: list[_Lora]) -> None:
    if not loras:
        raise ValueError("directories is empty: give the folders of the LoRAs.")
    names = [lora.name for lora in loras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"directories has folders of the same name {twice}: tasks need others.")
    first = loras[0]
    lines = []
    for lora in loras[1:]:
        only = sorted(lora.a.keys() ^ first.a.keys())
        lines += [f"layer {key}: in one of {first.name!r}, {lora.name!r} only" for key in only]
    for lora in loras:
        rank = next(iter(first.ranks.values()))
        lines += [
            f"layer {key}: rank {found} in {lora.name!r}, {rank} in the first layer of "
            f"{first.name!r}"
            for key, found in lora.ranks.items()
            if found != rank
        ]
        lines += [
            f"layer {key}: {[*lora.a[key].shape]} in {lora.name!r}, {[*a.shape]} in {first.name!r}"
            for key, a in first.a.items()
            if key in lora.a and not lines and _sizes(lora, key) != _sizes(first, key)
        ]
    if lines:
        raise ValueError("\n".join(["the LoRAs are not of the same form:", *capped(lines)]))


def _sizes(lora: _Lora, key: str) -> tuple[int, int]:
    return lora.a[key].shape[1], lora.b[key].shape[0]


def _check_shapes(lora: _Lora, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    lines = []
    for key in lora.a:
        if key not in modules:
            near = get_close_matches(key, modules, n=1)
            lines.append(f"there is no {key!r}" + (f"; near: {near[0]!r}" if near else ""))
        elif features_of(modules[key]) != _sizes(lora, key):
            lines.append(
                f"{key} has (in, out) = {features_of(modules[key])}, the LoRA {_sizes(lora, key)}"
            )
    if lines:
        what = f"the LoRAs do not fit {type(model).__name__}:"
        raise ValueError("\n".join([what, *capped(lines)]))


def _check_options(options: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(PolyConfig)}
    unknown = sorted({*options} - known)
    if unknown:
        raise ValueError(f"unknown adapter options {unknown}. Valid ones: {sorted(known)}.")
    given = {key: options[key] for key in fixed if key in options and options[key] != fixed[key]}
    if given:
        raise ValueError(f"{given} contradicts the LoRAs, which have {reprlib.repr(dict(fixed))}.")
