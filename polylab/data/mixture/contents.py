"""Random items for the tasks of the mixture."""

import random

from polylab.data.mixture.skills import JUDGEMENTS
from polylab.data.mixture.vocabulary import LARGEST_NUMBER, NOUNS, is_reserved, plural


def sample_items(
    rng: random.Random, *, skills: frozenset[str], items: str, n_items: int
) -> tuple[str, ...]:
    """Draw `n_items` words or numbers; where `judge` is asked, half of them make it a yes."""
    if "judge" not in skills:
        return _plain(rng, items, n_items)
    (asked,) = skills - {"judge"}
    wanted = rng.random() < 0.5
    while True:
        drawn = _for_judgement(rng, asked, items, n_items)
        if JUDGEMENTS[asked](drawn) == wanted:
            return drawn


def _plain(rng: random.Random, items: str, n_items: int) -> tuple[str, ...]:
    if items == "word":
        return tuple(rng.sample(NOUNS, n_items))
    if n_items == 1:
        return (str(rng.randrange(100, 999)),)
    while True:
        numbers = rng.sample(range(10, LARGEST_NUMBER), n_items)
        if is_reserved(*numbers):
            return tuple(map(str, numbers))


def _for_judgement(
    rng: random.Random, asked: str, items: str, n_items: int
) -> tuple[str, ...]:
    """Items among which yes and no are both common, and hard to tell apart by their looks."""
    if asked == "plural":
        noun = rng.choice(NOUNS)
        return (plural(noun) if rng.random() < 0.5 else noun,)
    if asked == "upper":
        noun = rng.choice(NOUNS)
        return (noun.upper() if rng.random() < 0.5 else noun,)
    if asked == "initial":
        first = rng.choice(NOUNS)
        alike = [noun for noun in NOUNS if noun[0] == first[0] and noun != first]
        other = rng.choice(alike) if alike and rng.random() < 0.5 else rng.choice(NOUNS)
        return first, other
    if asked == "add":
        number = rng.randrange(10, LARGEST_NUMBER)
        return str(number), str(number + rng.choice([-1, 1, 1, 10]))
    return _plain(rng, items, n_items)
