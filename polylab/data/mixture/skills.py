"""The latent skills of the embedded mixture, and what a set of them makes of the items of a task.

Every task is a *set* of skills, applied in the fixed order of `SKILLS`:

    read     of a short report, keep the thing that came last
    compare  keep the one that comes first: the smaller number, the earlier word
    add      one more
    plural   give the noun its plural
    initial  keep the first letter
    reverse  write it backwards
    upper    write it in capital letters
    judge    say yes or no to what the other skill would do: is it so already?
"""

from collections.abc import Callable

from polylab.data.mixture.vocabulary import plural

SKILLS = ("read", "compare", "add", "plural", "initial", "reverse", "upper", "judge")


def solve(skills: frozenset[str], items: tuple[str, ...]) -> str:
    """The target of a task with these `skills` for these `items` (words or numbers, as text)."""
    if "judge" in skills:
        (asked,) = skills - {"judge"}
        return "yes" if JUDGEMENTS[asked](items) else "no"
    value = _chosen(skills, items)
    if "add" in skills:
        value = str(int(value) + 1)
    if "plural" in skills:
        value = plural(value)
    if "initial" in skills:
        value = value[0]
    if "reverse" in skills:
        value = value[::-1]
    return value.upper() if "upper" in skills else value


def order(item: str) -> tuple[int, str]:
    """What `compare` sorts by."""
    return (int(item), "") if item.isdigit() else (0, item)


# What `judge` is asked about, by the skill beside it.
JUDGEMENTS: dict[str, Callable[[tuple[str, ...]], bool]] = {
    "compare": lambda items: min(items, key=order) == items[0],
    "add": lambda items: int(items[1]) == int(items[0]) + 1,
    "plural": lambda items: items[0].endswith("s"),
    "initial": lambda items: items[0][0] == items[1][0],
    "upper": lambda items: items[0].isupper(),
}


def _chosen(skills: frozenset[str], items: tuple[str, ...]) -> str:
    if "read" in skills:
        return items[-1]
    if "compare" in skills:
        return min(items, key=order)
    if len(items) != 1:
        raise ValueError(
            f"skills {sorted(skills)} do not say which of the items {items} is meant: "
            "add read or compare, or give one item."
        )
    return items[0]
