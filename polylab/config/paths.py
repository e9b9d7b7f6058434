"""Where `conf/` and `experiments/` lie, and how a path is given on a command line."""

import re
import shlex
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def config_folder(name: str, *, package: Path = PACKAGE) -> Path:
    """Return the folder `name` of the checkout if there is one, else the one of the wheel.

    They lie beside the package in a checkout, and inside it in a wheel.

    Raises:
        FileNotFoundError: If neither holds the folder, which means a broken installation.
    """
    checkout = package.parent
    candidates = [package / name]
    if (checkout / "pyproject.toml").is_file():  # otherwise site-packages may hold a foreign one
        candidates.insert(0, checkout / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = " and ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"no folder {name!r} in {looked} · install polylab again")


def path_override(key: str, path: Path) -> str:
    """Return `KEY=PATH`, quoted for the shell and for Hydra where its characters need it."""
    text = str(path)
    if not re.fullmatch(r"[\w./:@%+-]+", text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return shlex.quote(f"{key}={text}")
