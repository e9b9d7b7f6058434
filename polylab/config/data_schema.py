"""The shape of the data's nodes, one for each kind of source; see `polylab.config.schema`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf


@dataclass
class DataSchema:
    _target_: str = "polylab.data.DataModule"
    source: Any = MISSING
    batch_size: int = 64
    temperature: float = 1.0
    cap: int | None = None
    weights: Any = field(  # open: names of tasks
        default_factory=lambda: OmegaConf.create({}, flags={"struct": False})
    )
    prompt: str = "none"
    max_input_length: int = 512
    max_target_length: int = 128
    keep_input: str = "end"
    separator: str = "\n"
    chat: bool = True
    steps_per_epoch: int | None = None
    eval_batch_size: int | None = None
    eval_examples_per_task: int | None = 50
    test_examples_per_task: int | None = None
    known_tasks: list[str] = field(default_factory=list)
    num_workers: int = 0
    group_by_length: int | None = None
    packing: bool = False
    tasks_per_batch: int | None = None
    cache: str | None = None
    max_labels: int = 64


@dataclass
class LocalDataSchema(DataSchema):
    path: str = MISSING  # read by the source, as is on_empty
    on_empty: str = "error"


@dataclass
class ColumnsSchema:
    input: str | None = None  # none: by its usual names
    target: str | None = None
    task: str | None = None
    split: str | None = None
    options: str | None = None
    references: str | None = None
    instruction: str | None = None


@dataclass
class SplitsSchema:
    train: str | None = None  # none: by its usual names
    validation: str | None = None
    test: str | None = None


@dataclass
class TableDataSchema(LocalDataSchema):
    columns: ColumnsSchema = field(default_factory=ColumnsSchema)
    splits: SplitsSchema = field(default_factory=SplitsSchema)
    max_examples_per_task: int | None = None


@dataclass
class FilesDataSchema(TableDataSchema):
    tasks: str = "auto"


@dataclass
class NamedDataSchema(TableDataSchema):
    config_name: Any = None  # or several
    revision: str | None = None


@dataclass
class HubDataSchema(NamedDataSchema):
    tasks: str = "auto"


@dataclass
class P3Schema:
    tasks: str = "templates"
    options: bool = True
    datasets: list[str] = field(default_factory=list)


@dataclass
class P3DataSchema(NamedDataSchema):
    p3: P3Schema = field(default_factory=P3Schema)


@dataclass
class FlanSchema:
    templates: list[str] = field(default_factory=list)
    collections: list[str] = field(default_factory=list)


@dataclass
class FlanDataSchema(NamedDataSchema):
    flan: FlanSchema = field(default_factory=FlanSchema)


@dataclass
class SniSchema:
    track: str = "default"
    positive_examples: int = 2
    negative_examples: int = 0
    explanations: bool = False
    max_words: int = 680


@dataclass
class SniDataSchema(LocalDataSchema):
    tasks: str = "auto"
    max_examples_per_task: int | None = None
    sni: SniSchema = field(default_factory=SniSchema)


@dataclass
class CrossFitDataSchema(LocalDataSchema):
    tasks: str = "auto"
    partition: str | None = None
    shots: int | None = None
    seeds: list[int] | None = None


@dataclass
class CombinedDataSchema(DataSchema):
    # open: each source has the keys of its own option
    sources: Any = field(default_factory=lambda: OmegaConf.create({}, flags={"struct": False}))
    prefix: bool = False
