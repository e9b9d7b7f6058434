"""`PolyConfig`: what one adapter is. PEFT's fields and defaults, then ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, no_type_check

from polylab.poly.config_checks import problems

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


class TaskType(str, Enum):
    """PEFT's task types. Accepted and saved; polylab needs none of them."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


@no_type_check  # by jaxtyping in tests: wrong values reach the checks
@dataclass(kw_only=True)
class PolyConfig:
    """One adapter: `n_skills` LoRAs of rank `r` in every target layer, mixed per example.

    `router`, `noise`, `combine` and the entries of `priors` also take a class of your own:
    `{"_target_": "my_lab.routers.Mine", ...its arguments}`.

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
    """`poly`: a learned table of tasks x skills (Polytropon; with `n_splits` > 1 MHR). `c-poly`:
    the same, and `n_private` skills of each task's own. `mope`: skills are chosen from the input.
    `shared`: one skill for all tasks. `private`: one skill for each task. `uniform`: all skills
    with equal weight. `custom`: the given `allocation`. `shared` and `private` set the number of
    skills themselves and read no `n_skills`."""
    n_tasks: int = 1
    """Number of tasks; ids run from 0 to n_tasks - 1."""
    n_skills: int = 4
    """Number of skills in each layer (`c-poly`: of shared ones)."""
    n_splits: int = 1
    """Heads: blocks of a layer's input and output with a routing of their own."""
    n_private: int = 1
    """`c-poly`: skills that only one task has, for each task."""
    allocation: list[list[float]] | None = None
    """`custom`: non-negative, `[n_tasks, n_skills]`; each row is divided by its sum."""
    trainable: str = "all"
    """`all`, `skills` (A and B) or `router` (Poly-z, MHR-z: the skills stay as they are)."""
    alpha: float = 1.0
    """The update is scaled by alpha / r."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (https://arxiv.org/abs/2312.03732)."""
    dropout: float = 0.0
    """On the input of A, in training."""
    combine: str | dict[str, Any] = "factors"
    """`factors`: A and B are averaged separately. `products`: the skills' updates are averaged."""
    init: str = "peft"
    """Range of A: `peft` 1/sqrt(d_in / n_splits), `mttl` sqrt(1/3) / sqrt(d_in)."""
    noise: str | dict[str, Any] = "relaxed_bernoulli"
    """What the gates are drawn from in training: `relaxed_bernoulli`, `straight_through` (0 or 1,
    with the gradient of the former), `none` (the plain sigmoid)."""
    noise_per: str = "example"
    """`example`, or `task`: all examples of a task in the batch share their noise."""
    noise_source: str = "global"
    """`global`: torch's generator, as PEFT. `keyed`: a function of seed, step and row
    (`PolyModel.set_noise_key`), the same on any number of ranks."""
    temperature: float = 1.0
    """Of the noise (`poly`, `c-poly`) or of the logits (`mope`)."""
    granularity: str = "linear"
    """Layers that share a router: `linear` (none), `block`, `stack`, `model`, or a regular
    expression whose groups tell them apart (`polylab.poly.granularity`)."""
    uniform_share: float = 0.0
    """`w <- (1 - share) w + share / n_skills`; `PolyModel.set_uniform_share` anneals it."""
    priors: dict[str, Any] = field(default_factory=dict)
    """Terms of the training loss and their weights: `ibp`, `entropy`, `load_balance`,
    `mutual_information` (`polylab.poly.priors`)."""
    router: dict[str, Any] | None = None
    """A router class of your own."""
    router_input: str = "layer"
    """What `mope` reads: `layer`, the layer's own input (in a decoder beside an encoder: the
    encoder's output); `embeddings`, the same for all layers."""
    router_level: str = "sequence"
    """`mope`: `sequence`, the mean prompt token; `token`, every token by itself."""
    gating: str = "softmax"
    """`mope`: `softmax`, or `sigmoid` (normalised)."""
    top_k: int | None = None
    """`mope`: only the k largest weights of each head."""
    task_names: list[str] | None = None
    """Names of the tasks in the order of their ids."""
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
        if self.task_names is not None and not isinstance(self.task_names, str):
            self.task_names = [*self.task_names]
        self.task_type = getattr(self.task_type, "value", self.task_type)
        self.priors = {name: value for name, value in (self.priors or {}).items() if value != 0}
        if self.router == {"_target_": None}:  # as it stands in a file, to be overridden
            self.router = None
        found = [*problems(self)]
        types = [kind.value for kind in TaskType]
        if self.task_type is not None and self.task_type not in types:
            found.append(
                f"task_type={self.task_type!r} is not valid: give one of {types} or nothing."
            )
        if found:
            raise ValueError("\n".join(found))

    @property
    def bank_size(self) -> int:
        """Skills that each layer really holds, private ones included."""
        return {
            "shared": 1,
            "private": self.n_tasks,
            "c-poly": self.n_skills + self.n_tasks * self.n_private,
        }.get(self.poly_type, self.n_skills)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolyConfig:
        """The configuration of a file's keys.

        Raises:
            ValueError: If a key is unknown and not null, or a value is invalid.
        """
        known = {item.name for item in fields(cls)}
        unknown = {k: v for k, v in values.items() if k not in known and v is not None}
        if unknown:
            raise ValueError(f"unknown adapter options {unknown}. Valid ones: {sorted(known)}.")
        return cls(**{k: v for k, v in values.items() if k in known})


def _as_names(value: Iterable[str] | str | None) -> list[str] | str | None:
    if value is None or isinstance(value, str):
        return value
    return sorted(value) if isinstance(value, (set, frozenset)) else [*value]
