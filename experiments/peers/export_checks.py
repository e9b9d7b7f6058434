"""D26 to D29: compiling, export, independence of neighbours, routing by the input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from experiments.peers.libraries import Library, NotChecked, Wrong, agree
from experiments.peers.models import (
    IDS,
    N_TASKS,
    adapted,
    backbone,
    inputs,
    logits,
    merged,
)

_ROOT = Path(__file__).resolve().parents[2]
_LOOSER = {"rtol": 1e-4, "atol": 1e-4}  # kernels sum in another order


def d26_compile_fullgraph(lib: Library) -> None:
    """`torch.compile(fullgraph=True)`: the logits and gradients of eager mode."""
    if _is_hooked(lib):
        _in_another_process(lib, "d26_compile_fullgraph")
    else:
        _compile(lib, fullgraph=True)


def d26_compile(lib: Library) -> None:
    """`torch.compile`, graph breaks allowed: the logits and gradients of eager mode."""
    if _is_hooked(lib):
        _in_another_process(lib, "d26_compile")
    else:
        _compile(lib, fullgraph=False)


def _compile(lib: Library, *, fullgraph: bool) -> None:
    model = _compilable(lib)
    wanted = _logits_and_gradients(copy(model), model)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
        found = _logits_and_gradients(compiled, model)
    finally:
        torch._dynamo.reset()
    for name, tensor in wanted.items():
        agree(found[name], tensor, **_LOOSER)


def d26_export(lib: Library) -> None:
    """`torch.export`: the logits of eager mode, for other ids too."""
    if _is_hooked(lib):
        _in_another_process(lib, "d26_export")
        return
    model, tokens = _compilable(lib), inputs("llama")["input_ids"]
    wanted = model(input_ids=tokens, task_ids=IDS.flip(0)).logits
    if torch.allclose(wanted, model(input_ids=tokens, task_ids=IDS).logits):
        raise Wrong("the ids make no difference")
    program = torch.export.export(model, (), {"input_ids": tokens, "task_ids": IDS})
    found = program.module()(input_ids=tokens, task_ids=IDS.flip(0)).logits
    agree(found, wanted, **_LOOSER)


def _compilable(lib: Library) -> Any:
    model = adapted(lib, "llama", backbone("llama", n_layers=1))  # compiling takes seconds
    model.config.use_cache = False
    return model


def _logits_and_gradients(call: Callable[..., Any], model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    found = call(input_ids=inputs("llama")["input_ids"], task_ids=IDS).logits
    found.square().sum().backward()
    trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for name, gradient in trainable.items() if gradient is None]
    if missing:
        raise Wrong(f"{len(missing)} of {len(trainable)} gradients are missing")
    gradients = {name: grad.clone() for name, grad in trainable.items() if grad is not None}
    return {"logits": found.detach(), **gradients}


def _is_hooked(lib: Library) -> bool:
    """Whether jaxtyping's import hook is on, whose checks dynamo cannot trace."""
    finders = [type(finder).__module__ for finder in sys.meta_path]
    return lib.name == "polylab" and any(name.startswith("jaxtyping") for name in finders)


def _in_another_process(lib: Library, name: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(_ROOT)!r})\n"
        "from experiments.peers.checks import run\n"
        f"run({name!r}, {lib.name!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Wrong(done.stderr.strip().splitlines()[-1])


def d27_merge(lib: Library) -> None:
    """`merge_and_unload(task=...)`: the logits of the adapter, for every task, 1 and 2 splits."""
    for n_splits in (1, 2):
        for task in range(N_TASKS):
            model = adapted(lib, "llama", n_splits=n_splits)
            wanted = _one_task(model, task)
            try:
                plain = model.merge_and_unload(task=task)
            except TypeError:  # PEFT's takes no task
                plain = model.merge_and_unload()
            agree(plain(**inputs("llama")).logits, wanted, **_LOOSER)
            if lib.layer_type in {type(module) for module in plain.modules()}:
                raise Wrong("adapted layers are left")


def d27_export_lora(lib: Library) -> None:
    """A plain PEFT LoRA of every task: the logits of the adapter, 1 and 2 splits."""
    try:
        from peft import PeftModel
    except ImportError:
        raise NotChecked("needs PEFT") from None
    for n_splits in (1, 2):
        model = adapted(lib, "llama", n_splits=n_splits)
        for task in range(N_TASKS):
            with TemporaryDirectory() as folder:
                model.export_lora(task, folder)
                lora = PeftModel.from_pretrained(backbone("llama"), folder).eval()
            agree(lora(**inputs("llama")).logits, _one_task(model, task), **_LOOSER)


def _one_task(model: Any, task: int) -> Tensor:
    return logits(model, "llama", task_ids=torch.full_like(IDS, task)).detach()


def d28_neighbours(lib: Library) -> None:
    """An example's logits do not depend on the rest of its batch."""
    for kind in ("llama", "t5"):
        model, batch = adapted(lib, kind), inputs(kind)
        together = logits(model, kind)
        for row in range(len(IDS)):
            one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            alone = model(**one, task_ids=IDS[row : row + 1]).logits
            agree(together[row], alone[0], **_LOOSER)


def d28_same_as_alone(lib: Library) -> None:
    """A batch of many tasks: each row as its merged model computes it alone."""
    model, batch = adapted(lib, "t5"), inputs("t5")
    together = logits(model, "t5")
    for row, task in enumerate(IDS.tolist()):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        agree(together[row], merged(lib, model, "t5", task)(**one).logits[0], **_LOOSER)


def d29_no_label_leak(lib: Library) -> None:
    """`mope`: other target tokens leave the routing and the prompt's logits as they are."""
    model = adapted(lib, "llama", poly_type="mope")
    batch = inputs("llama")
    batch["labels"][:, :3] = -100  # the prompt
    other = {name: tensor.clone() for name, tensor in batch.items()}
    other["input_ids"][:, 3:] = 39
    other["labels"][:, 3:] = 39
    for name, weights in model.mixing_weights(**batch).items():
        if not torch.equal(model.mixing_weights(**other)[name], weights):
            raise Wrong("the routing depends on the target")
    if not torch.equal(model(**batch).logits[:, :3], model(**other).logits[:, :3]):
        raise Wrong("the prompt's logits depend on the target")


def d29_padding_side(lib: Library) -> None:
    """`mope`: left and right padding route alike."""
    model = adapted(lib, "llama", poly_type="mope")
    tokens = inputs("llama")["input_ids"]
    pad = torch.zeros(len(tokens), 2, dtype=torch.int64)
    mask = torch.cat([torch.ones_like(tokens), pad], dim=1)
    right = model(input_ids=torch.cat([tokens, pad], dim=1), attention_mask=mask).logits
    positions = (mask.flip(1).cumsum(1) - 1).clamp(min=0)  # as generate gives them
    left = model(
        input_ids=torch.cat([pad, tokens], dim=1),
        attention_mask=mask.flip(1),
        position_ids=positions,
    ).logits
    agree(left[:, 2:], right[:, :-2], **_LOOSER)


def d29_cached_decoding(lib: Library) -> None:
    """`mope`: decoding with and without a cache gives the same tokens."""
    for kind in ("llama", "t5"):
        model = adapted(lib, kind, poly_type="mope")
        tokens = inputs(kind)["input_ids"]
        how = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 6, "do_sample": False}
        cached = model.generate(input_ids=tokens, use_cache=True, **how)
        if not torch.equal(model.generate(input_ids=tokens, use_cache=False, **how), cached):
            raise Wrong("other tokens")
