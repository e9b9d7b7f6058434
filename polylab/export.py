"""Take a run's adapter elsewhere: `python -m polylab.export run=RUN_DIR to=DIR format=FORMAT`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError, mistakes_in_one_line, user_mistakes
from polylab.config.files import folder_names, read_json
from polylab.config.help import EXPORT_HELP
from polylab.config.launch import launch
from polylab.config.suggest import hint, listing
from polylab.finished import load_run, read_generating_run, task_names
from polylab.trainers import quiet_libraries

if TYPE_CHECKING:
    from polylab import PolyModel

FORMATS = ("lora", "poly", "merged")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "tasks.json")


def main() -> None:
    """Run the command line."""
    launch(task, config_name="export", help_text=lambda: EXPORT_HELP)


def task(cfg: DictConfig) -> None:
    """Run one export; a mistake of the user ends it with one line.

    Raises:
        SystemExit: With code 1.
    """
    with mistakes_in_one_line():
        print(run(cfg), flush=True)


def run(cfg: DictConfig) -> str:
    """Export as `cfg` says, and return one line about it.

    Raises:
        ConfigError: If the run, the task, the format or the folder is not valid, or the adapter
            cannot be exported so; nothing has been written then.
    """
    check_choices(cfg)
    source, target = Path(cfg.run), Path(cfg.to)
    run_config = read_generating_run(source)
    names = task_names(source)
    check_task(cfg, names)
    quiet_libraries()
    if cfg.format == "poly":
        return export_poly(source / "adapter", target)
    model, backbone = load_run(source, run_config, trust_code=cfg.trust_code)
    if cfg.format == "merged":
        return export_merged(model, backbone.tokenizer, target, name=the_task(cfg, names))
    return export_loras(model, target, names=names, name=cfg.task)


def check_choices(cfg: DictConfig) -> None:
    """Check the format and the target folder.

    Raises:
        ConfigError: All problems at once.
    """
    problems = [f"{key} is not set · give {key}=DIR" for key in ("run", "to") if _missing(cfg, key)]
    if cfg.format not in FORMATS:
        near = hint(str(cfg.format), FORMATS)
        problems.append(f"format={cfg.format} is not known{near} · valid: {', '.join(FORMATS)}")
    if not _missing(cfg, "to"):
        target = Path(cfg.to)
        if target.is_dir() and any(target.iterdir()):
            problems.append(f"to={cfg.to}: this folder is not empty · give a new one")
        elif target.exists() and not target.is_dir():
            problems.append(f"to={cfg.to} is a file · give a new folder")
    if problems:
        raise ConfigError("; ".join(problems))


def _missing(cfg: DictConfig, key: str) -> bool:
    return OmegaConf.is_missing(cfg, key) or not cfg[key]


def check_task(cfg: DictConfig, names: list[str]) -> None:
    """Check that `task` names one of the run's tasks, and that the format has a use for it.

    Raises:
        ConfigError: If not.
    """
    if cfg.task is None:
        if cfg.format == "merged" and len(names) > 1:
            raise ConfigError(
                f"format=merged needs one task · give task=NAME · valid: {listing(names)}"
            )
        return
    if cfg.format == "poly":
        raise ConfigError(
            f"task={cfg.task}: format=poly holds all tasks · leave task out, or give format=lora"
        )
    is_id = cfg.task.isdecimal() and int(cfg.task) < len(names)
    if cfg.task not in names and not is_id:
        raise ConfigError(
            f"task={cfg.task}: the run has no such task{hint(cfg.task, names)} · valid: "
            f"{listing(names)}"
        )


def the_task(cfg: DictConfig, names: list[str]) -> str:
    """Return the task to merge; of a single one nothing has to be said."""
    return cfg.task if cfg.task is not None else names[0]


def export_poly(adapter: Path, target: Path) -> str:
    """Copy the whole adapter, read once to be sure that it is whole."""
    from polylab.poly.io import read_adapter

    with user_mistakes(str(adapter)):
        read_adapter(adapter, trust_code=True)  # which is only read, and never run
    kind = read_json(adapter / ADAPTER_FILES[0])["peft_type"]

    def write(folder: Path) -> None:
        for name in ADAPTER_FILES:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)

    _write_folder(target, write)
    reader = "peft.PeftModel" if kind == "POLY" else "polylab.PolyModel"
    only = "" if kind == "POLY" else " (PEFT has no such adapter)"
    return f"{target}: the adapter · load it with {reader}.from_pretrained(base, DIR){only}"


def export_merged(model: "PolyModel", tokenizer: Any, target: Path, *, name: str) -> str:
    """Write the plain base model with one task's update in its weights, and its tokenizer."""
    with user_mistakes("format=merged"):
        merged: Any = model.merge_and_unload(name)

    def write(folder: Path) -> None:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    _write_folder(target, write)
    auto = "AutoModelForSeq2SeqLM" if merged.config.is_encoder_decoder else "AutoModelForCausalLM"
    return f"{target}: the model of task {name} · load it with {auto}.from_pretrained(DIR)"


def export_loras(model: "PolyModel", target: Path, *, names: list[str], name: str | None) -> str:
    """Write one task's plain LoRA into `target`, or each task's into a folder of its own there."""

    def write(folder: Path) -> None:
        try:
            if name is not None:
                model.export_lora(name, folder)
                return
            for index, place in enumerate(folder_names(names)):
                model.export_lora(index, folder / place)
        except ValueError as error:
            raise ConfigError(f"format=lora: {error}") from error

    _write_folder(target, write)
    what = f"the LoRA of task {name}" if name is not None else f"{len(names)} LoRAs, a folder each"
    place = "DIR" if name is not None else "DIR/TASK"
    return f"{target}: {what} · load it with peft.PeftModel.from_pretrained(base, {place})"


def _write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder beside `target`, which takes its place when it is whole."""
    with _partial(target) as folder:
        try:
            write(folder)
            if target.is_dir():
                target.rmdir()  # it is empty
            os.replace(folder, target)
        except OSError as error:
            raise ConfigError(f"to={target}: {error}") from error


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    folder = target.absolute().with_name(f".{target.absolute().name}.partial")
    with user_mistakes(f"to={target}"):
        shutil.rmtree(folder, ignore_errors=True)  # of a killed export
        folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.export import main as run_main

    run_main()
