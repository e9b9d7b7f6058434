"""The shape of our own configuration nodes: unknown keys and wrong types fail while composing.

Names and defaults are those of what a node builds (`PolyConfig`, `DataModule`, `PolyModule`,
`OptimConfig`, Lightning's `Trainer`), repeated here because importing these takes seconds; a test
compares the two.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from polylab.config.data_schema import (
    CombinedDataSchema,
    CrossFitDataSchema,
    DataSchema,
    FilesDataSchema,
    FlanDataSchema,
    HubDataSchema,
    LocalDataSchema,
    P3DataSchema,
    SniDataSchema,
)


@dataclass
class BackboneSchema:
    name_or_path: str = MISSING
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    from_scratch: bool = False
    quantization: str | None = None
    gradient_checkpointing: bool = False


@dataclass
class AdapterSchema:
    poly_type: str = "poly"
    r: int = 8
    n_skills: int = 4
    n_splits: int = 1
    alpha: float = 1.0
    target_modules: Any = None
    exclude_modules: Any = None
    modules_to_save: list[str] | None = None
    layers_to_transform: Any = None
    layers_pattern: Any = None
    rank_pattern: Any = None  # {}, which would take no new keys
    alpha_pattern: Any = None
    use_rslora: bool = False
    init_weights: bool = True
    init: str = "peft"
    combine: Any = "factors"
    dropout: float = 0.0
    trainable: str = "all"
    n_private: int = 1
    allocation: Any = None
    noise: Any = "relaxed_bernoulli"
    noise_per: str = "example"
    # training draws for the global batch: the same on any number of ranks and after a resume
    noise_source: str = "keyed"
    temperature: float = 1.0
    granularity: str = "linear"
    uniform_share: float = 0.0
    priors: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(
            ["ibp", "entropy", "load_balance", "mutual_information"], 0
        )
    )
    # none: a node for `adapter.router._target_=my_lab.routers.Mine` to find, open to its arguments
    router: Any = field(
        default_factory=lambda: OmegaConf.create({"_target_": None}, flags={"struct": False})
    )
    router_input: str = "layer"
    router_level: str = "sequence"
    gating: str = "softmax"
    top_k: int | None = None


@dataclass
class ModuleSchema:
    _target_: str = "polylab.training.PolyModule"
    max_new_tokens: int = 32
    num_beams: int = 1
    max_logged_tasks: int = 64
    predictions_per_task: int | None = 16
    generate_every_n_validations: int = 1
    rank_options: str | None = "mean"
    label_smoothing: float = 0.0


@dataclass
class ClassificationSchema:
    _target_: str = "polylab.training.ClassificationModule"
    max_logged_tasks: int = 64
    predictions_per_task: int | None = 16


@dataclass
class OptimSchema:
    name: str = "adamw"
    lr: float = 1e-3
    router_lr: float = 0.1
    other_lr: float | None = None
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    schedule: str = "constant"
    warmup: float = 0.0
    total_steps: int | None = None
    clip: float | None = None
    router: str = "dense"
    anneal_steps: int = 0


@dataclass
class TrainerSchema:
    accelerator: str = "auto"
    strategy: Any = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: Any = None
    fast_dev_run: Any = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: Any = None
    limit_train_batches: Any = None
    limit_val_batches: Any = None
    limit_test_batches: Any = None
    limit_predict_batches: Any = None
    overfit_batches: Any = 0.0
    val_check_interval: Any = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = False  # our batch sampler knows its rank
    profiler: Any = None
    detect_anomaly: bool = False
    barebones: bool = False
    plugins: Any = None
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | None = None  # the run's folder
    enable_autolog_hparams: bool = True
    model_registry: str | None = None
    compile: bool = False  # ours: compile each block of the backbone for training


@dataclass
class TrainSchema:
    name: str = MISSING
    seed: int = 0
    tags: list[str] = field(default_factory=list)
    ckpt_path: str | None = None
    init_from: str | None = None
    validate_only: bool = False
    resume: bool = False
    optimized_metric: str = "val/exact_match"
    backbone: BackboneSchema = field(default_factory=BackboneSchema)
    adapter: AdapterSchema | None = None
    data: Any = MISSING
    module: Any = MISSING
    optim: Any = MISSING
    trainer: TrainerSchema = field(default_factory=TrainerSchema)
    callbacks: Any = None
    logger: Any = None


@dataclass
class AdaptSchema:
    method: str = MISSING
    shots: int = 16
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    tasks: list[str] | None = None
    steps: int = 100
    select: str = "best"
    monitor: str = "exact_match"
    validate_every: int = 25
    validation_rows: int = 16
    router_init: Any = "fresh"
    r: int | None = None
    save: bool = False


@dataclass
class AdaptCommandSchema:
    run: str = MISSING
    seed: int = 0
    trust_code: bool = False
    adapt: AdaptSchema = field(default_factory=AdaptSchema)
    data: Any = MISSING
    module: Any = MISSING
    optim: Any = MISSING
    trainer: TrainerSchema = field(default_factory=TrainerSchema)


@dataclass
class ExportSchema:
    run: str = MISSING
    to: str = MISSING
    format: str = "lora"
    task: str | None = None
    trust_code: bool = False


@dataclass
class ReportSchema:
    run: str = MISSING
    to: str | None = None


@dataclass
class FiguresSchema:
    run: str = MISSING
    figure: str = "all"
    metric: str = "exact_match"
    to: str | None = None


@dataclass
class EvaluateSchema:
    run: str = MISSING
    split: str = "test"
    task: Any = None
    routing: Any = "learned"
    answers: bool = True
    metric: str | None = None
    zero_shot: str | None = None
    batch_size: int | None = None
    examples_per_task: int | None = None
    accelerator: str = "auto"
    precision: Any = None
    trust_code: bool = False
    data: Any = None


@dataclass
class WorkspaceSchema:
    project: str = MISSING
    entity: str | None = None
    name: str = "polylab"
    timeout: int = 30


def register_schemas() -> None:
    """Store the root's schema, and those that options take up with `/schema/NAME@_here_`."""
    store = ConfigStore.instance().store
    store(name="train_schema", node=TrainSchema, provider="polylab")
    store(name="adapt_schema", node=AdaptCommandSchema, provider="polylab")
    store(name="export_schema", node=ExportSchema, provider="polylab")
    store(name="report_schema", node=ReportSchema, provider="polylab")
    store(name="workspace_schema", node=WorkspaceSchema, provider="polylab")
    store(name="figures_schema", node=FiguresSchema, provider="polylab")
    store(name="evaluate_schema", node=EvaluateSchema, provider="polylab")
    nodes = {
        "data": DataSchema,
        "local_data": LocalDataSchema,
        "sni_data": SniDataSchema,
        "crossfit_data": CrossFitDataSchema,
        "combined_data": CombinedDataSchema,
        "files_data": FilesDataSchema,
        "hub_data": HubDataSchema,
        "p3_data": P3DataSchema,
        "flan_data": FlanDataSchema,
        "module": ModuleSchema,
        "classification": ClassificationSchema,
        "optim": OptimSchema,
    }
    for name, node in nodes.items():
        store(group="schema", name=name, node=node, provider="polylab")
