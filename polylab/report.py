"""One HTML page of a run or a sweep: `python -m polylab.report run=RUN_DIR_OR_SWEEP_DIR`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError, mistakes_in_one_line, user_mistakes
from polylab.config.files import write_text
from polylab.config.help import REPORT_HELP
from polylab.config.launch import launch

KINDS = {
    "run": "a run",
    "evaluation": "an evaluation",
    "sweep": "a sweep",
    "adaptation": "an adaptation",
}


def main() -> None:
    """Run the command line."""
    launch(task, config_name="report", help_text=lambda: REPORT_HELP)


def task(cfg: DictConfig) -> None:
    """Write one page; a mistake of the user ends it with one line.

    Raises:
        SystemExit: With code 1.
    """
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> Path:
    """Write the page that `cfg` asks for, say what it lacks, and return its path.

    Raises:
        ConfigError: If the folder has nothing to show, or the file cannot be written.
    """
    source, target = check_paths(cfg)

    from polylab.reporting import build_page, page_contents

    with user_mistakes():
        contents = page_contents(source)
    page = build_page(contents)
    with user_mistakes(f"to={target}"):
        write_text(target, page)
    for line in contents["notes"]:
        print(f"note: {line}", file=sys.stderr)
    size = len(page.encode()) / 1e6
    print(
        f"{target}: {KINDS[contents['kind']]} · {size:.1f} MB · open it in any browser", flush=True
    )
    return target


def check_paths(cfg: DictConfig) -> tuple[Path, Path]:
    """Return the folder to read and the file to write.

    Raises:
        ConfigError: If the folder is not there, or the file cannot be one.
    """
    if OmegaConf.is_missing(cfg, "run") or not cfg.run:
        raise ConfigError("run is not set · give run=RUN_DIR or run=SWEEP_DIR")
    source = Path(cfg.run)
    if not source.is_dir():
        raise ConfigError(f"run={cfg.run}: there is no such folder · give RUN_DIR or SWEEP_DIR")
    target = Path(cfg.to) if cfg.to else source / "report.html"
    if target.is_dir():
        raise ConfigError(f"to={cfg.to} is a folder · give a file, such as {target}/report.html")
    return source, target


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.report import main as run_main

    run_main()
