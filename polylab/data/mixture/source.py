"""The embedded FLAN-style mixture: 27 tasks of eight latent skills, made anew in every run."""

import hashlib
import random
from dataclasses import dataclass

from polylab.data.example import Example
from polylab.data.mixture.contents import sample_items
from polylab.data.mixture.recipes import HELD_OUT, TRAIN, Recipe
from polylab.data.mixture.skills import SKILLS, solve
from polylab.data.tasks import TaskCollection, TaskData

# Splits are decided by the content alone, alike for all tasks, so that nothing leaks between them.
_TEST_SHARE, _VALIDATION_SHARE = 0.15, 0.10


@dataclass(frozen=True)
class MixtureSource:
    """Generates the embedded mixture; the same arguments give the same rows on any machine.

    Args:
        tasks: `train` (27 tasks), `held_out` (8 new combinations of the same skills), or `judge`
            (the 4 of `train` that choose between yes and no).
        size: Multiplies the number of training rows of every task.
        n_validation: Rows of the validation split a task.
        n_test: Rows of the test split a task.
        seed: Chooses the rows.

    Raises:
        ValueError: If `tasks` is not one of the sets or a size is not positive.
    """

    tasks: str = "train"
    size: float = 1.0
    n_validation: int = 32
    n_test: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.tasks not in ("train", "held_out", "judge"):
            raise ValueError(
                f"data.source.tasks={self.tasks!r} is no set of the mixture: use train, held_out "
                "or judge."
            )
        for name in ("size", "n_validation", "n_test"):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.source.{name}={getattr(self, name)} must be positive.")

    def __call__(self) -> TaskCollection:
        """All tasks with their rows and the true skills of each."""
        recipes = HELD_OUT if self.tasks == "held_out" else TRAIN
        if self.tasks == "judge":
            recipes = {name: recipe for name, recipe in TRAIN.items() if "judge" in recipe.skills}
        tasks = [self._make_task(name, recipes[name]) for name in sorted(recipes)]
        skills = {
            name: tuple(s for s in SKILLS if s in recipes[name].skills) for name in sorted(recipes)
        }
        return TaskCollection(tasks, skills=skills)

    def _make_task(self, name: str, recipe: Recipe) -> TaskData:
        rng = random.Random(f"{self.seed}/{name}")
        wanted = {
            "train": max(1, round(recipe.size * self.size)),
            "validation": self.n_validation,
            "test": self.n_test,
        }
        splits: dict[str, list[Example]] = {split: [] for split in wanted}
        seen: set[tuple[str, ...]] = set()
        # Single items run out before the wish is met: stop when new rows have become rare.
        for _ in range(20 * sum(wanted.values())):
            if all(len(splits[s]) == wanted[s] for s in wanted):
                break
            items = sample_items(
                rng, skills=recipe.skills, items=recipe.items, n_items=recipe.n_items
            )
            split = split_of(items)
            if len(splits[split]) < wanted[split] and items not in seen:
                seen.add(items)
                splits[split].append(_example(rng, recipe, items))
        return TaskData(name, splits["train"], splits["validation"], splits["test"])


def split_of(items: tuple[str, ...]) -> str:
    """`train`, `validation` or `test`: by a hash of the items, in any order and case."""
    key = " ".join(sorted(item.lower() for item in items)).encode()
    share = int.from_bytes(hashlib.sha256(key).digest()[:4], "big") / 2**32
    if share < _TEST_SHARE:
        return "test"
    return "validation" if share < _TEST_SHARE + _VALIDATION_SHARE else "train"


def _example(rng: random.Random, recipe: Recipe, items: tuple[str, ...]) -> Example:
    template = rng.choice(recipe.templates)
    return Example(
        input=" ".join(items),
        target=solve(recipe.skills, items),
        options=("yes", "no") if "judge" in recipe.skills else None,
        instruction=template.format(**dict(zip("ab", items, strict=False))),
    )
