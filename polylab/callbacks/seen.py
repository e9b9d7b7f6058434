"""The allocations of one moment, and their statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from polylab.poly.heads import (
    density_by_head,
    effective_skills_by_head,
    entropy_by_head,
    nats,
    usage_by_head,
    usage_entropy_by_head,
    z_entropy_by_head,
)
from polylab.poly.statistics import mean_over_heads, overall, routing_mutual_information

__all__ = ["Allocations", "ExampleRouting"]

Heads = dict[str, Float[Tensor, " splits"]]
Layers = dict[str, Float[Tensor, "rows splits skills"]]


@dataclass(frozen=True)
class ExampleRouting:
    """Statistics of an input router that need single examples; means per task do not give them.

    Args:
        nats: Mean entropy of an example's weights, in nats.
        load: Each skill's share of the weight of all examples; rows sum to 1.
    """

    nats: Heads
    load: dict[str, Float[Tensor, "splits skills"]]

    @property
    def entropy(self) -> Heads:
        """1 = uniform, also with a single skill."""
        skills = {name: load.shape[-1] for name, load in self.load.items()}
        return {
            name: own / math.log(skills[name]) if skills[name] > 1 else torch.ones_like(own)
            for name, own in self.nats.items()
        }

    @property
    def mutual_information(self) -> float:
        """Between example and skill, in nats."""
        return overall({name: nats(load) - self.nats[name] for name, load in self.load.items()})

    @property
    def max_load(self) -> float:
        """Largest load x S, mean over heads and layers: 1 = even, S = one skill has all of it."""
        return overall({n: load.amax(-1) * load.shape[-1] for n, load in self.load.items()})


@dataclass(frozen=True)
class Allocations:
    """Which skills each task uses, on the CPU.

    Args:
        weights: `{layer: [rows, splits, skills]}`, normalised. For an input router the mean over
            the task's examples.
        gates: The same before normalisation; empty where the router has no sigmoid.
        task_ids: Of the rows; all tasks, or those of which an example was seen.
        examples: For input routers.
        choices: Where a task may use a part of the skills only (C-Poly's private ones are each of
            one task): which, by layer; in the same order for all tasks. Empty where it may use all.
    """

    weights: Layers
    gates: Layers
    task_ids: list[int]
    examples: ExampleRouting | None = None
    choices: dict[str, Int64[Tensor, "rows usable"]] = field(default_factory=dict)

    @property
    def n_skills(self) -> int:
        return next(iter(self.weights.values())).shape[2]

    @cached_property
    def open_weights(self) -> Layers:
        """The weights of the skills that a task may use.

        For C-Poly the shared ones, and then the task's own: the column of a private skill is that
        of every task's own one. Entropies are those of a choice among these; over the whole bank a
        task that uses all it may would look like one that picks a few of very many.
        """
        return self._open(self.weights)

    @cached_property
    def open_gates(self) -> Layers:
        """The same of the gates."""
        return self._open(self.gates)

    @property
    def used(self) -> Layers:
        """What usage is counted on: the open gates; the weights of a router without them."""
        return self.open_gates or self.open_weights

    @cached_property
    def heads(self) -> dict[str, Heads]:
        """By the names of `routing.csv`'s columns; no `discreteness` and `density` without gates.

        `entropy` is that of single examples for input routers.
        """
        usage = usage_by_head(self.used)
        found = {
            "entropy": self.examples.entropy
            if self.examples
            else entropy_by_head(self.open_weights)
        }
        if self.gates:
            bits = z_entropy_by_head(self.open_gates)
            found["discreteness"] = {name: 1 - own for name, own in bits.items()}
            found["density"] = density_by_head(self.open_gates)
        found["usage_entropy"] = usage_entropy_by_head(usage)
        found["effective_skills"] = effective_skills_by_head(usage)
        return found

    def layer_entropy(self) -> dict[str, float]:
        return mean_over_heads(self.heads["entropy"])

    def entropy(self) -> float:
        return overall(self.heads["entropy"])

    def mutual_information(self) -> float:
        """Between example (task router: task) and skill, in nats."""
        return self.examples.mutual_information if self.examples else self.task_information()

    def task_information(self) -> float:
        """`H(mean_t w_t) - mean_t H(w_t)` in nats: between task and skill, over the whole bank.

        For an input router `w_t` is the mean over the task's examples; what `mutual_information`
        has beyond it tells examples of one task apart.
        """
        return routing_mutual_information(self.weights)

    def equals(self, other: Allocations | None) -> bool:
        """Whether nothing has moved, bit for bit."""
        return (
            other is not None
            and self.task_ids == other.task_ids
            and self.weights.keys() == other.weights.keys()
            and all(torch.equal(w, other.weights[name]) for name, w in self.weights.items())
        )

    def _open(self, layers: Layers) -> Layers:
        return {
            name: layer.gather(2, self.choices[name][:, None].expand(-1, layer.shape[1], -1))
            if name in self.choices
            else layer
            for name, layer in layers.items()
        }
