"""What a run is made of, built from its configuration: the shared part of the commands.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from polylab.config.ddp import patch_launchers
from polylab.config.errors import ConfigError, explain, user_mistakes
from polylab.config.launch import sweep_folder
from polylab.config.targets import build, check_arguments, check_targets, plain_container
from polylab.config.tracking import build_logger
from polylab.trainers import build_trainer, keep_history, quiet_libraries

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from torch import nn

    from polylab.backbones import Backbone

MULTITASK = "polylab.training.PolyModule"
CLASSIFICATION = "polylab.training.ClassificationModule"
# Keys of the data node that its source refers to; the data module itself has no use for them.
SOURCE_KEYS = (
    *("path", "on_empty", "columns", "splits", "tasks", "max_examples_per_task"),
    *("config_name", "revision", "p3", "flan", "sni", "sources", "prefix"),
    *("partition", "shots", "seeds"),
)


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of, built and checked before anything is written."""

    model: "nn.Module"
    data: "LightningDataModule"
    module: "LightningModule"
    trainer: "Trainer"
    logger: "Logger | None"
    task_names: list[str]


def build_parts(cfg: DictConfig, *, folder: Path) -> Parts:
    """Build backbone, data, adapter, module, callbacks, logger and trainer.

    Raises:
        ConfigError: If any of them refuses what it is given.
    """
    from lightning.pytorch import seed_everything

    quiet_libraries()
    patch_launchers()
    _check_nodes(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    optim = build_optim(cfg)
    know_tasks_of(cfg)
    source = read_tasks(cfg)  # before the backbone, which may take minutes
    backbone = build_backbone(cfg)
    _check_kind(cfg, backbone)
    data = build_data(cfg, backbone, source=source)
    with user_mistakes("data"):
        task_names: list[str] = list(getattr(data, "task_names", ()))
        label_sets = getattr(data, "label_sets", None)
    if label_sets is not None:
        _attach_head(cfg, backbone, label_sets.by_task)
    model = build_model(cfg, backbone, task_names=task_names)
    check_packing(cfg, model)
    parts: dict[str, Any] = {
        "model": model,
        "tokenizer": backbone.tokenizer,
        "task_names": task_names,
        "label_sets": None if label_sets is None else label_sets.by_task,
        "skills": getattr(data, "skill_matrix", None),
        "categories": getattr(data, "categories", None),
        "optim": optim,
        "folder": folder,
        "dirpath": folder / "checkpoints",
        "seed": cfg.seed,
    }
    module = build(cfg.module, key="module", parts=parts)
    callbacks = build_callbacks(cfg, parts)
    logger = build_logger(cfg, folder=folder, sweep=sweep_folder())
    trainer = build_trainer(cfg, callbacks=callbacks, logger=logger, folder=folder)
    keep_history(trainer, folder)
    _try_out(module, data, trainer)
    if cfg.trainer.compile:
        from polylab import compile_blocks
        from polylab.training import ShardedStrategy

        with user_mistakes("trainer.compile"):
            if isinstance(trainer.strategy, ShardedStrategy):
                raise ValueError(
                    "trainer.compile=true does not go with trainer=fsdp, whose blocks get other "
                    "parameters in every call; set it to false, or give trainer=ddp."
                )
            compile_blocks(model)
    return Parts(model, data, module, trainer, logger, task_names)


def classifies(cfg: DictConfig) -> bool:
    """Whether a run trains heads instead of generating."""
    return OmegaConf.select(cfg, "module._target_") == CLASSIFICATION


def _check_kind(cfg: DictConfig, backbone: "Backbone") -> None:
    """Refuse a module that cannot train this kind of backbone."""
    given = f"backbone.name_or_path={backbone.name}"
    if classifies(cfg) and not backbone.is_encoder:
        raise ConfigError(
            f"module=classification: {given} generates · an encoder-only backbone (BERT, ...) is "
            "needed · choose one, or use module=multitask"
        )
    if cfg.adapter is None and OmegaConf.select(cfg, "module._target_") == MULTITASK:
        raise ConfigError(
            "module=multitask with adapter=none: it trains an adapter · choose one, e.g. "
            "adapter=lora, one for all tasks"
        )
    if classifies(cfg) and cfg.adapter is None:
        raise ConfigError(
            "module=classification with adapter=none: the heads are trained beside an adapter · "
            "choose one, e.g. adapter=lora"
        )
    if backbone.is_encoder and not classifies(cfg):
        raise ConfigError(
            f"module: {given} is an encoder alone and does not generate · use module=classification"
        )


def _attach_head(
    cfg: DictConfig, backbone: "Backbone", label_sets: "Sequence[Sequence[str]]"
) -> None:
    """Give the encoder a head per task, which the adapter trains and saves."""
    from polylab.training.heads import HEAD, add_heads

    add_heads(backbone.model, [len(labels) for labels in label_sets])
    with open_dict(cfg.adapter):
        saved = cfg.adapter.get("modules_to_save") or []
        cfg.adapter.modules_to_save = [*(name for name in saved if name != HEAD), HEAD]


def know_tasks_of(cfg: DictConfig) -> None:
    """Let the ids of the run that `init_from` names come first.

    Raises:
        ConfigError: If the folder is no finished run's, or of another backbone.
    """
    if cfg.init_from is None:
        return
    from polylab.finished import read_generating_run, task_names

    with user_mistakes("init_from"):
        before = read_generating_run(Path(cfg.init_from))
    old, new = before.backbone.name_or_path, cfg.backbone.name_or_path
    if old != new:
        raise ConfigError(
            f"init_from={cfg.init_from}: its backbone is {old}, and this one {new} · skills belong "
            "to their backbone · give the same one"
        )
    if "known_tasks" in cfg.data:
        cfg.data.known_tasks = task_names(Path(cfg.init_from))


def build_optim(cfg: DictConfig) -> Any:
    """Check the settings of the optimiser."""
    from polylab.training import OptimConfig

    with user_mistakes("optim"):
        check_arguments(OptimConfig, cfg.optim, key="optim")
        return OptimConfig(**plain_container(cfg.optim))


def build_backbone(cfg: DictConfig) -> "Backbone":
    """Load the backbone that `cfg.backbone` names; random weights follow from `cfg.seed`."""
    import torch

    from polylab.backbones import load_backbone

    with user_mistakes("backbone"):
        check_arguments(load_backbone, cfg.backbone, key="backbone")
        if cfg.backbone.from_scratch:  # so that a finished run is read back with the weights it had
            torch.default_generator.manual_seed(cfg.seed)
        return load_backbone(**plain_container(cfg.backbone))


@dataclass(frozen=True)
class ReadTasks:
    """A source whose tasks have been read already."""

    tasks: Any

    def __call__(self) -> Any:
        """Return the tasks."""
        return self.tasks


def read_tasks(cfg: DictConfig) -> ReadTasks | None:
    """Read the tasks of `cfg.data.source`, if the data module has one."""
    if "source" not in cfg.data:
        return None
    source = build_source(cfg.data)
    with user_mistakes("data"):
        if cfg.data.get("cache") is None:
            return ReadTasks(source())
        from polylab.data.cache import cached_tasks

        return ReadTasks(cached_tasks(source, cfg.data.cache))


def build_source(data: DictConfig) -> Any:
    """Make the source that `data` describes: its own, or one of several."""
    if "sources" not in data:
        return build(data.source, key="data.source")
    from polylab.data import Combined, Part

    parts = {}
    for name, given in data.sources.items():
        key = f"data.sources.{name}"
        if not OmegaConf.is_dict(given) or "data" not in given:
            raise ConfigError(f"{key}: it has no option · give {key}.data=OPTION, as data=OPTION")
        settings = plain_container(given)
        option, weight = settings.pop("data"), settings.pop("weight", 1.0)
        source = build(composed_data(option, settings, key=key).source, key=key)
        parts[str(name)] = Part(source, weight)
    with user_mistakes(""):
        return Combined(parts, data.prefix)


def composed_data(option: str, settings: Mapping[str, Any], *, key: str) -> DictConfig:
    """Return the option of the group `data` with some of its keys set.

    Raises:
        ConfigError: If there is no such option or key, or a value is missing.
    """
    from hydra import compose
    from hydra.errors import HydraException

    try:
        data = compose("train", [f"data={option}"]).data
        for name, value in settings.items():
            OmegaConf.update(data, name, value, merge=True)
        OmegaConf.resolve(data)
        OmegaConf.to_container(data, throw_on_missing=True)
        return data
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {explain(error)}") from error


def build_data(
    cfg: DictConfig,
    backbone: "Backbone",
    *,
    source: ReadTasks | None,
    known_labels: Mapping[str, Sequence[str]] | None = None,
) -> "LightningDataModule":
    """Make the data module that `cfg.data` describes; `known_labels` are a finished run's."""
    node = _data_node(cfg)
    parts: dict[str, Any] = {
        "tokenizer": backbone.tokenizer,
        "is_encoder_decoder": backbone.is_encoder_decoder,
        "is_encoder": backbone.is_encoder,
        "known_labels": known_labels,
        "seed": cfg.seed,
    }
    if source is not None:
        del node["source"]
        parts["source"] = source
    return build(node, key="data", parts=parts)


def build_model(cfg: DictConfig, backbone: "Backbone", *, task_names: list[str]) -> "nn.Module":
    """Freeze the backbone and inject the adapter; without one return the backbone as it is."""
    if cfg.adapter is None:
        return backbone.model
    from polylab import PolyConfig, get_peft_model

    with user_mistakes("adapter"):
        check_arguments(PolyConfig, cfg.adapter, key="adapter")
        config = PolyConfig(
            **plain_container(cfg.adapter), n_tasks=len(task_names), task_names=task_names
        )
        if cfg.init_from is None:
            return get_peft_model(backbone.model, config)
        from polylab.warm_start import warm_started

        return warm_started(backbone.model, config, Path(cfg.init_from))


def check_packing(cfg: DictConfig, model: "nn.Module") -> None:
    """Refuse packed rows for a model that does not keep their examples apart."""
    if not cfg.data.get("packing"):
        return
    from polylab.poly.packable import check_packable

    with user_mistakes("data.packing=true"):
        check_packable(model)  # type: ignore[arg-type]


def build_callbacks(cfg: DictConfig, parts: Mapping[str, Any]) -> "list[Callback]":
    """Build the callbacks in their order; one that is null is left out."""
    nodes = (cfg.callbacks or {}).items()
    return [build(node, key=f"callbacks.{name}", parts=parts) for name, node in nodes if node]


def _check_nodes(cfg: DictConfig) -> None:
    check_targets(_data_node(cfg), key="data")
    check_targets(cfg.module, key="module")
    check_targets(cfg.callbacks, key="callbacks")


def _try_out(module: "LightningModule", data: "LightningDataModule", trainer: "Trainer") -> None:
    """Do now what `fit` would refuse later, when the tracker has started and files are written."""
    from polylab.training import PolyModule

    data.trainer = module.trainer = trainer
    with user_mistakes("data"):
        data.prepare_data()
        data.setup("fit")
        data.train_dataloader()
    if isinstance(module, PolyModule):
        with user_mistakes("trainer.strategy"):
            module.check_strategy()
    with user_mistakes("optim"):
        module.configure_optimizers()


def _data_node(cfg: DictConfig) -> DictConfig:
    plain = plain_container(cfg.data)
    return OmegaConf.create({k: v for k, v in plain.items() if k not in SOURCE_KEYS})
