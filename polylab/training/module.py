"""The LightningModule around a Poly model: steps, logging names, exact resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polylab.poly.sharding import average_gradients, find_blocks, is_sharded, shard
from polylab.training.checkpoint import check_task_names, check_trainable_state, trainable_state
from polylab.training.distributed import gather_objects, gather_tensors, sum_over_ranks
from polylab.training.evaluated import EvaluatedModule
from polylab.training.lazy_rows import LazyRows
from polylab.training.lengths import join_parts, length_parts, take_rows
from polylab.training.losses import ExampleLosses, TaskLosses, check_finite, example_losses
from polylab.training.optim import (
    OptimConfig,
    build_optimizer,
    build_schedule,
    check_router_steps,
    clip_by_group,
    grad_norms,
    scale_gradients,
    uniform_share,
)
from polylab.training.ranking import RankOptions
from polylab.training.rng import RngStream
from polylab.training.sharding import ShardedStrategy, check_sharded, check_strategy

if TYPE_CHECKING:
    from polylab.poly import PolyModel

STATE_KEY = "polylab"  # of what a checkpoint holds beside Lightning's own


class PolyModule(EvaluatedModule):
    """Trains and evaluates the adapter of a `PolyModel`.

    Logged at `trainer.global_step` (optimiser steps done), every `trainer.log_every_n_steps` and
    at the last step: `train/loss`, `train/TASK/loss` (token means since the previous line),
    `train/TASK/examples` (since the start of the run), `train/prior` (the adapter's priors,
    weighted), `lr/GROUP`, `grad_norm/GROUP` (before clipping); after a validation `val/loss`,
    `val/METRIC` (macro over tasks), `val/TASK/METRIC`, and the same under `test/`.

    Attributes are those of `EvaluatedModule`.
    """

    is_shardable = True  # under `trainer=fsdp`

    def __init__(
        self,
        model: PolyModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task_names: Sequence[str],
        optim: OptimConfig | Mapping[str, Any] | None = None,
        max_new_tokens: int = 32,
        num_beams: int = 1,
        seed: int = 0,
        max_logged_tasks: int = 64,
        predictions_per_task: int | None = 16,
        categories: Mapping[str, Sequence[str]] | None = None,
        generate_every_n_validations: int = 1,
        rank_options: RankOptions | None = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        """Wrap `model`.

        Args:
            model: The adapted backbone.
            tokenizer: Decodes what the model generates.
            task_names: Position is task id.
            optim: Fields of `OptimConfig`, or one.
            max_new_tokens: Longest generated answer.
            num_beams: 1 is greedy.
            seed: Of the router's keyed noise.
            max_logged_tasks: Only the first so many tasks have keys of their own in the logs;
                `results` has all of them.
            predictions_per_task: How many to keep of each task and split; all if None.
            categories: Of tasks; means over the tasks of one are logged as
                `val/category/NAME/METRIC`.
            generate_every_n_validations: Of training; the others only take the loss, which is much
                cheaper. The one at the last step and those outside training always generate. With
                0 no other does.
            rank_options: How examples with options are scored for `rank_accuracy`: by the `mean`
                log-likelihood of an option's tokens or their `sum`; None leaves it out.
            label_smoothing: Of the loss that is trained on and logged under `train/`; those under
                `val/` and `test/` have none.

        Raises:
            ValueError: If a bound is below its least value, the smoothing is not from 0 to below
                1, or two tasks share a name.
        """
        bounds = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
        _check_arguments(task_names, bounds, label_smoothing)
        super().__init__(
            model,
            tokenizer,
            task_names=task_names,
            generation=bounds,
            max_logged_tasks=max_logged_tasks,
            predictions_per_task=predictions_per_task,
            categories=categories,
            generate_every_n_validations=generate_every_n_validations,
            rank_options=rank_options,
        )
        self.optim = optim if isinstance(optim, OptimConfig) else OptimConfig(**(optim or {}))
        self.save_hyperparameters(
            {
                "task_names": list(task_names),
                "optim": asdict(self.optim),
                "max_new_tokens": max_new_tokens,
                "num_beams": num_beams,
                "seed": seed,
                "max_logged_tasks": max_logged_tasks,
                "predictions_per_task": predictions_per_task,
                "generate_every_n_validations": generate_every_n_validations,
                "rank_options": rank_options,
                "label_smoothing": label_smoothing,
            },
            logger=False,
        )
        self._label_smoothing = label_smoothing
        self._seed = seed
        self._losses = TaskLosses(self.task_names)
        self._rng = RngStream()
        self._rates: dict[str, float] = {}
        self._norms: dict[str, Tensor] = {}
        self._prior: Tensor | None = None
        self._window: list[Tensor] = []  # label tokens of the batches since the previous step
        self._task_ids: list[Tensor] = []  # of the same batches
        self._logged_step = 0
        self.strict_loading = False  # the frozen part is not in the file; see on_load_checkpoint
        self.train()  # from_pretrained gives eval mode, which Lightning would keep

    def configure_model(self) -> None:
        """Under `trainer=fsdp` shard the model."""
        if self._trainer is None:  # read from a file
            return
        strategy = self.trainer.strategy
        self.check_strategy()
        if isinstance(strategy, ShardedStrategy):
            ranks = strategy.device_mesh["data_parallel"]
            shard(self.model, ranks, shard_skills=strategy.shard_skills)

    def check_strategy(self) -> None:
        """Refuse a trainer's strategy that does not suit.

        Raises:
            ValueError: If it shards in a way of its own, or module or trainer do not go with it.
        """
        strategy = self.trainer.strategy
        check_strategy(strategy, is_shardable=self.is_shardable)
        if isinstance(strategy, ShardedStrategy):
            find_blocks(self.model.get_base_model())
            check_sharded(self.trainer, self.optim.name)

    # Training
    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.optim.clip is not None and self.trainer.gradient_clip_val:
            raise ValueError(
                f"optim.clip={self.optim.clip} and trainer.gradient_clip_val="
                f"{self.trainer.gradient_clip_val} both clip; leave one of them null."
            )
        self._anneal()  # a wrong length is refused now, not after hours
        optimizer = build_optimizer(self.model, self.optim)
        schedule = build_schedule(optimizer, self.optim, max_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        self._anneal()
        self._logged_step = self.trainer.global_step
        if self._is_log_step(self._logged_step):
            self._losses.drain(self._sum_over_ranks)  # the interrupted run has logged them

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self._rng.resume()

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        losses, tokens, prior, _ = self._training_losses(batch)
        self._losses.add(batch["task_ids"], losses, tokens)
        self._task_ids.append(batch["task_ids"].flatten())
        self._window.append(self._sum_over_ranks(tokens.sum()).clamp(min=1))
        # a mean over the tokens of all ranks, whose gradients are averaged afterwards
        loss = losses.sum() * self.trainer.world_size / self._window[0]
        if prior is None:
            return loss
        self._prior = prior.detach()
        return loss + prior * self._window[-1] / self._window[0]  # counts once in a global batch

    def _training_losses(self, batch: dict[str, Any]) -> ExampleLosses:
        may_part = self._may_part and "packed_lengths" not in batch
        parts = length_parts(batch["attention_mask"]) if may_part else None
        if parts is None:
            return self._keyed_losses(batch)
        losses = [self._keyed_losses(take_rows(batch, rows)) for rows in parts]
        return join_parts(losses, parts)

    def _keyed_losses(self, batch: dict[str, Any]) -> ExampleLosses:
        self.model.set_noise_key(self._seed, self.trainer.global_step, rows=batch["rows"])
        return self.example_losses(batch)

    @property
    def _may_part(self) -> bool:
        """Whether an example's loss is its own: noise by its row, no priors on the whole batch."""
        config = self.model.config_of(self.model.active_adapter)
        is_own = config.noise_source == "keyed" and not config.priors
        return is_own and self.device.type == "cpu" and not is_sharded(self.model)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Say which tasks the step is for; scale to the mean over the whole global batch's tokens.

        Batches differ in tokens, so that the mean of their means would depend on the slicing.
        """
        if isinstance(optimizer, LazyRows):
            optimizer.mark(gather_tensors(torch.cat(self._task_ids), self.trainer.world_size))
        self._task_ids.clear()
        if is_sharded(self.model):
            average_gradients(p for group in optimizer.param_groups for p in group["params"])
        if self.trainer.accumulate_grad_batches > 1:
            scale = self._window[0] * self.trainer.accumulate_grad_batches / sum(self._window)
            scale_gradients(optimizer, scale)
        self._window.clear()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self._rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        self._norms = grad_norms(optimizer) if self._is_log_step(self.global_step + 1) else {}
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        clip_by_group(optimizer, self.optim.clip)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self._rng.suspend()
        self._anneal()  # for what follows: a validation, a checkpoint, the next step
        step = self.trainer.global_step
        if step != self._logged_step and self._is_log_step(step):
            loss = self._log_training()
            if loss is not None:
                self.log("train/loss", loss, prog_bar=True, logger=False)

    def on_train_end(self) -> None:
        if self.trainer.global_step != self._logged_step:
            self._log_training()

    def _anneal(self) -> None:
        step, steps = self.trainer.global_step, self.optim.anneal_steps
        if steps:
            total = self.trainer.max_steps
            share = uniform_share(step, anneal_steps=steps, max_steps=total)
            self.model.set_uniform_share(share)

    @property
    def examples_seen(self) -> dict[str, int]:
        """Training examples of each task since the start of the run, on the first rank.

        Exact before and after training, and at log lines; between these it lacks what the other
        ranks have seen since the previous one.
        """
        return self._losses.seen()

    def _is_log_step(self, step: int) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step == self.trainer.max_steps or (every > 0 and step > 0 and step % every == 0)

    def _log_training(self) -> float | None:
        self._logged_step = self.trainer.global_step
        interval = self._losses.drain(self._sum_over_ranks)
        check_finite(interval.loss, step=self._logged_step)
        self._send(
            interval.metrics(self._logged_tasks)
            | {f"lr/{group}": rate for group, rate in self._rates.items()}
            | {f"grad_norm/{group}": norm.item() for group, norm in self._norms.items()}
            | ({} if self._prior is None else {"train/prior": self._prior.item()})
        )
        return interval.loss

    # Checkpoints
    def on_fit_start(self) -> None:
        self._losses.on(self.device)
        self._rng.on(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable part only, and add what an exact continuation needs."""
        checkpoint["state_dict"] = trainable_state(self, checkpoint["state_dict"])
        checkpoint[STATE_KEY] = {
            "rng": gather_objects(self._rng.state_dict()),
            "losses": self._losses.state_dict(self._sum_over_ranks),
            "validations": self._validations,
            "uniform_share": self.model.peft_config[self.model.active_adapter].uniform_share,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the file against the model; when fitting, also continue its random streams.

        Raises:
            ValueError: If its tasks or its trainable parameters are not the model's, or its routers
                were optimised in another way.
        """
        saved = checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]
        check_task_names(saved["task_names"], self.task_names)
        check_trainable_state(self, checkpoint["state_dict"])
        self.model.set_uniform_share(checkpoint[STATE_KEY]["uniform_share"])
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_router_steps(saved["optim"]["router"], self.optim)
        self._validations = checkpoint[STATE_KEY].get("validations", 0)  # older files have none
        rank, state = self.global_rank, checkpoint[STATE_KEY]
        self._losses.load_state_dict(state["losses"], keep_pending=rank == 0)
        if rank < len(state["rng"]):  # ranks beyond those of the interrupted run keep their own
            self._rng.load_state_dict(state["rng"][rank])

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor, self.trainer.world_size)

    def example_losses(self, batch: dict[str, Any]) -> ExampleLosses:
        smoothing = self._label_smoothing if self.training else 0.0
        return example_losses(self.model, batch, label_smoothing=smoothing, **self._special_tokens)


def _check_arguments(
    task_names: Sequence[str], bounds: Mapping[str, int], label_smoothing: float
) -> None:
    problems = [f"{name}={value} must be at least 1" for name, value in bounds.items() if value < 1]
    if not 0 <= label_smoothing < 1:
        problems.append(f"label_smoothing={label_smoothing} must be from 0 to below 1")
    twice = sorted({name for name in task_names if list(task_names).count(name) > 1})
    if twice:
        problems.append(f"task_names holds {', '.join(twice)} twice; every name needs its own id")
    if problems:
        raise ValueError("; ".join(problems) + ".")
