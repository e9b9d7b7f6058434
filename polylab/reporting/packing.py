"""Numbers of 0 to 1 as text that a page can hold: 8 or 16 bits each, in base64."""

from __future__ import annotations

import base64

import numpy as np

__all__ = ["evenly", "pack", "pack_floats"]


def pack(values: np.ndarray, *, bits: int) -> str:
    """`round(values * (2**bits - 1))`, little endian, in base64; what is no number becomes 0.

    Raises:
        ValueError: If a value lies outside 0 to 1.
    """
    top = 2**bits - 1
    flat = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0)
    low, high = float(flat.min(initial=0)), float(flat.max(initial=0))
    if low < -1e-3 or high > 1 + 1e-3:  # the files have 16 bits, whose rounding may reach over 1
        raise ValueError(f"values lie in {low:.3g} to {high:.3g}; they must lie in 0 to 1")
    whole = np.rint(np.clip(flat, 0, 1) * top).astype("<u1" if bits == 8 else "<u2")
    return base64.b64encode(whole.tobytes()).decode()


def pack_floats(values: np.ndarray) -> str:
    """Little endian float32 in base64."""
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `range(count)`, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({*np.linspace(0, count - 1, max(1, most)).round().astype(int).tolist()})
