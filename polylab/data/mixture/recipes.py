"""The tasks of the embedded mixture: their skills, sizes and instructions.

A template is one way to ask for a task; `{a}` and `{b}` are the items.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One task.

    Attributes:
        skills: What it is made of.
        items: `word` or `number`.
        n_items: How many items an example has.
        size: Wished number of training rows; a task of single words may have fewer.
        templates: Instructions with the items in them.
    """

    skills: frozenset[str]
    items: str
    n_items: int
    size: int
    templates: tuple[str, ...]


def _recipe(skills: str, items: str, n_items: int, size: int, templates: str) -> Recipe:
    lines = tuple(line.strip() for line in templates.strip().splitlines())
    return Recipe(frozenset(skills.split()), items, n_items, size, lines)


TRAIN = {
    "plural_noun": _recipe(
        "plural",
        "word",
        1,
        300,
        """
        What is the plural of "{a}"?
        There are several of "{a}": give the noun.
        Make "{a}" plural.
        One "{a}", two what?
        """,
    ),
    "spell_backwards": _recipe(
        "reverse",
        "word",
        1,
        300,
        """
        Spell "{a}" backwards.
        Write the letters of "{a}" from last to first.
        Reverse "{a}".
        How does "{a}" read from right to left?
        """,
    ),
    "capital_letters": _recipe(
        "upper",
        "word",
        1,
        300,
        """
        Write "{a}" in capital letters.
        Shout "{a}".
        Print "{a}" all in capitals.
        Turn "{a}" into upper case.
        """,
    ),
    "first_letter": _recipe(
        "initial",
        "word",
        1,
        300,
        """
        What is the first letter of "{a}"?
        How does "{a}" begin?
        Give the initial of "{a}".
        Name the letter that "{a}" starts with.
        """,
    ),
    "ten_times": _recipe(
        "tenfold",
        "number",
        1,
        300,
        """
        What is {a} times ten?
        Multiply {a} by ten.
        You have ten bags of {a}. How many in all?
        Give the tenfold of {a}.
        """,
    ),
    "plural_capitals": _recipe(
        "plural upper",
        "word",
        1,
        300,
        """
        Write the plural of "{a}" in capital letters.
        Shout the plural of "{a}".
        One "{a}", two what? Use upper case.
        Make "{a}" plural, all in capitals.
        """,
    ),
    "backwards_capitals": _recipe(
        "reverse upper",
        "word",
        1,
        300,
        """
        Spell "{a}" backwards in capital letters.
        Reverse "{a}" and shout it.
        Write "{a}" from right to left in upper case.
        Print "{a}" in capitals, last letter first.
        """,
    ),
    "plural_backwards": _recipe(
        "plural reverse",
        "word",
        1,
        300,
        """
        Spell the plural of "{a}" backwards.
        Make "{a}" plural, then reverse it.
        Write the plural of "{a}" from last letter to first.
        One "{a}", two what? Answer from right to left.
        """,
    ),
    "initial_capital": _recipe(
        "initial upper",
        "word",
        1,
        300,
        """
        What is the first letter of "{a}", as a capital?
        How does "{a}" begin? Use upper case.
        Shout the initial of "{a}".
        The letter that "{a}" starts with, in capitals.
        """,
    ),
    "dictionary_order": _recipe(
        "compare",
        "word",
        2,
        3000,
        """
        Which is first in order, "{a}" or "{b}"?
        By the alphabet, "{a}" or "{b}"?
        Sort "{a}" and "{b}" and name the first.
        Name the earlier of the words "{a}" and "{b}".
        """,
    ),
    "dictionary_capitals": _recipe(
        "compare upper",
        "word",
        2,
        1500,
        """
        First in order, "{a}" or "{b}"? Use capitals.
        Sort "{a}" and "{b}" and shout the first.
        The earlier of "{a}" and "{b}" in capital letters.
        By the alphabet, "{a}" or "{b}"? Upper case.
        """,
    ),
    "dictionary_backwards": _recipe(
        "compare reverse",
        "word",
        2,
        1500,
        """
        Spell the earlier of "{a}" and "{b}" backwards.
        Sort "{a}" and "{b}" and reverse the first.
        First in order, "{a}" or "{b}"? From right to left.
        By the alphabet, "{a}" or "{b}"? Last letter first.
        """,
    ),
    "dictionary_plural": _recipe(
        "compare plural",
        "word",
        2,
        1500,
        """
        Give the plural of the earlier of "{a}" and "{b}".
        Sort "{a}" and "{b}" and make the first plural.
        First in order, "{a}" or "{b}"? Say its plural.
        By the alphabet, "{a}" or "{b}"? Several of it.
        """,
    ),
    "smaller_number": _recipe(
        "compare",
        "number",
        2,
        1500,
        """
        Which is less, {a} or {b}?
        Give the smaller of {a} and {b}.
        Sort {a} and {b} and name the first.
        Of {a} and {b}, which number is lower?
        """,
    ),
    "smaller_ten_times": _recipe(
        "compare tenfold",
        "number",
        2,
        1500,
        """
        What is ten times the smaller of {a} and {b}?
        Multiply the lower of {a} and {b} by ten.
        Which is less, {a} or {b}? Ten times that.
        Sort {a} and {b} and take ten of the first.
        """,
    ),
    "smaller_backwards": _recipe(
        "compare reverse",
        "number",
        2,
        1500,
        """
        Write the smaller of {a} and {b} backwards.
        Reverse the digits of the lower of {a} and {b}.
        Which is less, {a} or {b}? From right to left.
        Sort {a} and {b} and reverse the first.
        """,
    ),
    "last_seen": _recipe(
        "read",
        "word",
        2,
        3000,
        """
        We saw "{a}", then "{b}". Last?
        After "{a}" came "{b}". Name the later one.
        The shop sold "{a}", then "{b}". What last?
        First "{a}", then "{b}". Which in the end?
        """,
    ),
    "last_capitals": _recipe(
        "read upper",
        "word",
        2,
        1500,
        """
        We saw "{a}", then "{b}". The last, use capitals.
        After "{a}" came "{b}". Shout the later one.
        The shop sold "{a}", then "{b}". The last, upper case.
        First "{a}", then "{b}". Print the end in capitals.
        """,
    ),
    "last_backwards": _recipe(
        "read reverse",
        "word",
        2,
        1500,
        """
        We saw "{a}", then "{b}". Spell the last backwards.
        After "{a}" came "{b}". Reverse the later one.
        The shop sold "{a}", then "{b}". From right to left.
        First "{a}", then "{b}". The end, last letter first.
        """,
    ),
    "last_plural": _recipe(
        "read plural",
        "word",
        2,
        1500,
        """
        We saw "{a}", then "{b}". The plural of the last?
        After "{a}" came "{b}". Make the later one plural.
        The shop sold "{a}", then "{b}". Several of the last.
        First "{a}", then "{b}". The end? Say its plural.
        """,
    ),
    "last_initial": _recipe(
        "read initial",
        "word",
        2,
        1500,
        """
        We saw "{a}", then "{b}". How does the last begin?
        After "{a}" came "{b}". Give the initial of the later one.
        The shop sold "{a}", then "{b}". How does it begin?
        First "{a}", then "{b}". The end? Only one letter.
        """,
    ),
    "last_plural_capitals": _recipe(
        "read plural upper",
        "word",
        2,
        1500,
        """
        We saw "{a}", then "{b}". Shout the plural of the last.
        After "{a}" came "{b}". The later one, plural, in capitals.
        The shop sold "{a}", then "{b}". Several, upper case.
        First "{a}", then "{b}". Its plural in capital letters.
        """,
    ),
    "last_ten_times": _recipe(
        "read tenfold",
        "number",
        2,
        1500,
        """
        We saw {a}, then {b}. What is ten times the last?
        After {a} came {b}. Multiply the later one by ten.
        The shop sold {a}, then {b}. Ten of the last?
        First {a}, then {b}. The tenfold of the end?
        """,
    ),
    "is_plural": _recipe(
        "plural judge",
        "word",
        1,
        600,
        """
        Is "{a}" plural?
        Are there several in "{a}"? Yes or no?
        Does "{a}" name more than one?
        "{a}" is a plural: right?
        """,
    ),
    "is_capital": _recipe(
        "upper judge",
        "word",
        1,
        600,
        """
        Is "{a}" in capital letters?
        Is somebody shouting "{a}"? Yes or no?
        Does "{a}" use upper case?
        "{a}" is all capitals: right?
        """,
    ),
    "last_is_plural": _recipe(
        "read plural judge",
        "word",
        2,
        3000,
        """
        We saw "{a}", then "{b}". Is the last plural?
        After "{a}" came "{b}". Several in the later? Yes or no?
        The shop sold "{a}", then "{b}". More than one at last?
        First "{a}", then "{b}". The end is a plural: right?
        """,
    ),
    "last_is_capital": _recipe(
        "read upper judge",
        "word",
        2,
        1500,
        """
        We saw "{a}", then "{b}". Is the last in capitals?
        After "{a}" came "{b}". Was the later shouted? Yes or no?
        The shop sold "{a}", then "{b}". Upper case at last?
        First "{a}", then "{b}". The end is all capitals: right?
        """,
    ),
}

