"""Few-shot adaptation: `python -m polylab.adapt run=RUN_DIR data=... adapt=METHOD [overrides]`.

Only what reads the configuration is imported here; torch and the rest follow once it is valid.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from polylab.adaptation.plan import Plan, check_command, make_plan
from polylab.config.ddp import clean_environment
from polylab.config.errors import ConfigError, explain, wants_traceback
from polylab.config.files import write_config, write_json
from polylab.config.help import ADAPT_GROUPS, ADAPT_HELP, help_text
from polylab.config.jobs import recorded
from polylab.config.launch import job_folder, launch, sweep_folder
from polylab.config.sweeps import closing_sweep

if TYPE_CHECKING:
    from polylab.adaptation.table import Results

log = logging.getLogger("polylab")


def main() -> None:
    """Run the command line."""
    with closing_sweep():
        launch(
            task,
            config_name="adapt",
            help_text=lambda: help_text(ADAPT_HELP, groups=ADAPT_GROUPS),
        )


@recorded
def task(cfg: DictConfig) -> None:
    """Run one job; a mistake of the user ends a single one with one line, and fails a sweep's job.

    Raises:
        SystemExit: With code 1, in a single run.
        ConfigError: In a sweep, whose other jobs go on.
    """
    try:
        run(cfg)
    except (ConfigError, OmegaConfBaseException, FloatingPointError) as error:
        if wants_traceback():
            raise
        log.error(explain(error))
        if sweep_folder() is not None:
            raise
        raise SystemExit(1) from None


def run(cfg: DictConfig) -> None:
    """Adapt to every task with every seed, each from the run's weights, and write the tables.

    Raises:
        ConfigError: If the run, the configuration, the data or the method is not valid; nothing
            has been written then.
    """
    folder = job_folder()
    with clean_environment():
        check_command(cfg)
        from polylab.adaptation.loop import adapt_once
        from polylab.adaptation.resume import read_results, writing

        results = read_results(cfg, folder)
        plan = make_plan(cfg)
        todo = [unit for unit in plan.units if unit not in results.rows]
        print(facts(cfg, plan, n_todo=len(todo), folder=folder), flush=True)
        if line := note_on_share(cfg, plan):
            print(line, flush=True)
        with writing(folder):
            write_config(folder / "config.yaml", cfg)
        for name, seed in todo:
            adapt_once(cfg, plan, name=name, seed=seed, results=results, folder=folder)
    finish(cfg, plan, results, folder=folder)


def facts(cfg: DictConfig, plan: Plan, *, n_todo: int, folder: Path) -> str:
    """Return one line about the command."""
    done = len(plan.units) - n_todo
    rest = f" · {done} of {len(plan.units)} are there already" if done else ""
    return (
        f"adapt={cfg.adapt.method} of {cfg.run} · {len(plan.tasks)} tasks x {len(plan.seeds)} "
        f"seeds · {cfg.adapt.shots} shots, {cfg.adapt.steps} steps{rest} · {folder}"
    )


def note_on_share(cfg: DictConfig, plan: Plan) -> str | None:
    """Say so where the routing differs from the run's: see `adaptation.methods.attached`."""
    from polylab.adaptation.methods import trains_routing

    share = plan.model.config_of(plan.model.active_adapter).uniform_share
    if not share or not trains_routing(cfg.adapt.method):
        return None
    saved = " (in saved adapters for the run's tasks too)" if cfg.adapt.save else ""
    return (
        f"the run has uniform_share={share:g}: adapt={cfg.adapt.method} trains the routing, so it "
        f"starts with uniform_share=0{saved} · adapt=mu trains the averaged skills"
    )


def finish(cfg: DictConfig, plan: Plan, results: "Results", *, folder: Path) -> None:
    """Write `summary.json`, and print the same as a table and a line."""
    from rich.console import Console

    from polylab.adaptation.resume import writing
    from polylab.adaptation.table import summarise, summary_table

    tasks = [data.name for data in plan.tasks]
    summary = summarise(results, tasks=tasks, seeds=plan.seeds)
    method, shots = cfg.adapt.method, cfg.adapt.shots
    with writing(folder):
        write_json(
            folder / "summary.json",
            {"method": method, "shots": shots, "seeds": plan.seeds, "metrics": summary},
        )
    title = f"adapt={method}, {shots} shots: median and quartiles over {len(plan.seeds)} seeds"
    console = Console()
    if not console.is_terminal:  # a file has room for whole rows
        console.width = max(console.width, 1000)
    console.print(summary_table(summary, title=title))
    means = [f"{metric} {part['mean_of_medians']:.3f}" for metric, part in summary.items()]
    print(f"test, mean over tasks of the medians: {' · '.join(means)} · {folder}", flush=True)


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.adapt import main as run_main

    run_main()
