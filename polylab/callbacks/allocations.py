"""Where callbacks get their allocations from: the routers, or what inputs were routed to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
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
from polylab.poly.sharding import is_sharded
from polylab.training.distributed import gather_objects

__all__ = ["AllocationSource", "Allocations", "ExampleRouting", "find_poly_model"]

EXAMPLES_PER_TASK = 8

Place = tuple[int, ...]
"""Of a batch: loader, number, rank."""


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


@dataclass(frozen=True)
class _Piece:
    """Examples out of one batch, padded alike, so that they can be run together."""

    place: Place
    tasks: list[int]
    inputs: dict[str, Tensor]

    def only(self, rows: list[int]) -> _Piece:
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        return _Piece(self.place, [self.tasks[i] for i in rows], inputs)


class AllocationSource:
    """The current allocations of one model, shared by all callbacks that look at it.

    A task router is read directly. An input router is asked, at the end of each validation, about
    the first `EXAMPLES_PER_TASK` inputs of every task over all ranks: one more forward pass of
    these.
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
        self._pieces: list[_Piece] = []
        self._spare: _Piece | None = None  # what a rank with less to ask asks meanwhile
        self._batches: set[Place] = set()
        self._gathered: Allocations | None = None
        self._occasion: object = None
        self._reading: Allocations | None = None
        self._readers: set[int] = set()

    def observe(self, batch: Any, *, key: Place) -> None:
        """Keep what an input router is to be asked of a validation batch; a `key` counts once."""
        if not self.is_input_routed or key in self._batches or not isinstance(batch, Mapping):
            return
        self._batches.add(key)
        prefix = "prompt_" if "prompt_ids" in batch else ""
        inputs = batch.get("prompt_ids", batch.get("input_ids"))
        if inputs is None:
            return
        mask = batch.get(f"{prefix}attention_mask")
        if prefix and mask is not None:
            inputs, mask = _padded_right(inputs, mask)
        ids = batch.get("task_ids")
        tasks = [0] * len(inputs) if ids is None or ids.dim() != 1 else ids.tolist()
        # a router may read both
        read = {"input_ids": inputs, "attention_mask": mask, "task_ids": ids}
        piece = _Piece(key, tasks, {name: t for name, t in read.items() if t is not None})
        self._spare = self._spare or piece.only([0])
        if "filler" not in batch and (rows := self._take(tasks)):
            self._pieces.append(piece.only(rows))

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

    def _ask(self, chosen: Mapping[Place, list[int]]) -> dict[str, _Sums]:
        """Sums over the chosen rows of this rank's pieces, by layer."""
        found: dict[str, _Sums] = {}
        pieces = [p.only(chosen[p.place]) for p in self._pieces if p.place in chosen]
        for piece in pieces:
            for name, w in self._model.mixing_weights(**piece.inputs).items():
                means = _row_means(w, piece.inputs.get("attention_mask"))
                sums = found.setdefault(name, _Sums())
                for task, mean, entropy in zip(piece.tasks, *means, strict=True):
                    sums.add(task, mean, entropy)
        if self._spare is not None and is_sharded(self._model):  # all ranks run as often
            most = max(Counter(place[-1] for place in chosen).values(), default=0)
            for _ in range(most - len(pieces)):
                self._model.mixing_weights(**self._spare.inputs)
        return found

    def _gather(self) -> Allocations | None:
        own = [(piece.place, piece.tasks) for piece in self._pieces]
        chosen, counts = _first([entry for part in gather_objects(own) for entry in part])
        merged: dict[str, _Sums] = {}
        for layers in gather_objects(self._ask(chosen)):
            for name, sums in layers.items():
                into = merged.setdefault(name, _Sums())
                for task, w in sums.weights.items():
                    into.add(task, w, 0.0)
                into.entropy = into.entropy + sums.entropy
        return _allocations(counts, merged) if counts else None


def _first(
    listed: Sequence[tuple[Place, list[int]]],
) -> tuple[dict[Place, list[int]], dict[int, int]]:
    """Which rows of which batches are the first of their tasks, and how many of each task."""
    chosen: dict[Place, list[int]] = {}
    counts: dict[int, int] = {}
    for place, tasks in sorted(listed):
        for row, task in enumerate(tasks):
            if counts.get(task, 0) < EXAMPLES_PER_TASK:
                counts[task] = counts.get(task, 0) + 1
                chosen.setdefault(place, []).append(row)
    return chosen, counts


def _padded_right(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that start at the first position, as in training, whatever is padded beside them."""
    order = mask.argsort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


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
