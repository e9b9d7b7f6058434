"""Classification: an encoder with a head per task, in the LightningModule of generation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polylab.training.evaluation import CLASS_METRICS
from polylab.training.files import write_atomically
from polylab.training.heads import HEAD
from polylab.training.losses import IGNORED, ExampleLosses
from polylab.training.module import STATE_KEY, PolyModule
from polylab.training.optim import OptimConfig

if TYPE_CHECKING:
    from polylab.poly import PolyModel

__all__ = ["ClassificationModule", "class_logits", "encoder_output"]


def encoder_output(model: PolyModel, batch: Mapping[str, Any]) -> Any:
    """What the adapted encoder makes of a batch, with its `last_hidden_state`."""
    mask = batch["attention_mask"]
    return model(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        task_ids=batch["task_ids"],
        prompt_mask=mask.bool(),
    )


def class_logits(
    model: PolyModel, hidden: Float[Tensor, "batch seq d"], batch: Mapping[str, Any]
) -> Float[Tensor, "batch labels"]:
    """Logits of the head of each row's task, from the encoder's last hidden states."""
    heads = model.get_base_model().get_submodule(HEAD)
    return heads(hidden, batch["attention_mask"], batch["task_ids"])


class ClassificationModule(PolyModule):
    """Trains the adapter of an encoder and a head per task (`heads.TaskHeads`, `optim.other_lr`).

    The loss is an example's cross-entropy over its task's labels. Keys are `PolyModule`'s, with
    `accuracy`, and `exact_match`, which is the same number: the label's text is a reference; and
    `macro_f1` (`metrics.PerTaskMacroF1`), a mean over the task's labels.
    """

    text_metrics = CLASS_METRICS
    is_shardable = False  # a task's head is called by itself

    def __init__(
        self,
        model: PolyModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task_names: Sequence[str],
        label_sets: Sequence[Sequence[str]],
        optim: OptimConfig | Mapping[str, Any] | None = None,
        seed: int = 0,
        max_logged_tasks: int = 64,
        predictions_per_task: int | None = 16,
        categories: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Wrap `model`, whose base has the heads (`heads.add_heads`) among `modules_to_save`.

        Args:
            model: The adapted encoder.
            tokenizer: Of the encoder.
            task_names: Position is task id.
            label_sets: Each task's labels in the order of its classes.
            optim: Fields of `OptimConfig`, or one.
            seed: Of the router's keyed noise.
            max_logged_tasks: Only the first so many tasks have keys of their own in the logs.
            predictions_per_task: How many to keep of each task and split; all if None.
            categories: Of tasks, as `PolyModule`.
        """
        super().__init__(
            model,
            tokenizer,
            task_names=task_names,
            optim=optim,
            seed=seed,
            max_logged_tasks=max_logged_tasks,
            predictions_per_task=predictions_per_task,
            categories=categories,
        )
        self.label_sets = [list(labels) for labels in label_sets]
        for split in self._evaluations:
            self._evaluation(split).count_classes(self.label_sets)

    def example_losses(self, batch: dict[str, Any]) -> ExampleLosses:
        output = encoder_output(self.model, batch)
        hidden, labels = output.last_hidden_state, batch["labels"][:, 0]
        losses = F.cross_entropy(
            class_logits(self.model, hidden, batch), labels, ignore_index=IGNORED, reduction="none"
        )
        prior = getattr(output, "prior_loss", None)
        return ExampleLosses(losses, (labels != IGNORED).long(), prior, hidden)

    def generate_texts(self, batch: dict[str, Any], *, encoded: Tensor | None = None) -> list[str]:
        """The label of each row with the highest logit."""
        hidden = self.example_losses(batch).encoded if encoded is None else encoded
        assert hidden is not None
        best = class_logits(self.model, hidden, batch).argmax(1).tolist()
        rows = zip(batch["task_ids"].tolist(), best, strict=True)
        return [self.label_sets[task][label] for task, label in rows]

    def save_labels(self, path: Path) -> None:
        """Write each task's labels in the order of its classes, as JSON."""
        named = dict(zip(self.task_names, self.label_sets, strict=True))
        text = json.dumps(named, indent=1, ensure_ascii=False)
        write_atomically(path, lambda file: file.write(text.encode()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As `PolyModule`, and the labels."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE_KEY]["label_sets"] = self.label_sets

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As `PolyModule`.

        Raises:
            ValueError: Also if a task's labels are not those of the checkpoint.
        """
        saved = checkpoint[STATE_KEY].get("label_sets", [])
        for name, before, now in zip(self.task_names, saved, self.label_sets, strict=False):
            if before != now:
                raise ValueError(
                    f"task {name!r}: its labels are {before} in the checkpoint and {now} in the "
                    "data · classes would mean something else · use the data of the run."
                )
        super().on_load_checkpoint(checkpoint)
