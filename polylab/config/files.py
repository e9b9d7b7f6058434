"""Files of a run's folder: written whole or not at all, in folders that no other run shares."""

import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(name, 0o644)  # mkstemp makes it private to the user
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, in one step; what is not finite becomes null.

    Raises:
        TypeError: If `value` holds what JSON does not know.
    """
    write_text(
        path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def read_json(path: Path) -> Any:
    """Return the value that `path` holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects that `path` holds, one a line, in order; none where there is no such file.

    Lines that a killed process tore are passed over.
    """
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def write_config(path: Path, cfg: DictConfig) -> None:
    """Write the resolved configuration, which reproduces the run, in one step."""
    write_text(path, OmegaConf.to_yaml(cfg, resolve=True))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def fresh_folder(path: str) -> str:
    """Make `path`, or `path_2`, `path_3`, ... where it is taken, and return the one made.

    Two runs that start in the same second get two folders, because `mkdir` is atomic.
    """
    attempt, count = Path(path), 1
    while True:
        try:
            attempt.mkdir(parents=True)
        except FileExistsError:
            count += 1
            attempt = Path(f"{path}_{count}")
        else:
            return str(attempt)


def folder_names(names: list[str]) -> list[str]:
    """Return a folder's name for each task: its own, without what a path cannot hold."""
    safe = [re.sub(r"[^\w.=+@-]+", "_", name).lstrip(".") or "task" for name in names]
    folded = [name.casefold() for name in safe]
    taken = {name for name in folded if folded.count(name) == 1}
    folders = []
    for index, name in enumerate(safe):
        folder = name
        while folded.count(name.casefold()) > 1 and (folder == name or folder.casefold() in taken):
            folder = f"{folder}_{index}"
        taken.add(folder.casefold())
        folders.append(folder)
    return folders


def of_run(run: str, key: str, default: Any = ...) -> Any:
    """Return the value that the configuration of the finished run in the folder `run` has at `key`.

    Args:
        run: Its folder.
        key: In its configuration.
        default: Of runs that are older than the key.

    Raises:
        KeyError: If it has none.
    """
    value = OmegaConf.select(OmegaConf.load(Path(run) / "config.yaml"), key, default=default)
    if value is ...:
        raise KeyError(f"{key} is not in the configuration of run={run} · give {key}=VALUE")
    return value


def register_resolvers() -> None:
    """Teach OmegaConf `${fresh_folder:PATH}`, `${experiment_name:NAME}` and `${of_run:RUN,KEY}`.

    The folder is cached in the configuration, as Hydra's own `now` is: one job asks for it many
    times, and the jobs of a sweep inherit the cache of the sweep.
    """
    OmegaConf.register_new_resolver("of_run", of_run, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("fresh_folder", fresh_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver(
        "experiment_name", lambda name: name if name is not None else "train", replace=True
    )
