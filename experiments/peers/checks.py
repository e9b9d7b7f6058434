"""All checks by name, those that ask for what only polylab has, and those that fail as yet.

A check is a function of a `Library`, named after the defect it is about; its docstring is the
question. It returns if the answer is yes, and raises otherwise.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import torch

from experiments.peers import (
    export_checks,
    id_checks,
    layer_checks,
    option_checks,
    routing_checks,
    state_checks,
)
from experiments.peers.libraries import Library, open_library

__all__ = ["CHECKS", "POLYLAB_ONLY", "defect_of", "question_of", "run"]

_MODULES = (
    routing_checks,
    id_checks,
    layer_checks,
    option_checks,
    state_checks,
    export_checks,
)

CHECKS: dict[str, Callable[[Library], None]] = {
    name: function
    for module in _MODULES
    for name, function in vars(module).items()
    if re.match(r"d\d\d_", name)
}

# PEFT may answer these by a missing name or argument: "no such feature".
POLYLAB_ONLY = (
    "d16_alpha",
    "d16_dropout",
    "d16_layers_to_transform",
    "d16_rank_pattern",
    "d16_rslora",
    "d17_private_splits",
    "d17_products",
    "d17_products_splits",
    "d18_add_skills",
    "d18_add_tasks",
    "d21_task_names",
    "d25_weights_of_a_call",
    "d27_export_lora",
    "d29_cached_decoding",
    "d29_no_label_leak",
    "d29_padding_side",
)


def defect_of(name: str) -> str:
    """`D3` of `d03_batch_of_one_t5`."""
    return f"D{int(name[1:3])}"


def question_of(name: str) -> str:
    """The check's docstring, without its full stop."""
    doc = CHECKS[name].__doc__
    assert doc is not None, name
    return doc.strip().removesuffix(".")


def run(name: str, lib: Library | str) -> None:
    """Run one check from fixed seeds; whatever it raises is its answer."""
    library = open_library(lib) if isinstance(lib, str) else lib
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' advice is not the question
        torch.manual_seed(0)
        CHECKS[name](library)