HELD_OUT = {
    "last_backwards_capitals": _recipe(
        "read reverse upper",
        "word",
        2,
        200,
        """
        We saw "{a}", then "{b}". Shout the last backwards.
        After "{a}" came "{b}". Reverse the later one and shout it.
        """,
    ),
    "dictionary_plural_capitals": _recipe(
        "compare plural upper",
        "word",
        2,
        200,
        """
        Shout the plural of the earlier of "{a}" and "{b}".
        Sort "{a}" and "{b}": the plural of the first in capitals.
        """,
    ),
    "dictionary_backwards_capitals": _recipe(
        "compare reverse upper",
        "word",
        2,
        200,
        """
        Spell the earlier of "{a}" and "{b}" backwards in capitals.
        Sort "{a}" and "{b}", reverse the first and shout it.
        """,
    ),
    "dictionary_initial": _recipe(
        "compare initial",
        "word",
        2,
        200,
        """
        Give the initial of the earlier of "{a}" and "{b}".
        Sort "{a}" and "{b}": how does the first begin?
        """,
    ),
    "last_initial_capital": _recipe(
        "read initial upper",
        "word",
        2,
        200,
        """
        We saw "{a}", then "{b}". Shout the initial of the last.
        After "{a}" came "{b}". Its first letter, as a capital.
        """,
    ),
    "last_plural_backwards": _recipe(
        "read plural reverse",
        "word",
        2,
        200,
        """
        We saw "{a}", then "{b}". Plural of the last, backwards.
        After "{a}" came "{b}". Make the later one plural and reverse it.
        """,
    ),
    "ten_times_backwards": _recipe(
        "tenfold reverse",
        "number",
        1,
        200,
        """
        Multiply {a} by ten and reverse the digits.
        What is {a} times ten? From right to left.
        """,
    ),
    "plural_backwards_capitals": _recipe(
        "plural reverse upper",
        "word",
        1,
        200,
        """
        Spell the plural of "{a}" backwards in capital letters.
        Make "{a}" plural, reverse it and shout it.
        """,
    ),
}
