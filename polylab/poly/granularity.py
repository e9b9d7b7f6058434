"""Which layers share a router."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from polylab.poly.config import PolyConfig
from polylab.poly.linears import features_of
from polylab.poly.routers import make_router
from polylab.poly.structure import embedding_width, encoder_of, widths

__all__ = ["KEYWORDS", "Seat", "router_groups", "router_seats"]

KEYWORDS = ("linear", "block", "stack", "model")


@dataclass(frozen=True)
class Seat:
    """A layer's place among those that share a router.

    Args:
        group: Its group; None for a router of its own, evaluated when the layer is called.
        d_router: Width of what a router by input reads; None: the layer's own input.
        leads: The group's first layer, under whose name the router is saved.
    """

    group: str | None
    d_router: int | None
    leads: bool


def router_seats(
    model: nn.Module, targets: Mapping[str, nn.Module], config: PolyConfig
) -> dict[str, Seat]:
    """The seat of each target layer.

    Raises:
        ValueError: As `router_groups`; or if layers shared a router, but not what it reads.
    """
    groups = router_groups(model, targets, config.granularity)
    kind = _reads(config, next(iter(targets.values())))
    if kind is not None:
        _check_shared_input(config, kind)
    # Tokens are the layer's own, of a decoder beside an encoder too.
    reads: Mapping[str, int | None] = (
        dict.fromkeys(targets) if kind == "tokens" else widths(model, targets)
    )
    if config.router_input == "embeddings":
        reads = dict.fromkeys(targets, embedding_width(model))
        groups = groups or {name: name for name in targets}
    if groups is None:
        return {name: Seat(None, reads[name], leads=True) for name in targets}
    first = {group: name for name, group in reversed([*groups.items()])}
    return {name: Seat(g, reads[name], leads=first[g] == name) for name, g in groups.items()}


def router_groups(
    model: nn.Module, names: Iterable[str], granularity: str
) -> dict[str, str] | None:
    r"""The group of each layer; layers of one group share a router. None: no two layers do.

    Read from the model's structure, not from the names of one architecture.

    Args:
        model: The base model.
        names: Of the adapted layers.
        granularity: `linear`, one router a layer (Polytropon, https://arxiv.org/abs/2202.13914);
            `block`, one for each transformer block (an entry of the outermost list of modules);
            `stack`, one for the encoder and one for the decoder; `model`, one for all. Anything
            else is a regular expression, searched in the layer's name: layers of equal groups share
            (`(encoder|decoder).*\.(q|v)$`: four routers), or of an equal match without groups.

    Raises:
        ValueError: If the expression is none, or does not match a layer.
    """
    if granularity == "linear":
        return None
    if granularity == "model":
        return dict.fromkeys(names, "model")
    if granularity == "block":
        lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
        return {name: _block_of(name, lists) for name in names}
    if granularity == "stack":
        encoder = encoder_of(model)
        inside = {id(part) for part in encoder.modules()} if encoder else set()
        return {
            name: "encoder" if id(model.get_submodule(name)) in inside else "decoder"
            for name in names
        }
    return {name: _matched(name, granularity) for name in names}


def _reads(config: PolyConfig, layer: nn.Module) -> str | None:
    """What the adapter's routers read (`Router.reads`); the router says it, once it is made."""
    with torch.device("meta"):
        return make_router(config, features_of(layer)[0]).reads


def _check_shared_input(config: PolyConfig, kind: str) -> None:
    if kind == "tokens" and config.router_input != "layer":
        raise ValueError(
            f"router_input={config.router_input!r} does not go with a router that reads tokens: "
            "each is routed by the layer's own input. Give router_input='layer'."
        )
    if config.granularity != "linear" and config.router_input != "embeddings":
        raise ValueError(
            f"granularity={config.granularity!r} does not go with a router that reads the layer's "
            "input, which layers do not share. Give granularity='linear'"
            + (", or router_input='embeddings'." if kind == "prompt" else ".")
        )


def _block_of(name: str, lists: Iterable[str]) -> str:
    """`encoder.block.3` of `encoder.block.3.layer.0.q`; a layer outside of all blocks: itself."""
    around = [entry for entry in lists if name.startswith(f"{entry}.")]
    if not around:
        return name
    outermost = min(around, key=len)
    return f"{outermost}.{name.removeprefix(f'{outermost}.').partition('.')[0]}"


def _matched(name: str, pattern: str) -> str:
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise ValueError(
            f"granularity={pattern!r} is neither one of {[*KEYWORDS]} nor a regular expression: "
            f"{error}."
        ) from error
    if found is None:
        raise ValueError(
            f"granularity={pattern!r} is none of {[*KEYWORDS]}, and as a regular expression it "
            f"does not match layer {name!r}. Every adapted layer must match."
        )
    return "/".join(found.groups("")) if found.re.groups else found[0]
