"""Which layers of a block read the same input, by the names that transformers gives them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["read_together"]

_SIBLINGS = (
    ("q", "k", "v"),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
)
_CROSS = ("EncDecAttention", "encoder_attn", "cross_attn", "crossattention")
"""Attention over another sequence, which its query does not read."""


def read_together(names: Iterable[str]) -> list[list[str]]:
    """The layers in groups of those that should read one input; most groups hold one layer.

    A layer that is then called with another input than its group is computed by itself: a wrong
    guess here costs time, never a result.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_group_of(name), []).append(name)
    return [*groups.values()]


def _group_of(name: str) -> str:
    parent, _, child = name.rpartition(".")
    is_cross = any(part in _CROSS for part in parent.split("."))
    for siblings in _SIBLINGS:
        if child in siblings[1 if is_cross else 0 :]:
            return f"{parent}.{'+'.join(siblings)}"
    return name
