"""Finished runs for notebooks: `polylab.load(RUN_DIR)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from polylab.config.files import read_json
from polylab.config.suggest import hint, listing
from polylab.finished import label_sets, load_run, read_run, task_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerBase

    from polylab import PolyModel
    from polylab.evaluating.study import Study

__all__ = ["Run", "find_layer", "load"]


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
