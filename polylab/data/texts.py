"""Texts in rows: what is valid, and how errors show what is not."""

from __future__ import annotations

import json
from typing import Any


def join_instruction(instruction: str, text: str) -> str:
    """The instruction, then the input on the next line (the instruction alone if that is empty)."""
    return f"{instruction}\n{text}" if text.strip() else instruction


def check_text(text: str, key: str, where: str) -> str:
    """The text.

    Raises:
        ValueError: Starting with `where`, if it is no valid Unicode.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'{where}: "{key}" holds the lone surrogate {text[error.start]!a} at character '
            f"{error.start} · text must be valid Unicode · mend the escape sequence."
        ) from None
    return text


def wrong_type(where: str, key: str, value: Any, wanted: str) -> ValueError:
    """The error of a value of a wrong type."""
    shown = json.dumps(value, default=str)  # Arrow has more types than JSON
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ValueError(
        f'{where}: "{key}" has {shown} ({type(value).__name__}) · it must be {wanted} · '
        "quote the value or mend the row."
    )
