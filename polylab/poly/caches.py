"""What a router of the prompt found stays with the cache that holds the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Cache

from polylab.poly.routing import Routing

__all__ = ["go_on", "keep_factors"]


def keep_factors(output: Any, routing: Routing) -> None:
    """Keep the factors of a prompt with the cache that holds it, for the calls that go on."""
    cache = getattr(output, "past_key_values", None)
    if isinstance(cache, Cache):
        cache.poly_factors = routing.factors  # type: ignore[attr-defined]


def go_on(routing: Routing, inputs: Mapping[str, Any]) -> None:
    """Take the factors of the prompt from the cache that holds it, if there is one.

    Raises:
        ValueError: If the prompt was not routed by such a call.
    """
    routing.factors = {}
    cache = inputs.get("past_key_values")
    if cache is None or cache.get_seq_length() == 0:
        return
    factors = getattr(cache, "poly_factors", None)
    if factors is None:
        raise ValueError(
            f"past_key_values holds {cache.get_seq_length()} tokens of a prompt that this "
            "adapter, routed by the prompt, has not seen. Use the cache of a PolyModel forward "
            "without gradients, or of generate."
        )
    routing.factors, routing.weigh_shared = factors, None
