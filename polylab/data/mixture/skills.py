"""The latent skills of the embedded mixture, and what a set of them makes of the items of a task.

Every task is a *set* of skills, applied in the fixed order of `SKILLS`:

    read     of a short report, keep the thing that came last
    compare  keep the one that comes first: the smaller number, the earlier word
    tenfold  multiply by ten
    plural   give the noun its plural
    initial  keep the first letter
    reverse  write it backwards
    upper    write it in capital letters
    judge    say yes or no: is it a plural, is it in capitals (by the other skill) already?
"""

from polylab.data.mixture.vocabulary import PLURALS, plural

SKILLS = ("read", "compare", "tenfold", "plural", "initial", "reverse", "upper", "judge")


def solve(skills: frozenset[str], items: tuple[str, ...]) -> str:
    """The target of a task with these `skills` for these `items` (words or numbers, as text)."""
    value = _chosen(skills, items)
    if "judge" in skills:
        return "yes" if is_so_already(skills, value) else "no"
    if "tenfold" in skills:
        value += "0"
    if "plural" in skills:
        value = plural(value)
    if "initial" in skills:
        value = value[0]
    if "reverse" in skills:
        value = value[::-1]
    return value.upper() if "upper" in skills else value


def is_so_already(skills: frozenset[str], value: str) -> bool:
    """What `judge` asks: whether `plural` or `upper`, whichever is beside it, holds of `value`."""
    return value in PLURALS if "plural" in skills else value.isupper()


def _chosen(skills: frozenset[str], items: tuple[str, ...]) -> str:
    if "read" in skills:
        return items[-1]
    if "compare" in skills:
        return min(items, key=lambda item: (int(item), "") if item.isdigit() else (0, item))
    if len(items) != 1:
        raise ValueError(
            f"skills {sorted(skills)} do not say which of the items {items} is meant: "
            "add read or compare, or give one item."
        )
    return items[0]
