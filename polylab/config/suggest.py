"""The nearest valid spelling of what a user wrote."""

import difflib
from collections.abc import Iterable


def nearest(given: str, valid: Iterable[str]) -> str | None:
    """Return the valid name most like `given`; a last component that agrees counts most."""
    names = list(valid)
    leaf = given.rsplit(".", 1)[-1]
    same_leaf = [name for name in names if name.rsplit(".", 1)[-1] == leaf]
    pool = same_leaf or names
    close = difflib.get_close_matches(given, pool, n=1, cutoff=0.0 if same_leaf else 0.6)
    if close:
        return close[0]
    leaves = {name.rsplit(".", 1)[-1]: name for name in names}
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def hint(given: str, valid: Iterable[str]) -> str:
    """Return ` · did you mean X?`, or nothing if no valid name is near."""
    match = nearest(given, valid)
    return f" · did you mean {match}?" if match else ""


def listing(valid: Iterable[str], *, limit: int = 30) -> str:
    """Join the valid names, sorted; a long list is cut and says so."""
    names = sorted(valid)
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
