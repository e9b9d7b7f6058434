"""`trainer=fsdp`: Lightning's strategy for FSDP2, with checkpoints that every strategy reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from polylab.poly.sharding import shard_like, whole
from polylab.training.checkpoint import trainable_part

__all__ = ["ShardedStrategy"]


class ShardedStrategy(ModelParallelStrategy):
    """Data parallel over all ranks, with sharded parameters; the module's `configure_model` shards.

    A checkpoint is one file of whole tensors, as any other strategy writes it: it can be continued
    on another number of ranks, and by another strategy.

    Args:
        shard_skills: False leaves the skills whole on each rank: steps are quicker, and their
            parameters, gradients and moments take 16 bytes each on every rank.
    """

    def __init__(self, *, shard_skills: bool = True) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.shard_skills = shard_skills

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def setup(self, trainer: Trainer) -> None:
        # A sharded tensor cannot be detached there. On gloo Lightning itself does without.
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False
        super().setup(trainer)

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trainable part; the frozen backbone, which is most of all, is never gathered."""
        assert self.lightning_module is not None
        part = trainable_part(self.lightning_module)
        return {name: whole(tensor.detach()).cpu() for name, tensor in part.items()}

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        state = shard_like(checkpoint["state_dict"], module.state_dict(keep_vars=True))
        module.load_state_dict(state, strict=strict)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = Strategy.optimizer_state(self, optimizer)
        return _mapped(state, lambda tensor: whole(tensor).cpu())

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = checkpoint["optimizer_states"]
        sharded = [_sharded(own, state) for own, state in zip(self.optimizers, states, strict=True)]
        Strategy.load_optimizer_state_dict(self, {"optimizer_states": sharded})

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def check_strategy(strategy: Strategy, *, is_shardable: bool) -> None:
    """Refuse strategies under which a module would not train what it should.

    Raises:
        ValueError: If parameters would be sharded in another way than `ShardedStrategy` does it, or
            the module cannot be.
    """
    name = type(strategy).__name__
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        if not isinstance(strategy, ShardedStrategy):
            raise ValueError(
                f"{name} would leave the routers of the ranks to drift apart; give trainer=fsdp "
                "(polylab.training.ShardedStrategy), or trainer=ddp."
            )
        if not is_shardable:
            raise ValueError(
                f"{name} cannot shard the heads of a classification; give trainer=ddp."
            )


def check_sharded(trainer: Trainer, optimizer_name: str) -> None:
    """Refuse settings that work on gradients as if all were whole.

    Raises:
        ValueError: If the trainer clips them by itself, or scales the loss for float16; or the
            optimiser is Adafactor.
    """
    if optimizer_name == "adafactor":
        raise ValueError(
            "optim.name=adafactor keeps moments of whole rows and columns; give adamw or adam, or "
            "trainer=ddp."
        )
    if trainer.gradient_clip_val:
        raise ValueError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} takes one norm of sharded and "
            "whole gradients, which cannot be; give optim.clip, the norm of each group."
        )
    if trainer.precision == "16-mixed":
        raise ValueError(
            "trainer.precision=16-mixed scales sharded and whole gradients together, which cannot "
            "be; give bf16-mixed, or trainer=ddp."
        )


def _sharded(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state with the moments of sharded parameters sharded as these are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {
        place: shard_like(moments, {name: parameters[place] for name in moments})
        for place, moments in state["state"].items()
    }
    return {**state, "state": own}


def _mapped(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same containers with every tensor changed."""
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, dict):
        return {key: _mapped(value, change) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(_mapped(value, change) for value in item)
    return item
