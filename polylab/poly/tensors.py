"""The tensors of an adapter, under the names that PEFT gives them in a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polylab.poly.config import PolyConfig
from polylab.poly.files import capped
from polylab.poly.granularity import Seat, router_seats
from polylab.poly.injection import find_targets, layers_of
from polylab.poly.layers import PolyLayer
from polylab.poly.linears import features_of
from polylab.poly.patterns import rank_of
from polylab.poly.routers import make_router
from polylab.poly.saved_modules import find_saved, saved_modules, tied_groups

__all__ = ["adapter_tensors", "check_tensors", "copy_tensors", "is_storable"]

_PREFIX = "base_model.model."
# What an adapter may be stored in; integers and 8-bit floats are some quantisation's own.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """One adapter's tensors under PEFT's key names, sharing memory with the model."""
    tensors = _named(layers_of(model, adapter_name), adapter_name)
    for name, module in saved_modules(model).items():
        if adapter_name in module.modules_to_save:
            copied = module.modules_to_save[adapter_name].state_dict(keep_vars=True)
            tensors |= {f"{_PREFIX}{name}.{part}": tensor for part, tensor in copied.items()}
    return tensors


def copy_tensors(tensors: Mapping[str, Tensor], model: nn.Module, *, adapter_name: str) -> None:
    """Copy checked tensors into an adapter of the wrapped `model`."""
    with torch.no_grad():
        for key, parameter in adapter_tensors(model, adapter_name).items():
            parameter.copy_(tensors[key])


def check_tensors(tensors: Mapping[str, Tensor], config: PolyConfig, *, model: nn.Module) -> None:
    """Refuse tensors that are not exactly the adapter that `config` means on `model`.

    Raises:
        ValueError: With the difference.
    """
    targets = find_targets(model, config)
    seats = router_seats(model, targets, config)
    want: dict[str, tuple[int, ...]] = {}
    for name, module in targets.items():
        want |= _shapes(name, module, config=config, seat=seats[name])
    copied, counts = find_saved(model, config), set[str]()
    for name, module in copied.items():
        for part, tensor in module.state_dict().items():
            want[f"{_PREFIX}{name}.{part}"] = tuple(tensor.shape)
            if not tensor.is_floating_point():  # a norm's number of batches
                counts.add(f"{_PREFIX}{name}.{part}")
    have = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    lines = [f"missing: {key} {[*want[key]]}" for key in want if key not in have]
    lines += [f"unexpected: {key} {[*have[key]]}" for key in have if key not in want]
    lines += [
        f"shape: {key} is {[*have[key]]} in the file, {[*want[key]]} in the model"
        for key in want
        if key in have and have[key] != want[key]
    ]
    for group in tied_groups(copied):
        one, *others = (tensors.get(f"{_PREFIX}{name}") for name in group)
        if any(t is not None and one is not None and not _equal(t, one) for t in others):
            lines.append(f"tied in the model, but not equal in the file: {group}")
    valid = ", ".join(str(dtype) for dtype in _DTYPES)
    lines += [
        f"dtype: {key} is {tensor.dtype}; valid: {valid}"
        for key, tensor in tensors.items()
        if tensor.dtype not in _DTYPES and key not in counts
    ]
    lines += [
        f"not finite: {key}"
        for key, tensor in tensors.items()
        if tensor.dtype in _DTYPES and not is_storable(tensor)
    ]
    if lines:
        raise ValueError("\n".join(["the adapter's file does not fit:", *capped(lines)]))


def is_storable(tensor: Tensor) -> bool:
    """Whether an adapter may hold this: finite numbers of 16 to 64 bits."""
    return tensor.dtype in _DTYPES and bool(torch.isfinite(tensor).all())


def _named(layers: Mapping[str, PolyLayer], adapter_name: str) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, layer in layers.items():
        key = f"{_PREFIX}{name}"
        named[f"{key}.poly_lora_A"] = layer.poly_lora_A[adapter_name]
        named[f"{key}.poly_lora_B"] = layer.poly_lora_B[adapter_name]
        router = layer.router(adapter_name)
        if id(router) in seen:  # saved with the first layer of its group
            continue
        seen.add(id(router))
        for part, tensor in router.state_dict(keep_vars=True).items():
            named[f"{key}.poly_router.{part}"] = tensor
    return named


def _shapes(
    name: str, module: nn.Module, *, config: PolyConfig, seat: Seat
) -> dict[str, tuple[int, ...]]:
    (d_in, d_out), key = features_of(module), f"{_PREFIX}{name}"
    splits, skills, rank = config.n_splits, config.bank_size, rank_of(name, config)
    router: dict[str, Tensor] = {}
    if seat.leads:
        with torch.device("meta"):
            router = make_router(config, seat.d_router or d_in).state_dict()
    return {
        f"{key}.poly_lora_A": (splits, skills, d_in // splits, rank),
        f"{key}.poly_lora_B": (splits, skills, rank, d_out // splits),
        **{f"{key}.poly_router.{part}": tuple(t.shape) for part, t in router.items()},
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) if one.shape == other.shape else True  # said already
