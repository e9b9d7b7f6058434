"""The W&B workspace laid out for skills: `python -m polylab.workspace project=PROJECT`.

Only what reads the configuration is imported here.
"""

from omegaconf import DictConfig

from polylab.config.errors import ConfigError, flatten, mistakes_in_one_line
from polylab.config.help import WORKSPACE_HELP
from polylab.config.launch import launch
from polylab.config.tracking import has_credentials


def main() -> None:
    """Run the command line."""
    launch(task, config_name="workspace", help_text=lambda: WORKSPACE_HELP)


def task(cfg: DictConfig) -> None:
    """Save one view; a mistake of the user ends it with one line.

    Raises:
        SystemExit: With code 1.
    """
    with mistakes_in_one_line():
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Save the view that `cfg` names, and say where it is.

    Raises:
        ConfigError: Without the extra `view`, without credentials, or if the server refuses it.
    """
    if not has_credentials():
        raise ConfigError(
            "W&B has no credentials, and a view is kept by its server · run `wandb login` or set"
            " WANDB_API_KEY"
        )
    try:
        import wandb_workspaces  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ConfigError(
            "wandb-workspaces is not installed · pip install 'polylab[view]'"
        ) from None
    import wandb

    from polylab.tracking.panels import build_workspace

    try:
        entity = cfg.entity or wandb.Api(timeout=cfg.timeout).default_entity
        view = build_workspace(entity=str(entity), project=cfg.project, name=cfg.name)
        view.save()
    except Exception as error:  # whatever its server, its network and its queries raise
        place = "/".join(filter(None, (cfg.entity, cfg.project)))
        raise ConfigError(
            f"W&B did not save the view of {place}: {flatten(str(error))[:200]} · check project=,"
            " entity=, the key and the network"
        ) from error
    print(view.url, flush=True)


if __name__ == "__main__":
    # by name, as `polylab.train` does
    from polylab.workspace import main as run_main

    run_main()
