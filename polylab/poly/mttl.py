"""Make a `PolyModel` of a checkpoint that microsoft/mttl has trained (Poly and MHR)."""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polylab.poly.config import PolyConfig
from polylab.poly.files import capped
from polylab.poly.importing import shortest_targets
from polylab.poly.linears import features_of
from polylab.poly.model import PolyModel
from polylab.poly.tensors import is_storable

__all__ = ["from_mttl"]

_PREFIX = "model."  # of mttl's LightningModule around the transformer
# Options of mttl that compute something else than `sigmoid(Z) / sum sigmoid(Z)`.
_OTHER_ROUTING = (
    *("module_logits_l2_norm", "module_logits_straight_through"),
    *("poly_average_correction", "poly_use_shared_skill", "lora_merge_after"),
)


@dataclass
class _Bank:
    """One layer, in our layout."""

    a: Float[Tensor, "splits skills block_in rank"]
    b: Float[Tensor, "splits skills rank block_out"]
    logits: Float[Tensor, "tasks splits_skills"] | None = None


def from_mttl(
    path: str | Path,
    model: nn.Module,
    *,
    layout: str | None = None,
    alpha: float | None = None,
    task_names: list[str] | None = None,
    adapter_name: str = "default",
) -> PolyModel:
    """Wrap `model` with the skills and the routing of an mttl checkpoint; equal in evaluation.

    Read from mttl's sources (github.com/microsoft/mttl, as they are archived):
    `mttl/models/poly.py` at 04044db and `mttl/models/modifiers/poly.py` at 185c738 for the names
    `X.lora_a`, `X.lora_b`, `X.selector.module_logits` and the scale `lora_alpha / lora_rank`;
    `mttl/models/modifiers/lora.py` at 004bade for the later layout and the default alpha of 16;
    `containers/lora_containers.py` at 07976d1 for `X.experts.lora_a`, and
    `containers/selectors/poly_selector.py` at 03a1bf6 for its additional row of logits. Not
    verified against a published checkpoint: none was at hand; the tests build files of this form.

    `release` (the MHR paper's, tag mhr-camera-ready) keeps A as `[splits, skills, d_in / splits,
    r]`, as we do; `main` as `[skills, splits, d_in / splits, r]` and B as `[skills, r, splits,
    d_out / splits]`. A single router for all layers becomes `granularity="model"`. With
    `lora_warmup` mttl multiplies by a factor that grows to 1; here it counts as 1. `main` adds 1e-8
    to the sum of the gates, not 1e-12: different only where all gates of a row are almost 0.

    Args:
        path: A checkpoint of Lightning or a state dict. It is opened with `weights_only=True`:
            nothing in it is executed.
        model: The base model; unchanged if the checkpoint does not fit.
        layout: `release` or `main`; by default what the shapes say.
        alpha: By default the checkpoint's `lora_alpha`; where it has none, 1 for `release`.
        task_names: One for each row of the logits. One less, for `main`, leaves out the last row,
            the average of all tasks.
        adapter_name: Name of the new adapter.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file needs more than tensors to open, or does not fit `model`.
    """
    state, options = _read(Path(path))
    _check_options(options)
    raw = _by_layer(state, model)
    layout = _layout_of(raw, model, layout=layout)
    banks = {name: _bank(parts, layout) for name, parts in raw.items()}
    is_shared = _share_logits(banks)
    if alpha is None:
        alpha = options.get("lora_alpha", 1.0 if layout == "release" else None)
    if alpha is None:
        raise ValueError(
            f"{path} does not say its lora_alpha: give alpha= (mttl's default there is 16)."
        )
    config = _config(banks, alpha=alpha, names=task_names, layout=layout, options=options)
    config.target_modules = shortest_targets(model, [*banks])
    config.granularity = "model" if is_shared else "linear"
    wrapped = PolyModel(model, config, adapter_name)
    for name, layer in wrapped.poly_layers().items():
        bank = banks[name]
        assert bank.logits is not None
        with torch.no_grad():
            layer.poly_lora_A[adapter_name].copy_(bank.a)
            layer.poly_lora_B[adapter_name].copy_(bank.b)
            logits = layer.router(adapter_name).get_parameter("module_logits")
            logits.copy_(bank.logits[: config.n_tasks])
    return wrapped


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, and mttl's options where they are beside them."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give a checkpoint of mttl (.ckpt, .bin or .pt).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or needs more than tensors to open: "
            f"{reprlib.repr(str(error))} Where you trust it, save its state_dict alone: "
            "torch.save({'state_dict': ...}, FILE)."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a state dict is needed.")
    state = content.get("state_dict", content.get("module", content))
    options = content.get("hyper_parameters", {})
    tensors = {k: t for k, t in state.items() if isinstance(k, str) and isinstance(t, Tensor)}
    return tensors, {**options} if isinstance(options, Mapping) else {}


def _check_options(options: Mapping[str, Any]) -> None:
    problems = [f"{key}={options[key]!r}" for key in _OTHER_ROUTING if options.get(key)]
    selector = options.get("router_selector")
    if selector not in (None, "poly", "poly_router"):
        problems.append(f"router_selector={selector!r}")
    if problems:
        raise ValueError(
            f"the checkpoint was trained with {', '.join(problems)}: these weights would compute "
            "something else here. Only the plain poly routing can be taken over."
        )


