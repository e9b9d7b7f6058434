"""D6 to D10: what may be given as task ids, and what becomes of it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.peers.libraries import Library, Wrong, agree
from experiments.peers.models import BATCH, IDS, N_TASKS, adapted, inputs, logits, merged


def d06_trainer(lib: Library) -> None:
    """Transformers' Trainer with its defaults passes the ids on."""
    from transformers import Trainer, TrainingArguments

    model, batch = adapted(lib, "llama"), inputs("llama")
    rows = [
        {**{name: tensor[i] for name, tensor in batch.items()}, "task_ids": IDS[i]}
        for i in range(BATCH)
    ]
    router = next(iter(lib.layers(model).values())).poly_router["default"]
    before = router.module_logits.detach().clone()
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        args = TrainingArguments(
            folder,
            max_steps=1,
            per_device_train_batch_size=BATCH,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=args, train_dataset=rows).train()  # type: ignore[arg-type]
    moved = (router.module_logits.detach() != before).any(-1).nonzero().flatten().tolist()
    if moved != sorted({*IDS.tolist()}):
        raise Wrong(f"rows {moved} of the router moved, not {sorted({*IDS.tolist()})}")


def d07_none(lib: Library) -> None:
    """`task_ids=None` is refused by name."""
    _refused(lib, None)


def d07_negative(lib: Library) -> None:
    """A negative id is refused by name."""
    _refused(lib, torch.tensor([0, -1, 2, 5]))


def d07_too_large(lib: Library) -> None:
    """An id of `n_tasks` is refused by name."""
    _refused(lib, torch.tensor([0, N_TASKS, 2, 5]))


def d07_list(lib: Library) -> None:
    """A list is refused by name, or taken as ids."""
    _refused(lib, IDS.tolist(), meaning=IDS)


def d07_float(lib: Library) -> None:
    """Float ids are refused by name."""
    _refused(lib, IDS.float())


def d07_bool(lib: Library) -> None:
    """Bool ids are refused by name."""
    _refused(lib, torch.tensor([True, False, True, True]))


def d07_uint8(lib: Library) -> None:
    """Uint8 ids are refused by name, or taken as ids."""
    _refused(lib, IDS.to(torch.uint8), meaning=IDS)


def d07_scalar(lib: Library) -> None:
    """A scalar is refused by name, or taken for all rows."""
    _refused(lib, torch.tensor(1), meaning=torch.full((BATCH,), 1))


def d07_column(lib: Library) -> None:
    """Ids `[batch, 1]` are refused by name, or taken as ids."""
    _refused(lib, IDS[:, None], meaning=IDS)


def d07_too_few(lib: Library) -> None:
    """3 ids for 4 rows are refused by name."""
    _refused(lib, IDS[:3])


def d07_divisor(lib: Library) -> None:
    """2 ids for 4 rows are refused by name."""
    _refused(lib, IDS[:2])


def d07_too_many(lib: Library) -> None:
    """8 ids for 4 rows are refused by name."""
    _refused(lib, IDS.repeat(2))


def d07_empty_batch(lib: Library) -> None:
    """No row and no id: refused by name, or an empty result."""
    empty, none = torch.empty(0, 7, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    result = _unless_named(lambda: adapted(lib, "llama")(input_ids=empty, task_ids=none).logits)
    if result is not None and result.shape[0] != 0:
        raise Wrong(f"{result.shape[0]} rows from none")


def _refused(lib: Library, ids: Any, *, meaning: Tensor | None = None) -> None:
    """An error that names the ids, or the result of `meaning`."""
    model = adapted(lib, "llama")
    result = _unless_named(lambda: logits(model, "llama", task_ids=ids))
    if result is None:
        return
    if meaning is None:
        raise Wrong("taken without a word")
    for row, task in enumerate(meaning.tolist()):
        plain = merged(lib, model, "llama", task)(**inputs("llama")).logits
        agree(result[row], plain[row], rtol=1e-4, atol=1e-4)  # products in another order


def _unless_named(call: Callable[[], Tensor]) -> Tensor | None:
    """The result; None if it is refused by an error about the task ids."""
    try:
        return call()
    except (ValueError, TypeError, IndexError) as error:
        if "task id" in str(error).lower().replace("_", " "):
            return None
        raise


def d08_many_tasks_bf16(lib: Library) -> None:
    """Ids above 256 choose the right row on a bfloat16 model."""
    model = adapted(lib, "llama", n_tasks=600).to(torch.bfloat16)
    ids = torch.tensor([257, 258, 259, 599])
    found = logits(model, "llama", task_ids=ids)
    with torch.no_grad():
        for layer in lib.layers(model).values():
            table = layer.poly_router["default"].module_logits
            table[:BATCH] = table[ids].clone()
    if not torch.equal(logits(model, "llama", task_ids=torch.arange(BATCH)), found):
        raise Wrong("not the result of those rows")
    if torch.equal(logits(model, "llama", task_ids=ids - 1), found):
        raise Wrong("the ids make no difference")


def d09_no_wait_in_layers(lib: Library) -> None:
    """No adapted layer waits for the device in a training forward."""
    model = adapted(lib, "llama").train()
    layers = lib.layers(model).values()
    waits = _Waits()
    for layer in layers:
        layer.register_forward_pre_hook(waits.enter)
        layer.register_forward_hook(waits.leave)
    with waits:
        logits(model, "llama")
    if waits.layers:
        raise Wrong(f"{len(waits.layers)} of {len(layers)} layers wait")


class _Waits(TorchDispatchMode):
    """Collects the layers that call `.item()` or its like, between `enter` and `leave`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: set[Any] = set()
        self.running: Any = None

    def enter(self, layer: Any, *_: Any) -> None:
        self.running = layer

    def leave(self, *_: Any) -> None:
        self.running = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if self.running is not None and func in waits:
            self.layers.add(self.running)
        return func(*args, **(kwargs or {}))


def d10_packed_rows(lib: Library) -> None:
    """A packed row with an id per token: each token its own task, or refused by name."""
    model, per_row = adapted(lib, "llama"), IDS[:, None].expand(-1, 7)
    packed = per_row.clone()
    packed[:, 3:] = 1
    result = _unless_named(lambda: logits(model, "llama", task_ids=packed))
    if result is None:
        return
    agree(result[:, :3], logits(model, "llama")[:, :3])
    if torch.allclose(result[:, 3:], logits(model, "llama")[:, 3:]):
        raise Wrong("one id for the whole row")


def d10_unknown_task(lib: Library) -> None:
    """`generate` with an id that no task has is refused by name."""
    model, prompts = adapted(lib, "llama"), inputs("llama")["input_ids"]
    ids = torch.full((BATCH,), N_TASKS + 3)
    mask = torch.ones_like(prompts)
    result = _unless_named(
        lambda: model.generate(
            input_ids=prompts, attention_mask=mask, task_ids=ids, max_new_tokens=2
        )
    )
    if result is not None:
        raise Wrong("taken without a word")
