"""What a router of the prompt found stays with the cache that holds the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Cache

from polylab.poly.combining import Factors
from polylab.poly.routing import Routing

__all__ = ["keep_factors", "prefilled_factors"]


def keep_factors(output: Any, routing: Routing) -> None:
    """Keep the factors of a prompt with the cache that holds it, for the calls that go on."""
    cache = getattr(output, "past_key_values", None)
    if isinstance(cache, Cache):
        cache.poly_factors = routing.factors  # type: ignore[attr-defined]


def prefilled_factors(inputs: Mapping[str, Any]) -> dict[str, Factors]:
    """Factors kept with a cache that holds a prompt: its routing goes on.

    Raises:
        ValueError: If the prompt was not routed by such a call.
    """
    cache = inputs.get("past_key_values")
    if cache is None or cache.get_seq_length() == 0:
        return {}
    factors = getattr(cache, "poly_factors", None)
    if factors is None:
        raise ValueError(
            f"past_key_values holds {cache.get_seq_length()} tokens of a prompt that this "
            "adapter, routed by the prompt, has not seen. Use the cache of a PolyModel forward "
            "without gradients, or of generate."
        )
    return factors
