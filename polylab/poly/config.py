"""`PolyConfig`: what one adapter is. PEFT's fields and defaults, then ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, no_type_check

__all__ = ["BOOKKEEPING", "PolyConfig", "TaskType"]

# Fields that PEFT writes beside the adapter's own; none of them changes what is computed.
BOOKKEEPING = (
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
)
_CHOICES = {
    "poly_type": ("poly", "mope", "shared", "private"),
    "init": ("peft", "mttl"),
    "noise": ("relaxed_bernoulli", "none"),
    "noise_source": ("global", "keyed"),
    "router_input": ("layer",),
}


class TaskType(str, Enum):
    """PEFT's task types. Accepted and saved; polylab needs none of them."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


@no_type_check  # by jaxtyping in tests: wrong values reach the checks below
@dataclass(kw_only=True)
class PolyConfig:
    """One adapter: `n_skills` LoRAs of rank `r` in every target layer, mixed per example.

    Raises:
        ValueError: If a value is invalid; every problem is named at once.
    """

    r: int = 8
    """Rank of each skill."""
    target_modules: list[str] | str | None = None
    """Suffixes of module names, a regular expression for the whole name, `"all-linear"`, or
    None: the usual layers of the model's architecture."""
    exclude_modules: list[str] | str | None = None
    """Suffixes, or a regular expression, of modules to leave alone."""
    layers_to_transform: list[int] | int | None = None
    """Adapt only these of the model's layers, counted from 0; None: all. Not with a regular
    expression in `target_modules`, which says it itself."""
    layers_pattern: list[str] | str | None = None
    """Name (a regular expression) in front of a layer's number, such as `layers`; None: the first
    number in a module's name counts."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of single layers: `{pattern: r}`. A pattern is a regular expression for the end of a
    module's name, in whole parts; the first one that matches counts."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """`alpha` of single layers, as `rank_pattern`."""
    modules_to_save: list[str] | None = None
    """Ends of the names of modules (not adapted ones: embeddings, norms, heads) of which the
    adapter trains and saves a copy of its own; the backbone's stays frozen. As in PEFT not in whole
    parts: `norm` also means `input_layernorm`, and `model.norm` does not."""
    init_weights: bool = True
    """Start from B = 0, the base model exactly. False: B is random like A."""
    poly_type: str = "poly"
    """`poly`: a table of tasks x skills (Polytropon; with `n_splits` > 1 MHR). `mope`: skills are
    chosen from the prompt. `shared`: one skill for all tasks. `private`: one skill for each task.
    The last two set the number of skills themselves and read no `n_skills`."""
    n_tasks: int = 1
    """Number of tasks; ids run from 0 to n_tasks - 1."""
    n_skills: int = 4
    """Number of skills in each layer."""
    n_splits: int = 1
    """Heads: blocks of a layer's input and output with a routing of their own."""
    alpha: float = 1.0
    """The update is scaled by alpha / r."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (https://arxiv.org/abs/2312.03732)."""
    init: str = "peft"
    """Range of A: `peft` 1/sqrt(d_in / n_splits), `mttl` sqrt(1/3) / sqrt(d_in)."""
    noise: str = "relaxed_bernoulli"
    """What `poly` adds to the gates in training; `none` for the plain sigmoid."""
    noise_source: str = "global"
    """`global`: torch's generator, as PEFT. `keyed`: a function of seed, step and row
    (`PolyModel.set_noise_key`), the same on any number of ranks."""
    temperature: float = 1.0
    """Of the relaxed Bernoulli (`poly`) or of the softmax (`mope`)."""
    task_names: list[str] | None = None
    """Names of the tasks in the order of their ids."""
    router_input: str = "layer"
    """What `mope` reads: `layer`, the layer's own input."""
    inference_mode: bool = False
    """Freeze the adapter too."""
    task_type: str | None = None
    peft_type: str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        self.target_modules = _as_names(self.target_modules)
        self.exclude_modules = _as_names(self.exclude_modules)
        if self.modules_to_save is not None and not isinstance(self.modules_to_save, str):
            self.modules_to_save = [*self.modules_to_save]
        for name in ("layers_to_transform", "layers_pattern"):
            value = getattr(self, name)
            setattr(self, name, [*value] if isinstance(value, (list, tuple)) else value)
        for name in ("rank_pattern", "alpha_pattern"):  # PEFT writes null for none
            setattr(self, name, dict(getattr(self, name) or {}))
        self.task_names = None if self.task_names is None else [*self.task_names]
        self.task_type = getattr(self.task_type, "value", self.task_type)
        problems = [*self._number_problems(), *self._choice_problems(), *self._name_problems()]
        problems += [*self._layer_problems(), *self._pattern_problems()]
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def skill_count(self) -> int:
        """Skills each layer really has: 1 if shared, n_tasks if private, else n_skills."""
        return {"shared": 1, "private": self.n_tasks}.get(self.poly_type, self.n_skills)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolyConfig:
        """The configuration of a file's keys.

        Raises:
            ValueError: If a key is unknown and not null, or a value is invalid.
        """
        known = {field.name for field in fields(cls)}
        unknown = {k: v for k, v in values.items() if k not in known and v is not None}
        if unknown:
            raise ValueError(f"unknown adapter options {unknown}. Valid ones: {sorted(known)}.")
        return cls(**{k: v for k, v in values.items() if k in known})

    def _number_problems(self) -> Iterable[str]:
        for name in ("r", "n_tasks", "n_skills", "n_splits"):
            value = getattr(self, name)
            if not _is_count(value):
                yield f"{name}={value!r} is not valid: give an integer of at least 1."
        for name in ("alpha", "temperature"):
            value = getattr(self, name)
            if not _is_positive(value):
                yield f"{name}={value!r} is not valid: give a number above 0."

    def _choice_problems(self) -> Iterable[str]:
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                yield f"{name}={getattr(self, name)!r} is not valid: give one of {[*valid]}."
        types = [kind.value for kind in TaskType]
        if self.task_type is not None and self.task_type not in types:
            yield f"task_type={self.task_type!r} is not valid: give one of {types} or nothing."

    def _layer_problems(self) -> Iterable[str]:
        chosen, pattern = self.layers_to_transform, self.layers_pattern
        indices = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
        for index in indices:
            if not _is_count(index, least=0):
                yield f"layers_to_transform has {index!r}: give numbers of layers, from 0."
        if chosen == []:
            yield "layers_to_transform=[] is empty: name at least one layer, or leave it out."
        is_regex = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        if is_regex and chosen is not None:
            yield (
                f"layers_to_transform={chosen} goes with a list of target_modules, not with the "
                f"regular expression {self.target_modules!r}: choose the layers in it."
            )
        if pattern is not None and chosen is None:
            yield f"layers_pattern={pattern!r} needs layers_to_transform: give both."
        yield from _regex_problems("layers_pattern", _as_list(pattern))

    def _pattern_problems(self) -> Iterable[str]:
        for name, is_valid, want in (
            ("rank_pattern", _is_count, "an integer of at least 1"),
            ("alpha_pattern", _is_positive, "a number above 0"),
        ):
            yield from _regex_problems(name, getattr(self, name))
            for pattern, value in getattr(self, name).items():
                if not is_valid(value):
                    yield f"{name}[{pattern!r}]={value!r} is not valid: give {want}."
        if not isinstance(self.use_rslora, bool):
            yield f"use_rslora={self.use_rslora!r} is not valid: give true or false."

    def _name_problems(self) -> Iterable[str]:
        if self.target_modules is not None and not self.target_modules:
            yield f"target_modules={self.target_modules!r} is empty: name at least one module."
        if isinstance(self.modules_to_save, str):
            yield f"modules_to_save={self.modules_to_save!r} is a string: give a list of names."
        elif self.modules_to_save and "" in self.modules_to_save:
            yield f"modules_to_save={self.modules_to_save} has an empty name: leave it out."
        names = self.task_names
        if names is not None and len({*names}) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            yield f"task_names has {twice} more than once: give each task one name."
        if names is not None and len(names) != self.n_tasks:
            yield f"task_names has {len(names)} names, but n_tasks={self.n_tasks}: give one each."


def _as_names(value: Iterable[str] | str | None) -> list[str] | str | None:
    if value is None or isinstance(value, str):
        return value
    return sorted(value) if isinstance(value, (set, frozenset)) else [*value]


def _as_list(value: list[str] | str | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _is_count(value: Any, *, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


def _regex_problems(option: str, patterns: Iterable[Any]) -> Iterable[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            yield f"{option} has {pattern!r}, which is no regular expression: {error}."
