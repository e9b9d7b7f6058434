"""Where callbacks get their allocations from: the routers, or what inputs were routed to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from polylab.callbacks.seen import Allocations, ExampleRouting
from polylab.poly.alike import by_shape
from polylab.poly.heads import nats
from polylab.poly.inspection import task_choices
from polylab.poly.model import PolyModel
from polylab.training.distributed import gather_objects

__all__ = ["AllocationSource", "Allocations", "ExampleRouting", "find_poly_model"]

EXAMPLES_PER_TASK = 8


def find_poly_model(module: LightningModule) -> PolyModel | None:
    """The first `PolyModel` among the module's parts, if there is one."""
    return next((part for part in module.modules() if isinstance(part, PolyModel)), None)


@dataclass
class _Sums:
    """Running sums over examples of one layer: small, whatever the number of examples."""

    weights: dict[int, Tensor] = field(default_factory=dict)  # task -> sum of w, [splits, skills]
    entropy: Tensor | float = 0.0  # nats, sum over examples, [splits]

    def add(self, task: int, weights: Tensor, entropy: Tensor | float) -> None:
        before = self.weights.get(task)
        self.weights[task] = weights if before is None else before + weights
        self.entropy = self.entropy + entropy


class AllocationSource:
    """The current allocations of one model, shared by all callbacks that look at it.

    A task router is read directly. An input router is asked, during each validation, about the
    first `EXAMPLES_PER_TASK` inputs of every task: one more forward pass of these.
    """

    _of_models: ClassVar[WeakKeyDictionary[PolyModel, AllocationSource]] = WeakKeyDictionary()

    def __init__(self, model: PolyModel) -> None:
        self._model_ref = ref(model)  # else `_of_models` would keep every model of a sweep alive
        self.reset()

    @property
    def _model(self) -> PolyModel:
        model = self._model_ref()
        assert model is not None
        return model

    @classmethod
    def of(cls, model: PolyModel) -> AllocationSource:
        """The one source of this model."""
        if model not in cls._of_models:
            cls._of_models[model] = cls(model)
        return cls._of_models[model]

    @property
    def is_input_routed(self) -> bool:
        return self._model.is_input_routed

    def reset(self) -> None:
        """Forget all examples."""
        self._counts: dict[int, int] = {}
        self._sums: dict[str, _Sums] = {}
        self._batches: set[tuple[int, int]] = set()
        self._gathered: Allocations | None = None
        self._occasion: object = None
        self._reading: Allocations | None = None
        self._readers: set[int] = set()

    def observe(self, batch: Any, *, key: tuple[int, int]) -> None:
        """Ask an input router about a validation batch; a batch `key` counts once."""
        if not self.is_input_routed or key in self._batches or not isinstance(batch, Mapping):
            return
        self._batches.add(key)
        if "filler" in batch:  # shows nothing new: only the number of batches needs it
            return
        prefix = "prompt_" if "prompt_ids" in batch else ""
        inputs = batch.get("prompt_ids", batch.get("input_ids"))
        if inputs is None:
            return
        mask = batch.get(f"{prefix}attention_mask")
        ids = batch.get("task_ids")
        tasks = [0] * len(inputs) if ids is None or ids.dim() != 1 else ids.tolist()
        rows = self._take(tasks)
        if not rows:
            return
        mixed = self._model.mixing_weights(
            input_ids=inputs[rows],
            attention_mask=None if mask is None else mask[rows],
            task_ids=None if ids is None else ids[rows],  # a router may read both
        )
        kept = [tasks[i] for i in rows]
        for name, w in mixed.items():
            self._add(name, *_row_means(w, None if mask is None else mask[rows]), tasks=kept)

    def read(self) -> Allocations | None:
        """Allocations now; None for an input router that has seen no example yet.

        To be called on all ranks together.
        """
        if self.is_input_routed:
            self._gathered = self._gathered or self._gather()
            return self._gathered
        weights, gates = _on_host(self._model.task_weights()), _on_host(self._model.task_gates())
        tasks = list(range(next(iter(weights.values())).shape[0]))
        choices = task_choices(self._model.active_layers(), self._model.active_adapter)
        return Allocations(weights, gates, tasks, choices={n: c.cpu() for n, c in choices.items()})

    def read_once(self, reader: object, occasion: Hashable) -> Allocations | None:
        """As `read`, one reading for all readers on an occasion; who asks again gets a new one.

        Raises:
            FloatingPointError: If a weight is no number: what was trained is lost. On all ranks.
        """
        if occasion != self._occasion or id(reader) in self._readers:
            self._reading, self._occasion, self._readers = self.read(), occasion, set()
            _check_finite(self._reading)
        self._readers.add(id(reader))
        return self._reading

    def _take(self, tasks: list[int]) -> list[int]:
        rows = []
        for i, task in enumerate(tasks):
            if self._counts.get(task, 0) < EXAMPLES_PER_TASK:
                self._counts[task] = self._counts.get(task, 0) + 1
                rows.append(i)
        return rows

    def _add(self, layer: str, weights: Tensor, entropies: Tensor, *, tasks: list[int]) -> None:
        sums = self._sums.setdefault(layer, _Sums())
        for task, w, entropy in zip(tasks, weights, entropies, strict=True):
            sums.add(task, w, entropy)

    def _gather(self) -> Allocations | None:
        counts: dict[int, int] = {}
        merged: dict[str, _Sums] = {}
        for theirs, layers in gather_objects((self._counts, self._sums)):
            for task, n in theirs.items():
                counts[task] = counts.get(task, 0) + n
            for name, sums in layers.items():
                into = merged.setdefault(name, _Sums())
                for task, w in sums.weights.items():
                    into.add(task, w, 0.0)
                into.entropy = into.entropy + sums.entropy
        return _allocations(counts, merged) if counts else None


def _on_host(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In float32; of all layers together, where each alone would wait for the device."""
    return by_shape(lambda stack: stack.detach().float().cpu(), layers)


def _check_finite(found: Allocations | None) -> None:
    for name, weights in () if found is None else found.weights.items():
        if not weights.isfinite().all():
            raise FloatingPointError(
                f"the routing weights of layer {name} are no numbers any more: the training has "
                "diverged · lower the learning rates, give a warm-up, clip gradients, or see "
                "whether it is the precision · go on from a checkpoint of before with ckpt_path="
            )


def _row_means(weights: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights `[rows, splits, skills]` and entropy in nats `[rows, splits]` of each row.

    A router of tokens gives `[rows, seq, splits, skills]`: means over the row's attended tokens.
    """
    w = weights.detach().double().cpu()
    if w.ndim == 3:
        return w, nats(w)
    share = torch.ones(w.shape[:2], dtype=w.dtype)
    if mask is not None and mask.shape == w.shape[:2]:
        share = mask.cpu().to(w.dtype)
    share = share / share.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bl,blqs->bqs", share, w), torch.einsum("bl,blq->bq", share, nats(w))


def _allocations(counts: dict[int, int], sums: dict[str, _Sums]) -> Allocations:
    tasks, total = sorted(counts), sum(counts.values())
    weights = {
        name: torch.stack([s.weights[t] / counts[t] for t in tasks]).float()
        for name, s in sums.items()
    }
    load = {name: torch.stack([*s.weights.values()]).sum(0) / total for name, s in sums.items()}
    entropy = {name: torch.as_tensor(s.entropy) / total for name, s in sums.items()}
    return Allocations(weights, {}, tasks, ExampleRouting(entropy, load))
