"""Which of the model's layers an adapter is in, and its rank and scale in each: by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from polylab.poly.config import PolyConfig

__all__ = ["check_patterns", "is_chosen_layer", "layer_index", "rank_of", "scaling_of"]


def rank_of(name: str, config: PolyConfig) -> int:
    """`r` of the layer `name`: that of the first pattern which matches it, or the common one."""
    return next((r for key, r in config.rank_pattern.items() if _ends(name, key)), config.r)


def scaling_of(name: str, config: PolyConfig) -> float:
    """`alpha / r` of the layer `name`, or `alpha / sqrt(r)` with `use_rslora`."""
    alphas = (alpha for key, alpha in config.alpha_pattern.items() if _ends(name, key))
    rank = rank_of(name, config)
    return next(alphas, config.alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def layer_index(name: str, layers_pattern: Sequence[str] | str | None = None) -> int | None:
    """The number of the layer that the module `name` belongs to; None: it has none.

    It is the first number in the name, or the first one after a part that is a `layers_pattern`:
    in T5's `encoder.block.0.layer.1.DenseReluDense.wo` the layer is block 0. (Earlier versions of
    PEFT took the last number, by which every block of T5 is layer 0, 1 or 2.)
    """
    if not layers_pattern:
        return next((int(part) for part in name.split(".") if part.isdigit()), None)
    for pattern in [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern:
        found = re.match(rf"(?:^|.*?\.)(?:{pattern})\.(?P<layer>\d+)(?:\.|$)", name)
        if found:
            return int(found["layer"])
    return None


def is_chosen_layer(name: str, config: PolyConfig) -> bool:
    """Whether `layers_to_transform` means the module `name`."""
    chosen = config.layers_to_transform
    if chosen is None:
        return True
    chosen = chosen if isinstance(chosen, list) else [chosen]
    return layer_index(name, config.layers_pattern) in chosen


def check_patterns(names: Iterable[str], config: PolyConfig) -> None:
    """Refuse layer numbers and patterns that mean no adapted layer.

    Args:
        names: What `target_modules` matches, in all layers.
        config: The adapter.

    Raises:
        ValueError: Naming each, with near misses.
    """
    names, problems = [*names], []
    chosen = config.layers_to_transform
    if chosen is not None:
        found = {layer_index(name, config.layers_pattern) for name in names} - {None}
        missing = [i for i in (chosen if isinstance(chosen, list) else [chosen]) if i not in found]
        pattern = f" and layers_pattern={config.layers_pattern!r}" if config.layers_pattern else ""
        if missing:
            problems.append(
                f"layers_to_transform={chosen}{pattern}: there is no layer {missing} with target "
                f"modules. Those that have some: {sorted(i for i in found if i is not None)}."
            )
        names = [name for name in names if is_chosen_layer(name, config)] or names
    for option in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, option):
            if not any(_ends(name, key) for name in names):
                problems.append(
                    f"{option} has {key!r}, which matches no adapted layer.{_near(key, names)}"
                )
    if problems:
        raise ValueError("\n".join(problems))


def _ends(name: str, pattern: str) -> bool:
    return re.match(rf"(?:.*\.)?(?:{pattern})$", name) is not None


def _near(pattern: str, names: Iterable[str]) -> str:
    names = [*names]
    words = [*dict.fromkeys(name.rpartition(".")[2] for name in names), *names]
    near = get_close_matches(pattern, words, n=3, cutoff=0.5)
    return f" Near misses: {near}." if near else f" Adapted ones end in: {words[:8]}."
