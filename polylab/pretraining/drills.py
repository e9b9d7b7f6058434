"""What pretraining practises: string and number operations, asked for by code.

A drill is a *set* of operations, applied in the fixed order of `OPERATIONS`:

    read     replace each name by what the note says of it
    add      replace each two numbers by their sum
    compare  keep the one that comes first: the smaller number, the earlier word
    plural   give the noun its plural
    reverse  write it backwards
    upper    write it in capital letters
    judge    say whether the claim equals the result

Words are nonsense and number pairs those that the mixture leaves (`is_reserved`), so that
pretraining never sees an input of the mixture.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from polylab.data.mixture.vocabulary import LARGEST_NUMBER, NOUNS, is_reserved, plural

OPERATIONS = ("read", "add", "compare", "plural", "reverse", "upper", "judge")
N_FACTS = 3

# Words of the mixture's instructions that are kept out of the nonsense, beside all its nouns.
_KEPT_OUT = """
add all alphabet and ann answer are backwards become belongs beside bob by called capital capitals
case come compute count dan dictionary digit digits do does earlier equal eve fay find first from
get give gus hal has have how in into is it its ivy jim kay last left leo less lower make many max
more name ned no note noun now number numbers of one or own pam plural plus poorer print ray read
reads reverse right say several shout smaller sort spell spelled stands sue sum sums tell the then
there thing to together tom turn two una upper use vic what which words write written yes you zoe
""".split()

# fmt: off
# ruff: noqa: SIM905
_ONSETS = """
b c ch d f g h j k l m n p qu r s sh t th v w z bl br cl cr dr fl fr gl gr pl pr sl
sp st str sw tr tw wh sk sn sc
""".split()
_ONSETS += [""] * 4
_VOWELS = "a e i o u a e i o u ai ea ee oa oo ou ow ie".split()
_CODAS = """
b ch ck d g k l ll m n nd ng nt p r rd rk rm rn rt s sh ss st t th x y er le et ow
""".split()
_CODAS += ["", "e", "y", "el", "in", "on"]
# fmt: on
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Content:
    """What one line is about: `items`, the facts of a `note` for `read`, a `claim` for `judge`."""

    items: tuple[str, ...]
    note: tuple[tuple[str, str], ...] = ()
    claim: str = ""


@dataclass(frozen=True)
class Drill:
    """One thing to practise: a set of operations and the kind and number of its items."""

    operations: frozenset[str]
    items: str
    n_items: int


def all_drills() -> list[Drill]:
    """Every set of operations that makes sense together, copies (no operation) included."""
    drills = []
    for flags in itertools.product((False, True), repeat=len(OPERATIONS)):
        chosen = frozenset(o for o, on in zip(OPERATIONS, flags, strict=True) if on)
        if "add" not in chosen:
            drills.append(Drill(chosen, "word", 2 if "compare" in chosen else 1))
        crowded = {"add", "compare", "read"} <= chosen  # a note holds three facts, not four
        if not chosen & {"plural", "upper"} and not crowded:
            n_items = 1 + ("add" in chosen or "compare" in chosen)
            n_items = 4 if {"add", "compare"} <= chosen else n_items
            drills.append(Drill(chosen, "number", n_items))
    return drills


def solve(drill: Drill, content: Content) -> str:
    """The target of a drill for this content."""
    result = result_of(drill.operations, content.items, dict(content.note))
    if "judge" in drill.operations:
        return "yes" if content.claim == result else "no"
    return result


def result_of(operations: frozenset[str], items: tuple[str, ...], note: dict[str, str]) -> str:
    """What the operations make of the items, before `judge`."""
    values = [note[item] for item in items] if "read" in operations else list(items)
    if "add" in operations:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [str(int(a) + int(b)) for a, b in pairs]
    if "compare" in operations:
        values = [min(values, key=lambda v: (int(v), "") if v.isdigit() else (0, v))]
    (value,) = values
    if "plural" in operations:
        value = plural(value)
    if "reverse" in operations:
        value = value[::-1]
    return value.upper() if "upper" in operations else value


def sample_content(rng: random.Random, drill: Drill) -> Content:
    """Draw items, a note where `read` needs one, a claim (half of them true) for `judge`."""
    values = _values(rng, drill)
    asked, note = values, ()
    if "read" in drill.operations:
        asked, note = _take_note(rng, values, drill.items)
    if "judge" not in drill.operations:
        return Content(asked, note)
    truth = result_of(drill.operations, asked, dict(note))
    content = Content(asked, note)
    true = rng.random() < 0.5
    return Content(asked, note, truth if true else _false_claim(rng, drill, content, truth))


@cache
def kept_out() -> frozenset[str]:
    """The mixture's nouns and their plurals, words of its instructions, and all these reversed."""
    words = {*NOUNS, *map(plural, NOUNS), *_KEPT_OUT}
    return frozenset(words | {w[::-1] for w in words})


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable nonsense noun of 3 to 8 letters, or random letters."""
    while True:
        word = _letters(rng, 3, 7) if rng.random() < 0.2 else _syllables(rng)
        if 3 <= len(word) <= 8 and word not in kept_out():
            return word


def filler(rng: random.Random) -> str:
    """A word that means nothing and is to be passed over."""
    word = _fresh(rng, 1, 8)
    if rng.random() < 0.2:
        word = word.capitalize()
    return word + rng.choice(".,?:;") if rng.random() < 0.2 else word


def _fresh(rng: random.Random, shortest: int, longest: int) -> str:
    while True:
        word = _letters(rng, shortest, longest)
        if word not in kept_out():
            return word


def _letters(rng: random.Random, shortest: int, longest: int) -> str:
    return "".join(rng.choices(_ALPHABET, k=rng.randint(shortest, longest)))


def _syllables(rng: random.Random) -> str:
    word = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    if rng.random() < 0.6:
        word += rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    return word


def _values(rng: random.Random, drill: Drill) -> tuple[str, ...]:
    if drill.items == "word":
        return _distinct(rng, pseudo_word, drill.n_items)
    if drill.n_items == 1:
        return (str(rng.randint(1, LARGEST_NUMBER)),)
    return tuple(n for _ in range(drill.n_items // 2) for n in _pair(rng))


def _pair(rng: random.Random) -> tuple[str, str]:
    while True:
        a, b = rng.randint(1, LARGEST_NUMBER), rng.randint(1, LARGEST_NUMBER)
        if not is_reserved(a, b):
            return str(a), str(b)


def _distinct(rng: random.Random, draw: Callable[[random.Random], str], n: int) -> tuple[str, ...]:
    found: list[str] = []
    while len(found) < n:
        candidate = draw(rng)
        if candidate not in found:
            found.append(candidate)
    return tuple(found)


def _take_note(
    rng: random.Random, values: tuple[str, ...], items: str
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    names = _distinct(rng, lambda r: _fresh(r, 3, 4), N_FACTS)
    spare = [
        str(rng.randint(1, LARGEST_NUMBER)) if items == "number" else pseudo_word(rng)
        for _ in range(N_FACTS - len(values))
    ]
    note = list(zip(names, [*values, *spare], strict=True))
    rng.shuffle(note)
    return names[: len(values)], tuple(note)


def _false_claim(rng: random.Random, drill: Drill, content: Content, truth: str) -> str:
    """A near miss: another item's result where there is one, else a small change."""
    operations, note = drill.operations, dict(content.note)
    candidates: list[str] = []
    if "read" in operations and len(content.items) == 1:
        others = [name for name, _ in content.note if name not in content.items]
        candidates = [result_of(operations, (name,), note) for name in others]
    elif "compare" in operations and "add" not in operations:
        rest = operations - {"compare"}
        candidates = [result_of(rest, (item,), note) for item in content.items]
    candidates = [c for c in candidates if c != truth]
    if candidates:
        return rng.choice(candidates)
    return _near_number(rng, truth) if truth.isdigit() else _near_word(rng, drill, truth)


def _near_number(rng: random.Random, truth: str) -> str:
    near = int(truth) + rng.choice([-10, -1, 1, 10])
    return str(near if near >= 0 else int(truth) + 1)


def _near_word(rng: random.Random, drill: Drill, truth: str) -> str:
    if "plural" in drill.operations and "reverse" not in drill.operations:
        stem = truth.removesuffix("s")
        wrong = stem + "es" if not stem.endswith("e") else stem[:-1] + "s"
        return wrong if wrong != truth else stem
    for _ in range(20):
        i = rng.randrange(len(truth) - 1)
        swapped = truth[:i] + truth[i + 1] + truth[i] + truth[i + 2 :]
        if swapped != truth:
            return swapped
    return truth + truth[-1]
