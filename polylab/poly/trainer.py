"""For the Trainer of transformers: checkpoints that hold the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polylab.poly.layers import PolyLayer
from polylab.poly.model import PolyModel

__all__ = ["AdapterCheckpoints"]


class AdapterCheckpoints(TrainerCallback):
    """Each checkpoint holds what trains, and opens with `PolyModel.from_pretrained`.

    Without it a checkpoint holds the base model too, and no adapter's files. From the making of the
    Trainer on, `model.state_dict()` is without the frozen base.

    Raises:
        TypeError: If the Trainer's model is no PolyModel.
    """

    def on_init_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Leave the frozen base out of state dicts."""
        model = _checked(kwargs["model"])
        model.register_state_dict_post_hook(_drop_base)
        model.register_load_state_dict_post_hook(_forgive_base)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Write the adapter beside what the Trainer wrote."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            _checked(kwargs["model"]).save_pretrained(folder)


def _checked(model: object) -> PolyModel:
    if not isinstance(model, PolyModel):
        raise TypeError(
            f"AdapterCheckpoints needs a PolyModel, not {type(model).__name__}: wrap the "
            "Trainer's model with get_peft_model."
        )
    return model


def _drop_base(module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in _frozen(module):
        state.pop(prefix + name, None)


def _forgive_base(module: nn.Module, incompatible: Any) -> None:
    frozen = _frozen(module)
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in frozen]


def _frozen(module: nn.Module) -> set[str]:
    """Names of the base's frozen parameters; an adapter's frozen parts are not the base's."""
    named = module.named_parameters(remove_duplicate=False)
    adapter = {*PolyLayer.adapter_layer_names}
    return {n for n, p in named if not p.requires_grad and adapter.isdisjoint(n.split("."))}
