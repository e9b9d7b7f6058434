"""One clear line for every mistake in what the user wrote, and exit code 1."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import yaml
from hydra._internal import utils as hydra_utils
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from polylab.config.ddp import await_first
from polylab.config.suggest import hint, listing

KnownKeys = Callable[[], Sequence[str]]
_PLUGINS = (
    "hydra/launcher=joblib", "hydra/launcher=submitit_local", "hydra/launcher=submitit_slurm",
    "hydra/sweeper=optuna", "hydra/sweeper/sampler=tpe",
)  # fmt: skip


class ConfigError(ValueError):
    """A mistake of the user: its message is one line in the user's spelling."""


@contextmanager
def report_errors(known_keys: KnownKeys = tuple, *, stream=None) -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and `SystemExit(1)`.

    Other exceptions pass: they are defects, and their traceback is wanted. With
    `HYDRA_FULL_ERROR=1` everything passes.

    Args:
        known_keys: Gives every valid key in dotted form; only called when a key was wrong.
        stream: Where the line goes, stderr by default.

    Raises:
        SystemExit: With code 1, in place of the user's mistake.
    """
    if wants_traceback():
        yield
        return
    try:
        with _raising_hydra():
            yield
    except (HydraException, OmegaConfBaseException, ConfigError, yaml.YAMLError) as error:
        await_first()
        print(explain(error, known_keys), file=stream or sys.stderr)
        raise SystemExit(1) from None
    except AssertionError as error:
        key = _key_below_null(error)
        if key is None:
            raise
        parent = key.rpartition(".")[0]
        print(f"{key}: {parent} is null, so it has no keys", file=stream or sys.stderr)
        raise SystemExit(1) from None


@contextmanager
def _raising_hydra() -> Iterator[None]:
    # Hydra prints and exits by itself otherwise; its range is pinned and a test watches this.
    original = hydra_utils.run_and_report
    hydra_utils.run_and_report = lambda func: func()
    try:
        yield
    finally:
        hydra_utils.run_and_report = original


def wants_traceback() -> bool:
    """Say whether the user asked for whole tracebacks."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def user_mistakes(what: str = "") -> Iterator[None]:
    """Turn what bad input raises while things are built into `ConfigError`, `what` in front.

    Raises:
        ConfigError: In place of a ValueError, TypeError, LookupError, OSError or ImportError, or
            of Hydra's wrapper around one.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(_prefixed(what, str(error))) from error
    except (ValueError, TypeError, LookupError, OSError, ImportError, HydraException) as error:
        raise ConfigError(_prefixed(what, cause_line(error))) from error


def cause_line(error: BaseException) -> str:
    """Return the message of the exception that started it, on one line."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
        return "stopped by SIGTERM"  # its text would be the number
    if isinstance(error, KeyError) and error.args:
        return flatten(str(error.args[0]))  # str(KeyError) is the repr of its message
    return flatten(str(error)) or type(error).__name__


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End a command with one line on stderr and code 1 where the user made a mistake.

    Raises:
        SystemExit: With code 1.
    """
    try:
        yield
    except (ConfigError, OmegaConfBaseException, FloatingPointError) as error:
        if wants_traceback():
            raise
        await_first()
        print(explain(error), file=sys.stderr)
        raise SystemExit(1) from None


def explain(error: Exception, known_keys: KnownKeys = tuple) -> str:
    """Return the one line that a user needs: what was given, what is valid, the nearest match."""
    if isinstance(error, ConfigError):
        return flatten(str(error))
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, OverrideParseException):
        reason = flatten(error.message.splitlines()[0])
        return (
            f"cannot read override {error.override!r}: {reason}"
            " · write KEY=VALUE and quote special characters: 'KEY=\"VALUE\"'"
        )
    text = "\n".join(_chain(error))
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        given = several.group(1)
        as_list = "{}=[{}]".format(*given.split("=", 1))
        return f"{given}: several values · add -m for a sweep, or give a list: {as_list}"
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if isinstance(error, MissingMandatoryValue) or missing:
        key = missing.group(1) if missing else getattr(error, "full_key", "")
        return f"{key} is not set · give {key}=VALUE"
    if isinstance(error, yaml.YAMLError) or isinstance(error.__cause__, yaml.YAMLError):
        return flatten(text)
    return _wrong_value(error, text) or _unknown_key(text, known_keys) or flatten(text)


def flatten(text: str) -> str:
    """Join the lines of a message into one."""
    return " · ".join(line.strip() for line in text.splitlines() if line.strip())


def _key_below_null(error: AssertionError) -> str | None:
    """Return the key that OmegaConf failed to set below a node that is null, if that is it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = None if traceback is None else traceback.tb_frame
    if frame is None or frame.f_globals.get("__name__") != "omegaconf.omegaconf":
        return None
    key = frame.f_locals.get("key")
    return key if isinstance(key, str) and "NoneType" in str(error) else None


def _prefixed(what: str, message: str) -> str:
    return f"{what}: {message}" if what and not message.startswith(what) else message


def _chain(error: BaseException) -> list[str]:
    lines = []
    current: BaseException | None = error
    while current is not None:
        if str(current) and str(current) not in "\n".join(lines):
            lines.append(str(current))
        current = current.__cause__
    return lines


def _missing_config(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    group, _, option = name.rpartition("/")
    if not group:
        return flatten(str(error).splitlines()[0])
    options = error.options or []
    if not options and not error.options:
        return f"{group}={option}: there is no group {group!r}"
    given = f"{group}={option}"
    if given in _PLUGINS:
        return f"{given} needs the extra `sweep` · install it with: pip install 'polylab[sweep]'"
    near = hint(option, options)
    return f"{given}: no such option{near} · valid: {listing(options)}"


def _wrong_value(error: BaseException, text: str) -> str | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__cause__
    if cause is None:
        return None
    key = re.search(r"full_key: (\S+)", text)
    reason = flatten(str(cause).split("full_key:")[0])
    override = re.search(r"Error merging override (.+)", text)
    where = re.search(r"In '([^']+)'", text)
    given = override.group(1) if override else key.group(1) if key else ""
    return f"{given}: {reason}" + (f" (in {where.group(1)}.yaml)" if where else "")


def _unknown_key(text: str, known_keys: KnownKeys) -> str | None:
    full_key = re.search(r"full_key: (\S+)", text)
    override = re.search(r"Could not (?:override|append to config|delete).*?'([^']+)'", text)
    wrong = re.search(r"Key '([^']+)' (?:not in|is not in struct)", text)
    key = full_key.group(1) if full_key and wrong else override.group(1) if override else None
    if key is None:
        return None
    if override and override.group(1).startswith(f"{key}."):
        key = override.group(1)  # the user's whole spelling, not the first part that is wrong
    parent = key.rpartition(".")[0]
    keys = known_keys()
    children = {
        k[len(parent) + 1 if parent else 0 :].split(".")[0] for k in keys if _under(k, parent)
    }
    place = f"keys of {parent}" if parent else "top-level keys and groups"
    valid = f" · {place}: {listing(children)}" if children else ""
    where = re.search(r"In '([^']+)'", text)
    file = f" (in {where.group(1)}.yaml)" if where else ""
    return f"unknown key {key!r}{file}{hint(key, keys)}{valid}"


def _under(key: str, parent: str) -> bool:
    return not parent or key.startswith(f"{parent}.")
