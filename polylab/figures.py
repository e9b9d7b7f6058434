"""The figures of papers, of a sweep: `python -m polylab.figures run=SWEEP_DIR [figure=NAME]`.

Only what reads the configuration is imported here; pandas and the rest follow once it is valid.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from polylab.config.errors import ConfigError, mistakes_in_one_line, user_mistakes
from polylab.config.help import FIGURES_HELP
from polylab.config.launch import launch
from polylab.config.suggest import hint

NAMES = ("changes", "parameters", "skills", "layers")


def main() -> None:
    """Run the command line."""
    launch(task, config_name="figures", help_text=lambda: FIGURES_HELP)


def task(cfg: DictConfig) -> None:
    """Draw one figure, or all that the folder has the data of; a mistake ends it with one line.

    Raises:
        SystemExit: With code 1.
    """
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> list[Path]:
    """Draw what `cfg` asks for, each as PNG and PDF, and return the PNGs.

    Raises:
        ConfigError: If the folder lacks what the figure needs; of `all`, what every one needs.
    """
    folder = _folder(cfg)
    names = NAMES if cfg.figure == "all" else (cfg.figure,)

    from polylab.papers import draw

    target, done, problems = Path(cfg.to or folder / "figures"), [], []
    for name in names:
        try:
            figure = draw(name, folder, metric=cfg.metric)
        except ConfigError as error:
            problems.append(str(error))
            continue
        with user_mistakes(f"to={target}"):
            target.mkdir(parents=True, exist_ok=True)
            figure.savefig(target / f"{name}.pdf")
            figure.savefig(target / f"{name}.png", dpi=200)
        done.append(target / f"{name}.png")
        print(done[-1], flush=True)
    if not done:
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    for line in problems:
        print(f"left out: {line}", file=sys.stderr)
    return done


def _folder(cfg: DictConfig) -> Path:
    if OmegaConf.is_missing(cfg, "run") or not cfg.run:
        raise ConfigError("run is not set · give run=SWEEP_DIR")
    if not Path(cfg.run).is_dir():
        raise ConfigError(f"run={cfg.run}: there is no such folder · give SWEEP_DIR")
    if cfg.figure not in ("all", *NAMES):
        near = hint(cfg.figure, NAMES)
        raise ConfigError(
            f"figure={cfg.figure} is not known{near} · valid: all, {', '.join(NAMES)}"
        )
    return Path(cfg.run)


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.figures import main as run_main

    run_main()
