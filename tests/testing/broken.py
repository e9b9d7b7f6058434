"""How a broken promise is told."""

from collections.abc import Callable

import pytest


def fails(check: Callable[[], None], cls: type, parts: list[str]) -> None:
    """The check says all these parts, the class, and what is required."""
    with pytest.raises(AssertionError) as caught:
        check()
    message = str(caught.value)
    for part in (cls.__name__, "Required: ", *parts):
        assert part in message, message
