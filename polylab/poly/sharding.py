"""A model whose parameters are sharded over ranks: PyTorch's `fully_shard` (FSDP2).

The backbone and the skills are sharded, block by block. The routers are not: they are small, all
of an adapter are evaluated at once before the backbone runs, and what is logged of a routing reads
them at any time. Every rank holds them whole, and `average_gradients` keeps them equal. Skills may
be left whole too: then all are mixed at once, which is quicker and takes their memory on each rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from polylab.poly.layers import PolyLayer
from polylab.poly.structure import blocks_of

if TYPE_CHECKING:
    from polylab.poly.routed import RoutedModel

__all__ = [
    "average_gradients",
    "find_blocks",
    "is_sharded",
    "local_part",
    "shard",
    "shard_like",
    "whole",
]

_Key = TypeVar("_Key")


def shard(model: RoutedModel, mesh: DeviceMesh, *, shard_skills: bool = True) -> None:
    """Shard an adapted model over a one-dimensional `mesh`, in place; a second time does nothing.

    Each transformer block is gathered for its forward and again for its backward; what is outside
    the blocks (embeddings, heads) likewise. Every rank must then call the model equally often.

    Args:
        model: A `PolyModel`, alike on all ranks.
        mesh: Its ranks.
        shard_skills: False leaves A and B whole on every rank.

    Raises:
        ValueError: If the model has no blocks that are known as such, or is quantised.
    """
    base = model.get_base_model()
    if isinstance(base, FSDPModule):
        return
    blocks = find_blocks(base)
    kept = {"poly_router"} if shard_skills else {"poly_router", "poly_lora_A", "poly_lora_B"}
    named = base.named_parameters()
    kept_whole = [parameter for name, parameter in named if kept & {*name.split(".")}]
    device = torch.device(mesh.device_type)  # the current one, as fully_shard takes it
    for parameter in kept_whole:
        parameter.data = parameter.data.to(device)  # fully_shard moves the others only
        distributed.broadcast(parameter.data, src=0, group=mesh.get_group())
    for module in [*blocks, base]:
        fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=True,
            shard_placement_fn=partial(_placement, ranks=mesh.size()),
            ignored_params={*kept_whole},
        )
    for block in blocks if shard_skills else ():
        _mix_in(block, model)
    register_fsdp_forward_method(base, "generate")


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a base model, each of which is sharded by itself.

    Raises:
        ValueError: If the model has no blocks that are known as such, or is quantised.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks to shard: none of its modules is a "
            "transformers.modeling_layers.GradientCheckpointingLayer. Use trainer=ddp."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"{type(model).__name__} is quantised, and its weights cannot be sharded. Use "
            "trainer=ddp, or backbone.quantization=null."
        )
    return blocks


def _mix_in(block: nn.Module, model: RoutedModel) -> None:
    """Let the block's skills be mixed all at once, while they are whole."""
    names = [layer.name for layer in block.modules() if isinstance(layer, PolyLayer)]
    if names:
        block.register_forward_pre_hook(lambda *_: model.mix_block(names))
        block.register_forward_hook(lambda *_: model.forget_block(names))


def _placement(parameter: nn.Parameter, ranks: int) -> Shard:
    """Cut along the first dimension, which is the quickest to put together again.

    That of skills counts the heads. Where these are fewer than the ranks, the largest dimension is
    cut that gives all ranks equal parts.
    """
    if len(parameter) >= ranks:
        return Shard(0)
    even = [dim for dim, size in enumerate(parameter.shape) if size % ranks == 0]
    return Shard(max(even, key=lambda dim: parameter.shape[dim], default=0))


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has sharded this model, so that each forward is one of all ranks."""
    return isinstance(getattr(model, "model", model), FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one: then all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """The tensor itself, or this rank's part of a sharded one, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensors: Mapping[_Key, Tensor], like: Mapping[_Key, Tensor]) -> dict[_Key, Tensor]:
    """Whole tensors, those sharded whose namesakes in `like` are and have their shape.

    Without communication: each rank takes its part of what it has.
    """
    return {name: _shard_like(tensor, like.get(name)) for name, tensor in tensors.items()}


def _shard_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    own = tensor.to(like.device)
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of those that every rank holds whole by their mean over ranks.

    In one exchange, for parameters that `shard` has left whole. One without a gradient on a rank
    counts as zero there, and keeps none if no rank has one.
    """
    kept_whole = [p for p in parameters if not isinstance(p, DTensor)]
    absent = [place for place, p in enumerate(kept_whole) if p.grad is None]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in kept_whole]
    if not grads:
        return
    ranks = grads[0].new_ones(len(grads))  # how many have a gradient of it
    for place in absent:
        ranks[place] = 0
    flat = torch.cat([*(grad.flatten() for grad in grads), ranks])
    distributed.all_reduce(flat)
    *sums, ranks = flat.split([*(grad.numel() for grad in grads), len(grads)])
    for parameter, grad, total in zip(kept_whole, grads, sums, strict=True):
        parameter.grad = grad.copy_((total / distributed.get_world_size()).view_as(grad))
    if absent:  # what no rank has reached is not to be stepped
        for place, count in enumerate(ranks.tolist()):
            if count == 0:
                kept_whole[place].grad = None
