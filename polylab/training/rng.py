"""The random state of a training run as plain containers, apart from what runs between steps."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class _Snapshot(NamedTuple):
    torch: Tensor
    python: tuple[Any, ...]
    numpy: dict[str, Any]
    device: Tensor | None


class RngStream:
    """Random state that only advances inside training batches.

    `suspend` after a batch and `resume` before the next one make the draws of a training step
    independent of validation, loader start-up and callbacks in between. A resumed run then
    continues the stream of the uninterrupted one wherever the checkpoint was written.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._suspended: _Snapshot | None = None

    def on(self, device: torch.device) -> None:
        """Say which accelerator's generator belongs to the stream."""
        self._device = device

    def suspend(self) -> None:
        self._suspended = self._snapshot()

    def resume(self) -> None:
        if self._suspended is not None:
            self._restore(self._suspended)
            self._suspended = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that `weights_only=True` loads it."""
        state = self._suspended or self._snapshot()
        version, words, gauss = state.python
        return {
            "torch": state.torch,
            "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
            "numpy": _numpy_to_plain(state.numpy),
            "device": state.device,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take effect at the next `resume`."""
        python = state["python"]
        self._suspended = _Snapshot(
            torch=state["torch"].cpu(),
            python=(python["version"], tuple(python["words"].tolist()), python["gauss"]),
            numpy=_numpy_from_plain(state["numpy"]),
            device=None if state["device"] is None else state["device"].cpu(),
        )

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(
            torch=torch.get_rng_state(),
            python=random.getstate(),
            numpy=np.random.get_state(legacy=False),  # type: ignore[arg-type]
            device=self._device_module().get_rng_state() if self._on_accelerator() else None,
        )

    def _restore(self, state: _Snapshot) -> None:
        torch.set_rng_state(state.torch)
        random.setstate(state.python)
        np.random.set_state(state.numpy)
        if state.device is not None and self._on_accelerator():
            self._device_module().set_rng_state(state.device)

    def _on_accelerator(self) -> bool:
        return self._device is not None and self._device.type != "cpu"

    def _device_module(self) -> Any:
        return torch.get_device_module(self._device)


def _numpy_to_plain(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": str(state["bit_generator"]),
        "key": torch.from_numpy(state["state"]["key"].astype(np.int64)),
        "pos": int(state["state"]["pos"]),
        "has_gauss": int(state["has_gauss"]),
        "gauss": float(state["gauss"]),
    }


def _numpy_from_plain(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "bit_generator": state["kind"],
        "state": {"key": state["key"].cpu().numpy().astype(np.uint32), "pos": state["pos"]},
        "has_gauss": state["has_gauss"],
        "gauss": state["gauss"],
    }
