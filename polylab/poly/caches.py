"""What a router of the prompt found stays with the cache that holds the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Cache

from polylab.poly.routing import Routing

__all__ = ["go_on", "keep_factors"]


def keep_factors(output: Any, routing: Routing, *, adapter_name: str) -> None:
    """Keep the factors of a prompt with the cache that holds it, for the calls that go on."""
    cache = getattr(output, "past_key_values", None)
    if isinstance(cache, Cache):
        made_by = (adapter_name, routing.intervention)
        cache.poly_factors = (made_by, routing.factors)  # type: ignore[attr-defined]


def go_on(routing: Routing, inputs: Mapping[str, Any], *, adapter_name: str) -> None:
    """Take the factors of the prompt from the cache that holds it, if there is one.

    Raises:
        ValueError: If the prompt was not routed by such a call, or by another adapter or
            `routing(...)` than now.
    """
    routing.factors = {}
    cache = inputs.get("past_key_values")
    if cache is None or cache.get_seq_length() == 0:
        return
    kept = getattr(cache, "poly_factors", None)
    held = f"past_key_values holds {cache.get_seq_length()} tokens of a prompt that"
    if kept is None:
        raise ValueError(
            f"{held} this adapter, routed by the prompt, has not seen. Use the cache of a "
            "PolyModel forward without gradients, or of generate."
        )
    (name, intervention), factors = kept
    if name != adapter_name or intervention is not routing.intervention:
        raise ValueError(
            f"{held} adapter {name!r} has routed; now it is {adapter_name!r}, or another "
            "routing(...). Start with the prompt again."
        )
    routing.factors, routing.weigh_shared = factors, None
