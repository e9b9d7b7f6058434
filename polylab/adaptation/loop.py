"""One adaptation: to one task, with one seed."""

import time
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, seed_everything
from omegaconf import DictConfig

from polylab.adaptation.best import KeepBest
from polylab.adaptation.gradients import RequireGradients
from polylab.adaptation.methods import ADAPTER, attached, count_adapted
from polylab.adaptation.plan import Plan, attachment, build_unit_data
from polylab.adaptation.resume import writing
from polylab.adaptation.table import Results
from polylab.config.targets import build
from polylab.parts import build_optim
from polylab.poly.io import write_adapter
from polylab.trainers import build_trainer

__all__ = ["adapt_once"]


def adapt_once(
    cfg: DictConfig, plan: Plan, *, name: str, seed: int, results: Results, folder: Path
) -> None:
    """Adapt to one task with one seed, test, and add the row to the table."""
    started = time.perf_counter()
    seed_everything(seed, workers=True, verbose=False)  # whatever came before
    with attached(plan.model, **attachment(cfg, name)):
        count = count_adapted(plan.model)
        scores = _train_and_test(cfg, plan, name=name, seed=seed, folder=folder)
        if cfg.adapt.save:
            with writing(folder):
                _save(plan, name=name, seed=seed, folder=folder)
    seconds = round(time.perf_counter() - started, 2)
    row = {"task": name, "method": cfg.adapt.method, "shots": cfg.adapt.shots, "seed": seed}
    row |= {**scores, "parameters": count, "seconds": seconds}
    with writing(folder):
        results.add((name, seed), row, order=plan.units)
    line = " · ".join(f"{metric} {value:.3f}" for metric, value in sorted(scores.items()))
    place = plan.units.index((name, seed)) + 1
    print(f"{place}/{len(plan.units)} {name}, seed {seed}: {line} · {seconds:.1f} s", flush=True)


def _train_and_test(
    cfg: DictConfig, plan: Plan, *, name: str, seed: int, folder: Path
) -> Mapping[str, float]:
    """Train what is attached, choose the best weights on validation, and test these."""
    (task_data,) = [data for data in plan.tasks if data.name == name]
    data = build_unit_data(cfg, plan, task_data, seed=seed)
    parts = {
        "model": plan.model,
        "tokenizer": plan.backbone.tokenizer,
        "task_names": data.task_names,
        "optim": build_optim(cfg),
        "seed": seed,
    }
    module = build(cfg.module, key="module", parts=parts)
    callbacks: list[Callback] = [RequireGradients(f"adapt={cfg.adapt.method}")]
    if plan.shots.validation:
        callbacks.append(KeepBest(cfg.adapt.monitor))
    trainer = build_trainer(cfg, callbacks=callbacks, logger=None, folder=folder)
    _stay_on_device(module)
    trainer.fit(module, datamodule=data)
    trainer.test(module, data, verbose=False)
    return module.results["test"]["tasks"][name]


def _stay_on_device(module: LightningModule) -> None:
    """Leave the backbone on the accelerator between tasks.

    Every fit and test ends with Lightning's strategy calling `module.cpu()`, and the next one would
    copy billions of weights back.
    """
    module.cpu = lambda: module


def _save(plan: Plan, *, name: str, seed: int, folder: Path) -> None:
    """Write the adapter, with the run's tasks and the new one, to `adapters/TASK/seed_SEED`."""
    model = plan.model
    write_adapter(
        folder / "adapters" / plan.places[name] / f"seed_{seed}",
        model.config_of(ADAPTER),
        model=model.get_base_model(),
        adapter_name=ADAPTER,
    )
