"""Uniform noise as a pure function of its coordinates.

A generator's draws depend on what was drawn before: on the number of ranks, on the batch slicing,
on a resume. Here every number is a hash of (seed, step, row of the global batch, layer, head,
skill), so any slice of the global batch, anywhere, sees the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["KeyedNoise", "NoiseKey", "layer_keys"]

_MASK = (1 << 64) - 1
# The finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi.org/10.1145/2660193.2660195).
_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_BITS = 23  # (k + 1/2) / 2^23 is exact in fp32, and never 0 or 1


@dataclass
class NoiseKey:
    """What the noise of one step depends on, and the draws made so far.

    Args:
        layers: A key for each layer, from `layer_keys`.
        rows: Rows of the global batch that this call's batch holds.
    """

    layers: Int64[Tensor, " layers"]
    rows: Int64[Tensor, " batch"]
    _draws: dict[tuple, Tensor] = field(default_factory=dict, repr=False)

    def uniform(
        self, layer: int, n_splits: int, *, n_skills: int, device: torch.device
    ) -> Float[Tensor, "batch splits skills"]:
        """The draws of one layer, in (0, 1), float32."""
        key = (n_splits, n_skills, device)
        if key not in self._draws:  # all layers at once: one call of each op, not one per layer
            layers, rows = self.layers.to(device), self.rows.to(device)
            state = _mix(layers[:, None] ^ (rows * _signed(_GOLDEN)))  # layers b
            u = _to_uniform(state, n_splits * n_skills)
            self._draws[key] = u.unflatten(-1, (n_splits, n_skills))
        return self._draws[key][layer]

    def uniform_per_task(
        self, layer: int, n_splits: int, *, n_skills: int, task_ids: Int64[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq splits skills"]:
        """The draws of one layer for packed rows: tokens of one row and task share them."""
        key, rows = self.layers.to(task_ids.device)[layer], self.rows.to(task_ids.device)
        state = _mix(key ^ (rows * _signed(_GOLDEN)))[:, None]  # b 1
        state = _mix(state ^ ((task_ids + 1) * _signed(_M2)))  # b l
        return _to_uniform(state, n_splits * n_skills).unflatten(-1, (n_splits, n_skills))


class KeyedNoise:
    """A model's side of keyed noise: the key that is set before each step."""

    def __init__(self) -> None:
        self._layers: Int64[Tensor, " layers"] | None = None
        self._rows: Int64[Tensor, " batch"] | int = 0

    def set(
        self, seed: int, step: int, *, rows: Int64[Tensor, " batch"] | int, n_layers: int
    ) -> None:
        """Key of the next calls; `rows` are all positions in the global batch, or the first."""
        self._layers = layer_keys(seed, step, n_layers=n_layers)
        self._rows = rows

    def key(self, batch: int) -> NoiseKey:
        """The key of one call.

        Raises:
            ValueError: If none was set, or for another number of rows.
        """
        if self._layers is None:
            raise ValueError(
                "noise_source='keyed' needs set_noise_key(seed, step, first_row) before a training "
                "forward."
            )
        rows = self._rows
        if isinstance(rows, int):
            rows = torch.arange(rows, rows + batch)
        if len(rows) != batch:
            raise ValueError(f"set_noise_key got {len(rows)} rows, but the batch has {batch}.")
        return NoiseKey(self._layers, rows)


def layer_keys(seed: int, step: int, *, n_layers: int) -> Int64[Tensor, " layers"]:
    """Well-mixed keys, one for each layer. Plain integers in: made once a step, on the host."""
    state = _mix_int(_mix_int(seed & _MASK) ^ (step * _GOLDEN & _MASK))
    keys = [_signed(_mix_int(state ^ ((layer + 1) * _M1 & _MASK))) for layer in range(n_layers)]
    return torch.tensor(keys, dtype=torch.int64)


def _to_uniform(state: Int64[Tensor, "*axes"], cells: int) -> Float[Tensor, "*axes cells"]:
    cell = torch.arange(1, cells + 1, device=state.device) * _signed(_GOLDEN)
    bits = _shift(_mix(state[..., None] ^ cell), 64 - _BITS)
    return (bits.float() + 0.5) * 2.0**-_BITS


def _mix(x: Int64[Tensor, "*axes"]) -> Int64[Tensor, "*axes"]:
    x = (x ^ _shift(x, 30)) * _signed(_M1)
    x = (x ^ _shift(x, 27)) * _signed(_M2)
    return x ^ _shift(x, 31)


def _shift(x: Int64[Tensor, "*axes"], bits: int) -> Int64[Tensor, "*axes"]:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch's >> keeps the sign; this one does not


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _M1) & _MASK
    x = ((x ^ (x >> 27)) * _M2) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x
