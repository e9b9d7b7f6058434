"""Uniform noise as a pure function of its coordinates.

A generator's draws depend on what was drawn before: on the number of ranks, on the batch slicing,
on a resume. Here every number is a hash of (seed, step, row of the global batch, layer, head,
skill), so any slice of the global batch, anywhere, sees the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["KeyedNoise", "NoiseKey", "layer_keys"]

Layers = int | Sequence[int]
"""A layer's position, or those of several."""

_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_BITS = 23  # (k + 1/2) / 2^23 is exact in fp32, and never 0 or 1
# Odd multipliers of the 32-bit mixer, as signed words: a product with an unsigned 32-bit word never
# leaves int64. (Overflow would wrap in eager mode, but is undefined in the C++ that compiling
# makes.)
_M1, _M2 = 0x7FEB352D, 0x846CA68B - (1 << 32)
_STEP = 0x9E3779B9 - (1 << 32)  # spreads consecutive integers


@dataclass
class NoiseKey:
    """What the noise of one step depends on, and the draws made so far.

    Args:
        layers: Two words for each layer, from `layer_keys`.
        rows: Rows of the global batch that this call's batch holds.
    """

    layers: Int64[Tensor, "layers 2"]
    rows: Int64[Tensor, " batch"]
    _draws: dict[tuple, Tensor] = field(default_factory=dict, repr=False)

    def uniform(
        self, layers: Layers, n_splits: int, *, n_gates: int, device: torch.device
    ) -> Float[Tensor, "*layers batch splits gates"]:
        """The draws of one layer, or of several, in (0, 1), float32."""
        key = (n_splits, n_gates, device)
        if key not in self._draws:  # all layers at once: one call of each op, not one per layer
            words = self._row_words(self.layers.to(device, non_blocking=True)[:, None])  # layers b
            u = _to_uniform(*words, cells=n_splits * n_gates)
            self._draws[key] = u.unflatten(-1, (n_splits, n_gates))
        return _choose(self._draws[key], layers)

    def uniform_per_task(
        self, layers: Layers, n_splits: int, *, n_gates: int, task_ids: Int64[Tensor, "batch seq"]
    ) -> Float[Tensor, "*layers batch seq splits gates"]:
        """The draws for packed rows: tokens of one row and task share them."""
        words = _choose(self.layers.to(task_ids.device, non_blocking=True), layers)
        first, second = self._row_words(words[..., None, :])  # *layers b
        first = _mix(first[..., None] ^ _mix(task_ids + 1))  # *layers b l
        u = _to_uniform(first, second[..., None].expand_as(first), cells=n_splits * n_gates)
        return u.unflatten(-1, (n_splits, n_gates))

    def uniform_of_tasks(
        self, layers: Layers, n_splits: int, *, n_gates: int, task_ids: Int64[Tensor, "*batch"]
    ) -> Float[Tensor, "*layers_batch splits gates"]:
        """The draws that all examples of a task share, in any row of the batch."""
        words = _choose(self.layers.to(task_ids.device, non_blocking=True), layers)
        words = words.view(*words.shape[:-1], *[1] * task_ids.ndim, 2)
        first, second = _mix(words[..., 0] ^ _mix(task_ids + 1)), _mix(words[..., 1] ^ task_ids)
        u = _to_uniform(first, second, cells=n_splits * n_gates)
        return u.unflatten(-1, (n_splits, n_gates))

    def _row_words(self, layers: Int64[Tensor, "*axes 2"]) -> tuple[Tensor, Tensor]:
        """Two independent words for each layer and row."""
        rows = self.rows.to(layers.device, non_blocking=True) & _MASK32
        spread = (rows * _STEP) & _MASK32
        return _mix(layers[..., 0] ^ spread), _mix(layers[..., 1] ^ _mix(rows))


class KeyedNoise:
    """A model's side of keyed noise: the key that is set before each step."""

    def __init__(self) -> None:
        self._layers: Int64[Tensor, "layers 2"] | None = None
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


def layer_keys(seed: int, step: int, *, n_layers: int) -> Int64[Tensor, "layers 2"]:
    """Two well-mixed 32-bit words for each layer: made once a step, on the host."""
    state = _mix64(_mix64(seed & _MASK64) ^ (step & _MASK64))
    keys = [_mix64(state ^ (layer + 1)) for layer in range(n_layers)]
    return torch.tensor([(key >> 32, key & _MASK32) for key in keys], dtype=torch.int64)


def _choose(rows: Tensor, layers: Layers) -> Tensor:
    """Rows by number; no list as an index, whose copy an accelerator would wait for."""
    if isinstance(layers, int):
        return rows[layers]
    if [*layers] == [*range(len(rows))]:
        return rows
    return torch.stack([rows[layer] for layer in layers])


def _to_uniform(
    first: Int64[Tensor, "*axes"], second: Int64[Tensor, "*axes"], *, cells: int
) -> Float[Tensor, "*axes cells"]:
    cell = (torch.arange(1, cells + 1, device=first.device) * _STEP) & _MASK32
    word = _mix(_mix(first[..., None] ^ cell) ^ second[..., None])
    return ((word >> (32 - _BITS)).float() + 0.5) * 2.0**-_BITS


def _mix(x: Int64[Tensor, "*axes"]) -> Int64[Tensor, "*axes"]:
    """A bijection of 32-bit words in which every bit depends on every other.

    C. Wellons, "Prospecting for hash functions" (nullprogram.com/blog/2018/07/31), lowbias32.
    """
    x = ((x ^ (x >> 16)) * _M1) & _MASK32
    x = ((x ^ (x >> 15)) * _M2) & _MASK32
    return x ^ (x >> 16)


def _mix64(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi.org/10.1145/2660193.2660195)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
