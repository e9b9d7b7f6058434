"""Ids for tasks that an adapter was not trained on, in a way that the user has chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from polylab.data.tasks import TaskCollection, TaskData, quote

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from polylab import PolyModel

__all__ = ["add_unknown_tasks", "embed"]


def add_unknown_tasks(
    model: PolyModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    known: Sequence[str],
    tasks: TaskCollection,
    trained: TaskCollection | None,
    way: str | None,
    has_heads: bool = False,
) -> dict[str, str]:
    """Give every task in `tasks` that is not `known` an id after those, in the order of names.

    - `mean`: its logits are the mean of all trained tasks' (`PolyModel.add_tasks(like="mean")`).
    - `nearest`: it is routed as the trained task whose description has the most similar embedding.
    - `input`: nothing is added, since the adapter is routed by the input alone.

    Args:
        model: With the trained adapter, which grows.
        tokenizer: Of the backbone.
        known: The trained tasks, by id.
        tasks: To be evaluated.
        trained: The trained tasks with their descriptions, for `nearest`.
        way: One of `choices.WAYS`; None refuses unknown tasks.
        has_heads: Whether tasks are classified by heads of their own; refuses unknown tasks.

    Returns:
        For `nearest` the neighbour of each new task.

    Raises:
        ValueError: If there are unknown tasks and no way is given or heads are needed, the way does
            not fit the adapter, or a description is missing.
    """
    new = [name for name in tasks.names if name not in set(known)]
    if not new:
        return {}
    if has_heads:
        raise ValueError(
            f"the run knows no {quote(new, 8)} · its tasks are {quote(known, 8)} · it classifies, "
            "and a task without a trained head has no answers (zero_shot makes none) · leave it "
            "out with task=NAME, or train with it."
        )
    if way is None:
        raise ValueError(
            f"the run knows no {quote(new, 8)} · its tasks are {quote(known, 8)} · say how others "
            "are to be routed, zero_shot=mean|nearest|input, or leave them out with task=NAME."
        )
    needs_ids = not model.is_input_routed
    if (way == "input") == needs_ids:
        kind = "is routed by task ids" if needs_ids else "is routed by the input and has no ids"
        valid = "mean or nearest" if needs_ids else "input"
        raise ValueError(f"zero_shot={way}: the adapter {kind} · give zero_shot={valid}.")
    if way == "input":
        return {}
    if way == "mean":
        model.add_tasks(new, like="mean")
        return {}
    neighbours = _nearest(model, tokenizer, known=known, tasks=tasks, trained=trained, new=new)
    for name in new:
        model.add_tasks([name], like=neighbours[name])
    return neighbours


def _nearest(
    model: PolyModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    known: Sequence[str],
    tasks: TaskCollection,
    trained: TaskCollection | None,
    new: Sequence[str],
) -> dict[str, str]:
    before = [] if trained is None else trained.tasks
    old = [task for task in before if task.name in set(known)]
    if not old:
        raise ValueError(
            f"zero_shot=nearest: the run's own data has none of its tasks {quote(known, 8)} any "
            "more, and with them went their descriptions · bring the data back to where the run's "
            "config.yaml says, or give zero_shot=mean."
        )
    unknown = [task for task in tasks.tasks if task.name in set(new)]
    texts = [describe(task) for task in [*old, *unknown]]
    missing = [t.name for t, text in zip([*old, *unknown], texts, strict=True) if not text]
    if missing:
        raise ValueError(
            f"zero_shot=nearest: {quote(missing, 8)} have no description and no instruction to "
            "compare · add them (instructions.json), or give zero_shot=mean."
        )
    vectors = embed(model, tokenizer, [text or "" for text in texts])
    best = (vectors[len(old) :] @ vectors[: len(old)].T).argmax(1).tolist()
    return {task.name: old[place].name for task, place in zip(unknown, best, strict=True)}


def describe(task: TaskData) -> str | None:
    """The task's description, else the instruction of its first example, without its input."""
    if task.description:
        return task.description
    first = next((split[0] for split in (task.train, task.test) if len(split)), None)
    if first is None or first.instruction is None:
        return None
    return first.instruction.removesuffix(first.input).strip() or None


def embed(model: PolyModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """`[texts, d_model]` of length 1: means over tokens of the backbone's last hidden states.

    The adapter is off; of an encoder-decoder the encoder is asked. Texts are cut to 512 tokens.
    """
    import torch

    base, device = model.get_base_model(), next(model.parameters()).device
    part: Any = base
    if model.config.is_encoder_decoder:
        part = base.get_encoder()  # type: ignore[operator]
    with torch.no_grad(), model.disable_adapter():
        return torch.stack([_embedding(part, tokenizer, text, device) for text in texts])


def _embedding(
    part: Any, tokenizer: PreTrainedTokenizerBase, text: str, device: torch.device
) -> Tensor:
    import torch

    ids = torch.tensor([tokenizer(text)["input_ids"][:512]], device=device)
    output = part(input_ids=ids, output_hidden_states=True)
    mean = output.hidden_states[-1][0].double().mean(0)
    return mean / mean.norm()
