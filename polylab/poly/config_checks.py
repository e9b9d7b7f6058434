"""What is wrong with a `PolyConfig`: every problem at once, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["problems"]

_CHOICES = {
    "poly_type": ("poly", "c-poly", "mope", "shared", "private", "uniform", "custom"),
    "trainable": ("all", "skills", "router"),
    "init": ("peft", "mttl"),
    "noise_per": ("example", "task"),
    "noise_source": ("global", "keyed"),
    "router_input": ("layer", "embeddings"),
    "router_level": ("sequence", "token"),
    "gating": ("softmax", "sigmoid"),
}
# Options that also take a class of the user's own.
_OPEN_CHOICES = {
    "noise": ("relaxed_bernoulli", "straight_through", "none"),
    "combine": ("factors", "products"),
}
_PRIORS = ("ibp", "entropy", "load_balance", "mutual_information")
# Options that only some routings read: elsewhere they must be left at their defaults.
_ONLY_FOR: dict[str, tuple[Any, tuple[str, ...]]] = {
    "n_private": (1, ("c-poly",)),
    "allocation": (None, ("custom",)),
    "router_level": ("sequence", ("mope",)),
    "gating": ("softmax", ("mope",)),
    "top_k": (None, ("mope",)),
    "router": (None, ("poly",)),
    "noise_per": ("example", ("poly", "c-poly")),
}
_LEARNED = ("poly", "c-poly", "mope")


def problems(config: Any) -> Iterable[str]:
    """One line for each invalid value: what was given, and what is valid."""
    yield from _numbers(config)
    yield from _choices(config)
    yield from _names(config)
    yield from _combinations(config)
    yield from _own_router(config)
    yield from _allocation(config)
    yield from _priors(config)
    yield from _layers(config)
    yield from _patterns(config)


def _numbers(config: Any) -> Iterable[str]:
    for name in ("r", "n_tasks", "n_skills", "n_splits", "n_private", "top_k"):
        value = getattr(config, name)
        if name == "top_k" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{name}={value!r} is not valid: give an integer of at least 1."
    for name in ("alpha", "temperature"):
        value = getattr(config, name)
        if not _is_number(value) or not 0 < value < math.inf:
            yield f"{name}={value!r} is not valid: give a number above 0."
    if not _is_number(config.dropout) or not 0 <= config.dropout < 1:
        yield f"dropout={config.dropout!r} is not valid: give a number from 0 to below 1."
    if not _is_number(config.uniform_share) or not 0 <= config.uniform_share <= 1:
        yield f"uniform_share={config.uniform_share!r} is not valid: give a number from 0 to 1."


def _choices(config: Any) -> Iterable[str]:
    for name, valid in _CHOICES.items():
        if getattr(config, name) not in valid:
            yield f"{name}={getattr(config, name)!r} is not valid: give one of {[*valid]}."
    for name, valid in _OPEN_CHOICES.items():
        value = getattr(config, name)
        if not _is_class(value) and (isinstance(value, Mapping) or value not in valid):
            yield (
                f"{name}={value!r} is not valid: give one of {[*valid]}, or a class of your own as "
                "{_target_: DOTTED.PATH}."
            )
    if config.router is not None and not _is_class(config.router):
        yield f"router={config.router!r} is not valid: give a class as {{_target_: DOTTED.PATH}}."
    if not isinstance(config.granularity, str) or not config.granularity:
        yield (
            f"granularity={config.granularity!r} is not valid: give linear, block, stack, model or "
            "a regular expression."
        )


def _names(config: Any) -> Iterable[str]:
    if config.target_modules is not None and not config.target_modules:
        yield f"target_modules={config.target_modules!r} is empty: name at least one module."
    if isinstance(config.modules_to_save, str):
        yield f"modules_to_save={config.modules_to_save!r} is a string: give a list of names."
    elif config.modules_to_save and "" in config.modules_to_save:
        yield f"modules_to_save={config.modules_to_save} has an empty name: leave it out."
    names = config.task_names
    if isinstance(names, str):
        yield f"task_names={names!r} is one string: give a list of names."
        return
    if names is not None and len({*names}) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        yield f"task_names has {twice} more than once: give each task one name."
    if names is not None and len(names) != config.n_tasks:
        yield f"task_names has {len(names)} names, but n_tasks={config.n_tasks}: give one each."


def _combinations(config: Any) -> Iterable[str]:
    kind = config.poly_type
    for name, (default, kinds) in _ONLY_FOR.items():
        if kind not in kinds and getattr(config, name) != default:
            yield (
                f"{name}={getattr(config, name)!r} has no effect with poly_type={kind!r}: it is "
                f"for {' and '.join(kinds)}. Leave it out."
            )
    both = (config.top_k, config.n_skills)
    if all(isinstance(value, int) for value in both) and both[0] > both[1]:
        yield f"top_k={config.top_k} exceeds n_skills={config.n_skills}."
    if kind == "mope" and config.granularity != "linear" and config.router_input != "embeddings":
        yield (
            f"granularity={config.granularity!r} with poly_type='mope' needs "
            "router_input='embeddings': layers that share a router must share its input."
        )
    if config.router_level == "token" and config.router_input != "layer":
        yield (
            f"router_level='token' with router_input={config.router_input!r} is not valid: every "
            "token is routed by the layer's own input. Give router_input='layer'."
        )
    if config.trainable == "router" and kind not in _LEARNED:
        yield f"trainable='router': the router of poly_type={kind!r} has nothing to train."
    if config.uniform_share and kind in ("shared", "private", "uniform"):
        yield f"uniform_share={config.uniform_share} has no meaning with poly_type={kind!r}."


def _own_router(config: Any) -> Iterable[str]:
    if config.router is None:
        return
    unread = {"noise": "relaxed_bernoulli", "noise_per": "example", "temperature": 1.0}
    for name, default in unread.items():
        if getattr(config, name) != default:
            yield (
                f"{name}={getattr(config, name)!r} has no effect with a router of your own: make "
                f"it an argument of that, router={{_target_: ..., {name}: ...}}."
            )


def _allocation(config: Any) -> Iterable[str]:
    rows = config.allocation
    if config.poly_type != "custom":
        return
    want = f"a list of {config.n_tasks} rows (n_tasks) of {config.n_skills} numbers (n_skills)"
    if rows is None:
        yield f"poly_type='custom' needs allocation: {want}."
        return
    try:
        shape = {len(row) for row in rows}
        valid = all(_is_number(cell) and 0 <= cell < math.inf for row in rows for cell in row)
    except TypeError:
        yield f"allocation={rows!r} is not valid: give {want}."
        return
    if len(rows) != config.n_tasks or shape != {config.n_skills}:
        yield f"allocation has {len(rows)} rows of {sorted(shape)} numbers: give {want}."
    elif not valid:
        yield "allocation holds a value that is no number of at least 0."
    elif empty := [i for i, row in enumerate(rows) if not sum(row)]:
        yield f"allocation gives task {empty[0]} no skill at all: every row needs one above 0."


def _priors(config: Any) -> Iterable[str]:
    kind = config.poly_type
    for name, value in config.priors.items():
        weight = value.get("weight") if _is_class(value) else value
        if not _is_class(value) and name not in _PRIORS:
            yield (
                f"priors.{name} is unknown: give one of {[*_PRIORS]}, or a class of your own as "
                "{_target_: DOTTED.PATH, weight: NUMBER}."
            )
        elif not _is_number(weight) or not 0 <= weight < math.inf:
            yield f"priors.{name}={value!r}: its weight must be a number of at least 0."
    if config.priors and kind not in _LEARNED:
        yield f"priors={config.priors}: the router of poly_type={kind!r} learns nothing."
    if config.priors and config.trainable == "skills":
        yield f"priors={config.priors}: with trainable='skills' the router learns nothing."
    if "ibp" in config.priors and kind == "mope":
        yield "priors.ibp is on the gates of tasks, and poly_type='mope' has none."


def _layers(config: Any) -> Iterable[str]:
    chosen, pattern = config.layers_to_transform, config.layers_pattern
    for index in chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]:
        if not _is_count(index, least=0):
            yield f"layers_to_transform has {index!r}: give numbers of layers, from 0."
    if chosen == []:
        yield "layers_to_transform=[] is empty: name at least one layer, or leave it out."
    is_regex = isinstance(config.target_modules, str) and config.target_modules != "all-linear"
    if is_regex and chosen is not None:
        yield (
            f"layers_to_transform={chosen} goes with a list of target_modules, not with the "
            f"regular expression {config.target_modules!r}: choose the layers in it."
        )
    if pattern is not None and chosen is None:
        yield f"layers_pattern={pattern!r} needs layers_to_transform: give both."
    patterns = [pattern] if isinstance(pattern, str) else pattern or []
    yield from _expressions("layers_pattern", patterns)


def _patterns(config: Any) -> Iterable[str]:
    yield from _expressions("rank_pattern", config.rank_pattern)
    yield from _expressions("alpha_pattern", config.alpha_pattern)
    for pattern, rank in config.rank_pattern.items():
        if not _is_count(rank):
            yield (
                f"rank_pattern[{pattern!r}]={rank!r} is not valid: give an integer of at least 1."
            )
    for pattern, alpha in config.alpha_pattern.items():
        if not _is_number(alpha) or not 0 < alpha < math.inf:
            yield f"alpha_pattern[{pattern!r}]={alpha!r} is not valid: give a number above 0."
    if not isinstance(config.use_rslora, bool):
        yield f"use_rslora={config.use_rslora!r} is not valid: give true or false."


def _expressions(option: str, patterns: Iterable[Any]) -> Iterable[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            yield f"{option} has {pattern!r}, which is no regular expression: {error}."


def _is_count(value: object, *, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_class(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("_target_"), str)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
