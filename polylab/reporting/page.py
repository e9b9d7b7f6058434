"""One HTML file from a page's contents and the parts in `page/`."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["build_page"]

PARTS = Path(__file__).parent / "page"


def build_page(contents: Mapping[str, Any]) -> str:
    """The whole page: style, data and program in one file that needs nothing else.

    The data stand in a script element as JSON without `<`, `>` and `&`, so that no name in them
    can end it.
    """
    text = json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    parts = {
        "TITLE": html.escape(str(contents["title"])),
        "STYLE": _joined("*.css"),
        "PROGRAM": _joined("*.js"),
        "DATA": text,
    }
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    # in one pass: what takes a place is not searched for places itself
    return re.sub("@([A-Z]+)@", lambda place: parts[place[1]], page)


def _joined(pattern: str) -> str:
    files = sorted(PARTS.glob(pattern))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
