"""Finished runs, read from their folders: by the commands that start from one, and by `load`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from polylab.config.errors import ConfigError, user_mistakes
from polylab.config.files import read_json
from polylab.config.suggest import hint, listing
from polylab.parts import build_backbone, classifies

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerBase

    from polylab import PolyModel
    from polylab.backbones import Backbone
    from polylab.evaluating.study import Study

__all__ = [
    "Run",
    "find_layer",
    "label_sets",
    "load",
    "load_run",
    "read_generating_run",
    "read_run",
    "task_names",
]


@dataclass(frozen=True)
class Run:
    """A finished run, for notebooks.

    Args:
        folder: Of the run.
        config: Its whole configuration.
        tasks: Names; the index is the id.
        metrics: Its `metrics.json`.
        model: The backbone with the adapter, in evaluation mode.
        tokenizer: Of the backbone.
        labels: Of each task in the order of its classes, by name; None if the run generates.
    """

    folder: Path
    config: DictConfig
    tasks: list[str]
    metrics: dict[str, Any]
    model: "PolyModel"
    tokenizer: "PreTrainedTokenizerBase"
    labels: dict[str, list[str]] | None = None

    def allocation(self, layer: str | None = None, split: int | None = None) -> "DataFrame":
        """Which skills each task uses: mixing weights without noise, tasks x skills.

        Skills of different layers and heads have nothing to do with each other, so a mean is one
        after alignment (`polylab.poly.alignment.aligned_mean`); `attrs["agreement"]` says how well
        they agree (at most 1).

        Args:
            layer: A layer's whole name, or what is behind its last dots if that is unique; the
                aligned mean over all layers if None.
            split: A head; the aligned mean over the heads if None.

        Raises:
            ValueError: If there is no such layer or head, or the adapter is routed by the input.
        """
        from pandas import DataFrame

        from polylab.poly.alignment import aligned_mean

        weights = {name: w.float().cpu() for name, w in self.model.task_weights().items()}
        if layer is not None:
            name = find_layer(layer, list(weights))
            weights = {name: weights[name]}
        if split is not None:
            heads = min(w.shape[1] for w in weights.values())
            if not 0 <= split < heads:
                raise ValueError(f"split={split}: give a head from 0 to {heads - 1}.")
            weights = {name: w[:, split : split + 1] for name, w in weights.items()}
        mean, agreement = aligned_mean(weights)
        frame = DataFrame(mean.numpy(), index=self.tasks, columns=[*range(mean.shape[1])])
        frame.index.name, frame.columns.name = "task", "skill"
        frame.attrs["agreement"] = agreement
        return frame

    def figure(
        self, kind: str = "allocation", *, layer: str | None = None, split: int | None = None
    ) -> "Figure":
        """A picture of the routing, as the run's `figures/` has them; a notebook shows it.

        Of a run routed by the input, that of the last look in its folder.

        Args:
            kind: `allocation`, `by_layer`, `task_hierarchy`, `task_similarity` or `layers` (maps
                of single layers and heads).
            layer: As in `allocation`; all if None.
            split: A head; all if None.

        Raises:
            ValueError: If there is no such kind, layer or head, a hierarchy or similarity is asked
                for of one task, or nothing was kept of a run that is routed by the input.
        """
        from polylab.drawing import draw

        return draw(self, kind, layer=layer, split=split)

    def generate(
        self, texts: Sequence[str], *, task: str | None = None, **options: Any
    ) -> list[str]:
        """Answers to texts as the run's data has them, encoded as in training.

        Args:
            texts: Inputs, with an instruction where the run's had one (`data.prompt`).
            task: Whose routing to use; needed unless the adapter is routed by the input, or knows
                one task only.
            options: Of `generate`, over the run's own (`module.max_new_tokens`, `num_beams`).

        Raises:
            ValueError: If there is no such task, none is given where one is needed, or the run
                classifies.
        """
        from polylab.answering import answers

        return answers(self, texts, task=task, **options)

    def classify(self, texts: Sequence[str], *, task: str | None = None) -> list[dict[str, float]]:
        """Labels of texts as the run's data has them, encoded as in training.

        Args:
            texts: Inputs, with an instruction where the run's had one (`data.prompt`).
            task: Whose head (and routing) to use; needed unless there is one task only.

        Returns:
            For each text the probability of every label of the task, the most probable first.

        Raises:
            ValueError: If there is no such task, none is given where one is needed, or the run
                generates.
        """
        from polylab.answering import label_probabilities

        return label_probabilities(self, texts, task=task)

    def study(
        self,
        routings: Sequence[str] | None = None,
        *,
        split: str = "test",
        examples_per_task: int | None = 16,
        tasks: Sequence[str] | None = None,
        answers: bool = True,
        metric: str | None = None,
    ) -> "Study":
        """What changes when the routing is changed, on the same examples of the run's own data.

        As `python -m polylab.evaluate run=RUN_DIR routing=study`, but with the weights as they are
        in `model`, without mixed precision.

        Args:
            routings: Such as `["uniform", "drop:3"]`; all of a study if None. `learned` is added.
            split: `test`, `validation` or `train`.
            examples_per_task: At most so many; None is as in the run.
            tasks: Only these.
            answers: False takes the loss only, which is much cheaper.
            metric: As `metric=` of the command.

        Returns:
            With `interventions` and `knockout` as data frames, `findings()` and `figure()`.

        Raises:
            ValueError: If a routing, the split, a task or the metric is unknown, or the data are
                not there any more.
        """
        from polylab.studying import study_run

        return study_run(
            self,
            routings,
            split=split,
            examples_per_task=examples_per_task,
            tasks=tasks,
            answers=answers,
            metric=metric,
        )


def load(
    folder: str | PathLike[str], *, device: str | None = None, trust_code: bool = False
) -> Run:
    """Read a finished run back, as `polylab.load(RUN_DIR)`.

    Args:
        folder: `runs/EXPERIMENT/DATE_TIME`.
        device: Where the model goes; the CPU if None.
        trust_code: Import and run the classes (router, noise, ...) that the adapter names.

    Raises:
        ValueError: If the folder is no finished run's, or its backbone is not there any more.
    """
    place = Path(folder)
    config, names = read_run(place), task_names(place)
    model, backbone = load_run(place, config, trust_code=trust_code)
    model = model.to(device or "cpu").eval()
    metrics = read_json(place / "metrics.json")
    labels = label_sets(place, config)
    return Run(place, config, names, metrics, model, backbone.tokenizer, labels)


def find_layer(name: str, layers: Sequence[str]) -> str:
    """Return the layer of this whole name, or the only one with this end.

    Raises:
        ValueError: If there is none, or several.
    """
    found = [layer for layer in layers if layer == name or layer.endswith(f".{name}")]
    if name in layers or len(found) == 1:
        return name if name in layers else found[0]
    what = "is the end of several" if found else "is none of the layers"
    raise ValueError(
        f"layer={name!r} {what}{hint(name, layers)} · valid: {listing(found or layers)}"
    )


def read_run(folder: Path) -> DictConfig:
    """Return the configuration of a finished run with an adapter.

    Raises:
        ConfigError: If the folder is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"run={folder}: there is no such folder · give RUN_DIR of a finished run")
    path = folder / "config.yaml"
    if not path.is_file():
        jobs = sorted(file.parent for file in folder.glob("*/config.yaml"))
        instead = f"one of its jobs, run={jobs[0]}" if jobs else "runs/EXPERIMENT/DATE_TIME"
        raise ConfigError(
            f"run={folder}: it has no config.yaml, so it is no run's folder · give {instead}"
        )
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig) or not OmegaConf.is_dict(config.get("backbone")):
        raise ConfigError(f"{path} has no backbone · it must be the file that the run wrote")
    if not (folder / "adapter").is_dir():
        why = (
            "the run had none (adapter=none)"
            if config.get("adapter") is None
            else "it did not finish"
        )
        raise ConfigError(f"run={folder}: there is no adapter/ in it: {why}")
    if not (folder / "metrics.json").is_file():
        raise ConfigError(
            f"run={folder}: there is no metrics.json in it: it was stopped while it was saved · go "
            "on with python -m polylab.train ... ckpt_path=RUN_DIR/checkpoints/last.ckpt"
        )
    if "separator" in (config.get("data") or {}) and "chat" not in config.data:
        OmegaConf.update(config, "data.chat", False, force_add=True)  # older than chat templates
    return config