def _by_layer(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors `a`, `b`, `logits` of each layer of `model`; weights of the base must be its."""
    modules, base = dict(model.named_modules()), model.state_dict()
    endings = {
        ".selector.module_logits": "logits",
        ".experts.lora_a": "a",
        ".experts.lora_b": "b",
        ".lora_a": "a",
        ".lora_b": "b",
    }
    layers: dict[str, dict[str, Tensor]] = {}
    problems = []
    for key, tensor in state.items():
        ending = next((end for end in endings if key.endswith(end)), None)
        if ending is None:
            if not _is_bases(key, tensor, base):
                problems.append(f"unexpected, or not the base's: {key} {[*tensor.shape]}")
            continue
        name = key.removesuffix(ending)
        name = name if name in modules else name.removeprefix(_PREFIX)
        if name not in modules:
            problems.append(f"no such layer: {key}")
        elif not is_storable(tensor):
            problems.append(f"not finite, or of no floating type: {key} ({tensor.dtype})")
        else:
            layers.setdefault(name, {})[endings[ending]] = tensor
    for name, parts in layers.items():
        problems += [f"missing: {part} of {name}" for part in ("a", "b") if part not in parts]
    if problems or not layers:
        what = f"the checkpoint does not fit {type(model).__name__}:"
        raise ValueError("\n".join([what, *(capped(problems) or ["it has no lora_a at all"])]))
    return layers


def _is_bases(key: str, tensor: Tensor, base: Mapping[str, Tensor]) -> bool:
    """Whether this is a weight of the base model, with its value; mttl wraps some in a `layer`."""
    name = key.removeprefix(_PREFIX) if key not in base else key
    names = (name, name.replace(".linear_layer.", "."), ".".join(name.rsplit(".layer.", 1)))
    found = next((base[other] for other in names if other in base), None)
    return found is not None and found.shape == tensor.shape and bool((found.cpu() == tensor).all())


def _layout_of(
    raw: Mapping[str, Mapping[str, Tensor]], model: nn.Module, *, layout: str | None
) -> str:
    """The layout in which every layer's shapes fit its module."""
    valid = ["release", "main"]
    if layout not in (None, *valid):
        raise ValueError(f"layout={layout!r} is not valid: give one of {valid} or nothing.")
    fits = [each for each in valid if not _misfits(raw, model, each)]
    if layout is not None:
        fits = [each for each in fits if each == layout]
    if not fits:
        lines = capped(_misfits(raw, model, layout or "release"))
        raise ValueError("\n".join(["the checkpoint has shapes of another model:", *lines]))
    if len(fits) == 2 and any(max(parts["a"].shape[:2]) > 1 for parts in raw.values()):
        raise ValueError(
            "the checkpoint's shapes fit both layouts, release and main (as many skills as splits "
            "and ranks): give layout=."
        )
    return fits[0]


def _misfits(raw: Mapping[str, Mapping[str, Tensor]], model: nn.Module, layout: str) -> list[str]:
    lines = []
    for name, parts in raw.items():
        a, b, (d_in, d_out) = parts["a"], parts["b"], features_of(model.get_submodule(name))
        shown = f"{name}: a {[*a.shape]}, b {[*b.shape]}, with (in, out) = {(d_in, d_out)}"
        if a.ndim != 4 or b.ndim != 4:
            lines.append(shown)
            continue
        splits, skills = a.shape[:2] if layout == "release" else (a.shape[1], a.shape[0])
        want = (splits, skills, a.shape[3], d_out // splits)
        want = want if layout == "release" else (skills, a.shape[3], splits, d_out // splits)
        logits = parts.get("logits")
        if (
            splits * a.shape[2] != d_in
            or splits * (d_out // splits) != d_out
            or tuple(b.shape) != want
            or (logits is not None and tuple(logits.shape[1:]) != (splits * skills,))
        ):
            rows = "" if logits is None else f", logits {[*logits.shape]}"
            lines.append(shown + rows)
    return lines


def _bank(parts: Mapping[str, Tensor], layout: str) -> _Bank:
    a, b = parts["a"], parts["b"]
    if layout == "main":
        a, b = a.transpose(0, 1), b.permute(2, 0, 1, 3)
    return _Bank(a, b, parts.get("logits"))


def _share_logits(banks: Mapping[str, _Bank]) -> bool:
    """Whether the file keeps one router for all layers; every layer gets its logits then."""
    have = [bank.logits for bank in banks.values() if bank.logits is not None]
    if len(have) == 1:
        for bank in banks.values():
            bank.logits = have[0]
    lines = [
        f"missing: selector.module_logits of {name}"
        for name, bank in banks.items()
        if bank.logits is None
    ]
    if lines:
        what = (
            "the checkpoint shares routers among groups of layers, or has none; one for each "
            "layer, or one for all, can be read:"
        )
        raise ValueError("\n".join([what, *capped(lines)]))
    sizes = {
        (*bank.a.shape[:2], bank.a.shape[3], 0 if bank.logits is None else len(bank.logits))
        for bank in banks.values()
    }
    if len(sizes) > 1:
        raise ValueError(
            f"the layers differ in (splits, skills, rank, tasks): {sorted(sizes)}; they must agree."
        )
    return len(have) == 1 < len(banks)


def _config(
    banks: Mapping[str, _Bank],
    *,
    alpha: float,
    names: list[str] | None,
    layout: str,
    options: Mapping[str, Any],
) -> PolyConfig:
    bank = next(iter(banks.values()))
    assert bank.logits is not None
    n_tasks = len(bank.logits)
    if names is not None and layout == "main" and len(names) == n_tasks - 1:
        n_tasks -= 1
    is_noisy = options.get("module_logits_relaxed_bernoulli", layout == "release")
    return PolyConfig(
        r=bank.a.shape[3],
        n_tasks=n_tasks,
        n_skills=bank.a.shape[1],
        n_splits=bank.a.shape[0],
        alpha=float(alpha),
        target_modules=[*banks],
        init="mttl",
        noise="relaxed_bernoulli" if is_noisy else "none",
        task_names=names,
    )
