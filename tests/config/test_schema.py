"""Our nodes say what they build says."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Trainer

from polylab import PolyConfig
from polylab.backbones import load_backbone
from polylab.config import schema
from polylab.data import DataModule
from polylab.poly.config import BOOKKEEPING
from polylab.training import ClassificationModule, OptimConfig, PolyModule

# what the program gives, not the configuration
GIVEN: dict[str, set[str]] = {
    "BackboneSchema": set(),
    "AdapterSchema": {"n_tasks", "task_names", "inference_mode", *BOOKKEEPING},
    "DataSchema": {"tokenizer", "is_encoder_decoder", "is_encoder", "known_labels", "seed"},
    "ModuleSchema": {"categories", "model", "tokenizer", "task_names", "optim", "seed"},
    "ClassificationSchema": {
        "categories",
        *("model", "tokenizer", "task_names", "label_sets", "optim", "seed"),
    },
    "OptimSchema": set(),
    "TrainerSchema": {"logger", "callbacks"},
}
# defaults that differ on purpose
DIFFERENT = {
    # noise_source: keyed, the same on any number of ranks; priors: their names, all at 0;
    # router: a node to override; patterns: {} would take no new keys from an override
    "AdapterSchema": {"noise_source", "priors", "router", "rank_pattern", "alpha_pattern"},
    "DataSchema": {"weights"},  # an open node, which takes keys from overrides
    "TrainerSchema": {"use_distributed_sampler"},  # our batch sampler knows its rank
}
# keys that the program reads itself
OWN = {"TrainerSchema": {"compile"}}
PAIRS: list[tuple[type, Callable[..., Any]]] = [
    (schema.BackboneSchema, load_backbone),
    (schema.AdapterSchema, PolyConfig),
    (schema.DataSchema, DataModule),
    (schema.ModuleSchema, PolyModule),
    (schema.ClassificationSchema, ClassificationModule),
    (schema.OptimSchema, OptimConfig),
    (schema.TrainerSchema, Trainer),
]


def _ours(node: type) -> dict[str, Any]:
    instance = node()
    names = [field.name for field in dataclasses.fields(node)]
    return {name: getattr(instance, name) for name in names if name != "_target_"}


def _theirs(node: type, target: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(target).parameters.items()
    return {
        name: parameter.default
        for name, parameter in parameters
        if name not in GIVEN[node.__name__]
    }


@pytest.mark.parametrize(("node", "target"), PAIRS, ids=[node.__name__ for node, _ in PAIRS])
def test_names_and_defaults(node: type, target: Callable[..., Any]) -> None:
    ours, theirs = _ours(node), _theirs(node, target)
    ours = {name: ours[name] for name in set(ours) - OWN.get(node.__name__, set())}
    assert set(ours) == set(theirs)
    for name in set(ours) - DIFFERENT.get(node.__name__, set()):
        if theirs[name] is not inspect.Parameter.empty:
            expected = theirs[name]
            expected = list(expected) if isinstance(expected, tuple) else expected
            assert ours[name] == expected, name
