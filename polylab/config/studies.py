"""An Optuna study that goes on: of an interrupted sweep, or for more trials than it had."""

from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, read_write

from polylab.config.errors import ConfigError

Results = list[dict[str, Any]]


def is_study(config: DictConfig) -> bool:
    """Say whether Optuna chooses the jobs of this sweep."""
    return "optuna" in str(config.hydra.sweeper._target_)


def check_search_space(config: DictConfig, overrides: Iterable[Override]) -> None:
    """Refuse a study in which no value is to be chosen: its trials would all be the same.

    Raises:
        ConfigError: If neither an override nor a function of the user's gives a choice.
    """
    by_function = OmegaConf.select(config, "hydra.sweeper.custom_search_space")
    if not by_function and not any(override.is_sweep_override() for override in overrides):
        raise ConfigError(
            f"hydra.sweeper.n_trials={config.hydra.sweeper.n_trials} trials without anything to "
            "choose · add KEY=interval(LOW,HIGH), 'KEY=tag(log,interval(LOW,HIGH))' or KEY=A,B, "
            "or take search=optuna_router_lr or optuna_skills_splits"
        )


def continue_study(config: DictConfig, results: Results) -> int:
    """Make the sweeper run the trials that are missing of `n_trials`; return the next job's number.

    Trials that were cut off are told to the study: with their value where their job had ended, else
    as failed; others take their place.

    Raises:
        ConfigError: If the study was not stored.
    """
    sweeper = config.hydra.sweeper
    if not results:
        return 0
    if sweeper.storage is None:
        raise ConfigError(
            f"hydra.sweep.dir={config.hydra.sweep.dir}: hydra.sweeper.storage is null, so its "
            "study ended with its process · start another sweep, with search=optuna"
        )
    _settle(str(sweeper.storage), str(sweeper.study_name), results)
    first = max(result["job"] for result in results) + 1
    done = sum(result["status"] in ("completed", "failed") for result in results)
    with read_write(config):
        sweeper.n_trials = max(0, int(sweeper.n_trials) - done)
        if OmegaConf.select(sweeper, "sampler.seed") is not None:
            sweeper.sampler.seed += first  # else it would suggest its first points again
    return first


def _settle(storage: str, study_name: str, results: Results) -> None:
    import optuna
    from optuna.trial import TrialState

    study = optuna.load_study(study_name=study_name, storage=storage)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        given = {key.lstrip("+"): str(value) for key, value in trial.params.items()}.items()
        for result in reversed(results):  # the sampler may have suggested the same before
            if given <= result["overrides"].items():
                value = result["value"]
                if result["status"] == "completed" and value is not None:
                    study.tell(trial.number, value)
                else:
                    study.tell(trial.number, state=TrialState.FAIL)
                break
