"""Text reaches every terminal and log file, also one that knows ASCII alone."""

import codecs
import io
import sys

_PLAIN = {"·": "|", "…": "...", "│": "|", "─": "-", "±": "+-"}


def make_printable() -> None:
    """Let stdout and stderr replace what their encoding lacks, instead of raising."""
    codecs.register_error("polylab", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a notebook or a test puts there
            stream.reconfigure(errors="polylab")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end
