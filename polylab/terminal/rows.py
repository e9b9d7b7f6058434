"""Aligned `key  value` lines that fit on 80 columns."""

from collections.abc import Iterable

WIDTH = 80

Row = tuple[str, str]


def format_rows(rows: Iterable[Row]) -> str:
    """Return a line for each row, with the values below each other.

    A long value goes on in the next line, see `wrap`; a path or a command is never cut, so that it
    can be copied.
    """
    rows = list(rows)
    indent = max((len(key) for key, _ in rows), default=0) + 2
    lines = []
    for key, value in rows:
        first, *rest = wrap(value, WIDTH - indent)
        lines += [f"{key:<{indent}}{first}", *(" " * indent + line for line in rest)]
    return "\n".join(lines)


def shorten(name: str, width: int) -> str:
    """Return the name with its middle left out: names often differ in their ends."""
    if len(name) <= width:
        return name
    kept = width - 2
    head = (kept + 1) // 2
    return f"{name[:head]}..{name[len(name) - (kept - head) :]}"


def wrap(text: str, width: int) -> list[str]:
    """Return the lines of a text that breaks at ` · ` alone."""
    lines = [""]
    for part in text.split(" · "):
        longer = f"{lines[-1]} · {part}" if lines[-1] else part
        if lines[-1] and len(longer) > width:
            lines.append(part)
        else:
            lines[-1] = longer
    return lines
