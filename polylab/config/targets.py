"""Nodes with a `_target_`: checked against the signature that they name, then built."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.suggest import hint, listing

_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def build(node: DictConfig, *, key: str, parts: Mapping[str, Any] | None = None) -> Any:
    """Build what `node` describes, with those of `parts` that its signature asks for.

    Args:
        node: A node with a `_target_`; nested ones are built too.
        key: The node's place in the configuration, for messages.
        parts: What only the program can give, by parameter name; what the node says itself wins.

    Raises:
        ConfigError: If a target does not exist or takes no such argument, or refuses its values.
    """
    check_targets(node, key=key)
    wanted = set(_parameters(_locate(node, key=key))) - set(map(str, node))
    given = {name: part for name, part in (parts or {}).items() if name in wanted}
    with user_mistakes(key):
        # partial, so that OmegaConf never sees (and converts) the parts
        return instantiate(node, _partial_=True, _convert_="all")(**given)


def plain_container(node: DictConfig) -> dict[str, Any]:
    """Return the resolved values of a node as plain containers."""
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def check_targets(node: Any, *, key: str) -> None:
    """Compare every `_target_` under `node` with its signature, and report all errors at once.

    Raises:
        ConfigError: Naming each wrong key, the nearest valid one and all valid ones.
    """
    problems = []
    for place, part in _target_nodes(node, key):
        target = _locate(part, key=place)
        problems += _unknown_arguments(target, part, key=place, name=part["_target_"])
    if problems:
        raise ConfigError("; ".join(problems))


def check_arguments(target: Callable[..., Any], node: DictConfig, *, key: str) -> None:
    """Compare the keys of `node` with the parameters of `target`.

    Raises:
        ConfigError: Naming each wrong key, the nearest valid one and all valid ones.
    """
    problems = _unknown_arguments(target, node, key=key, name=target.__name__)
    if problems:
        raise ConfigError("; ".join(problems))


def _unknown_arguments(
    target: Callable[..., Any], node: DictConfig, *, key: str, name: str
) -> list[str]:
    parameters = _parameters(target)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    return [
        f"{key}.{given}: {name} takes no {given!r}{hint(given, parameters)}"
        f" · valid: {listing(parameters)}"
        for given in sorted(set(map(str, node)) - _HYDRA_KEYS - set(parameters))
    ]


def _target_nodes(node: Any, key: str) -> Iterator[tuple[str, DictConfig]]:
    if OmegaConf.is_dict(node):
        if "_target_" in node:
            yield key, node
        for name in node:
            if not OmegaConf.is_missing(node, name):
                yield from _target_nodes(node[name], f"{key}.{name}")
    elif OmegaConf.is_list(node):
        for index, item in enumerate(node):
            yield from _target_nodes(item, f"{key}[{index}]")


def _locate(node: DictConfig, *, key: str) -> Callable[..., Any]:
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise ConfigError(f"{key} has no _target_ · choose one of its group's options")
    path = str(node["_target_"])
    found, rest = _longest_module(path)
    for name in rest:
        if not hasattr(found, name):
            where = getattr(found, "__name__", "this environment")
            names = [n for n in dir(found) if not n.startswith("_")] if found else []
            near = hint(name, names)
            raise ConfigError(f"{key}._target_={path}: there is no {name!r} in {where}{near}")
        found = getattr(found, name)
    return found


def _longest_module(path: str) -> tuple[Any, list[str]]:
    """Import as many parts of a dotted path as are modules; return the last and what is left."""
    names = path.split(".")
    for count in range(len(names), 0, -1):
        module = ".".join(names[:count])
        try:
            return importlib.import_module(module), names[count:]
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise ConfigError(f"{path} needs {error.name}, which is not installed") from error
    return None, names


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(target).parameters
    return {name: p for name, p in parameters.items() if name not in ("self", "args")}
