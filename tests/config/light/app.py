"""A command whose jobs take no time: they write a score, fail, wait or die, as they are asked."""

import os
import signal
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from polylab.config.errors import ConfigError, report_errors
from polylab.config.files import write_json
from polylab.config.jobs import recorded
from polylab.config.launch import job_folder, register
from polylab.config.sweeps import closing_sweep


@recorded
def task(cfg: DictConfig) -> float:
    """Return `x + seed / 10`; in between does what it is asked to."""
    with Path("calls").open("a") as calls:
        calls.write(f"{cfg.x} {cfg.seed}\n")
    n_calls = len(Path("calls").read_text().splitlines())
    if cfg.does == "fail" or (cfg.does == "rough" and n_calls == 3):
        raise ConfigError(f"x={cfg.x} is\nnot valid")
    if cfg.does == "rough" and n_calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.does == "wait":
        time.sleep(0.3)
    score = cfg.x + cfg.seed / 10
    metrics = {"test": {"macro": {"score": score}, "tasks": {"a": {"score": 1}}}, "checkpoint": "x"}
    write_json(job_folder() / "metrics.json", metrics)
    return score


def main() -> None:
    """Run the command line."""
    with closing_sweep(), report_errors():
        register()
        folder = str(Path(__file__).resolve().parent)
        hydra.main(config_path=folder, config_name="light", version_base="1.3")(task)()


if __name__ == "__main__":
    from tests.config.light.app import main as run_main  # by name, as the commands do

    run_main()
