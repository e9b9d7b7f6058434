"""Random items for the tasks of the mixture."""

import random

from polylab.data.mixture.vocabulary import LARGEST_NUMBER, NOUNS, is_reserved, plural


def sample_items(
    rng: random.Random, *, skills: frozenset[str], items: str, n_items: int
) -> tuple[str, ...]:
    """Draw `n_items` words or numbers; where `judge` is asked, yes and no are equally likely."""
    if items == "number":
        return _numbers(rng, n_items)
    words = rng.sample(NOUNS, n_items)
    if "judge" in skills:
        change = plural if "plural" in skills else str.upper
        words = [change(word) if rng.random() < 0.5 else word for word in words]
    return tuple(words)


def _numbers(rng: random.Random, n_items: int) -> tuple[str, ...]:
    if n_items == 1:
        return (str(rng.randrange(10, LARGEST_NUMBER + 1)),)
    while True:
        numbers = rng.sample(range(10, LARGEST_NUMBER + 1), n_items)
        if is_reserved(*numbers):
            return tuple(map(str, numbers))