def read_generating_run(folder: Path) -> DictConfig:
    """Return the configuration as `read_run`, for commands that a classification is not for.

    Raises:
        ConfigError: If the folder is no finished run's, or the run classifies.
    """
    config = read_run(folder)
    if classifies(config):
        raise ConfigError(
            f"run={folder}: it classifies (module=classification); only runs that generate are "
            "adapted, exported and gone on from · python -m polylab.evaluate and polylab.load read "
            "it back"
        )
    return config


def label_sets(folder: Path, config: DictConfig) -> dict[str, list[str]] | None:
    """Return the labels of a classification's tasks, by their ids; None if the run generates.

    Raises:
        ConfigError: If the file that holds them is missing or damaged, or is of other tasks.
    """
    if not classifies(config):
        return None
    path, names = folder / "adapter" / "labels.json", task_names(folder)
    with user_mistakes(str(path)):
        found: Any = read_json(path)
        if not isinstance(found, dict) or not all(map(_is_label_set, found.values())):
            raise ValueError("an object of task names and lists of different labels is needed")
        if {*found} != {*names}:
            raise ValueError(f"its tasks are {listing(found)}, and those of tasks.json {names}")
        return {name: found[name] for name in names}


def _is_label_set(labels: Any) -> bool:
    is_list = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return is_list and len({*labels}) == len(labels) > 1


def task_names(run_folder: Path) -> list[str]:
    """Return the names of the run's tasks in the order of their ids.

    Raises:
        ConfigError: If the file that holds them is missing or damaged.
    """
    path = run_folder / "adapter" / "tasks.json"
    with user_mistakes(str(path)):
        ids: Any = read_json(path)
        if not isinstance(ids, dict):
            raise ValueError("an object of task names and ids is needed")
        return sorted(ids, key=ids.__getitem__)


def load_run(folder: Path, config: DictConfig, *, trust_code: bool) -> "tuple[PolyModel, Backbone]":
    """Load the run's backbone, and the model with its adapter and heads.

    Raises:
        ConfigError: If the backbone is not there any more, or the adapter does not fit it.
    """
    import torch

    from polylab import PolyModel
    from polylab.training.heads import add_heads

    labels = label_sets(folder, config)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is none of the caller's business
        backbone = build_backbone(config)
        if labels is not None:
            add_heads(backbone.model, [*map(len, labels.values())])
        with user_mistakes(f"run={folder}"):
            adapter = folder / "adapter"
            model = PolyModel.from_pretrained(backbone.model, adapter, trust_code=trust_code)
            return model, backbone
