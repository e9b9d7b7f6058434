"""D1 to D5: how the task ids reach the layers, whatever way a model is called."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from experiments.peers.libraries import Library, NotChecked, Wrong, agree
from experiments.peers.models import (
    BATCH,
    IDS,
    adapted,
    backbone,
    gradients,
    inputs,
    logits,
    merged,
)


def d01_checkpointing_reentrant(lib: Library) -> None:
    """Gradient checkpointing, reentrant: the same gradients."""
    _checkpointing(lib, use_reentrant=True)


def d01_checkpointing_non_reentrant(lib: Library) -> None:
    """Gradient checkpointing, not reentrant: the same gradients."""
    _checkpointing(lib, use_reentrant=False)


def _checkpointing(lib: Library, *, use_reentrant: bool) -> None:
    model = adapted(lib, "llama").double().train()
    model.enable_input_require_grads()  # what reentrant checkpointing asks of any frozen model
    wanted = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    runs = _count_runs(lib, model)
    found = gradients(model)
    if len(runs) != 2 * len(lib.layers(model)):
        raise Wrong(f"{len(runs)} runs of {len(lib.layers(model))} layers: nothing is recomputed")
    if found.keys() != wanted.keys():
        raise Wrong(f"{len(wanted) - len(found)} of {len(wanted)} gradients are missing")
    for name, gradient in wanted.items():
        agree(found[name], gradient)


def _count_runs(lib: Library, model: Any) -> list[int]:
    runs: list[int] = []
    for layer in lib.layers(model).values():
        layer.base_layer.register_forward_hook(lambda *_: runs.append(1))
    return runs


def d02_qlora_preparation(lib: Library) -> None:
    """`prepare_model_for_kbit_training` with its defaults, then a training step."""
    base = backbone("llama")
    base.is_loaded_in_4bit = True  # what makes the preparation switch checkpointing on
    _train_step(adapted(lib, "llama", _prepared(base)))


def d02_qlora_4bit(lib: Library) -> None:
    """A 4-bit bitsandbytes backbone, prepared, then a training step."""
    try:
        import bitsandbytes
    except ImportError:
        raise NotChecked("needs bitsandbytes") from None
    base = backbone("llama")
    for name, module in [*base.named_modules()]:
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent = base.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _quantised(bitsandbytes, module))
    base.is_loaded_in_4bit = True
    _train_step(adapted(lib, "llama", _prepared(base)))


def _quantised(bitsandbytes: Any, linear: nn.Linear) -> nn.Module:
    quantised = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32
    )
    quantised.load_state_dict(linear.state_dict())
    return quantised.to("cpu")  # this move is what quantises


def _prepared(base: Any) -> Any:
    try:
        from peft import prepare_model_for_kbit_training
    except ImportError:
        raise NotChecked("needs PEFT's prepare_model_for_kbit_training") from None
    return prepare_model_for_kbit_training(base)


def _train_step(model: Any) -> None:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    found = gradients(model)
    if len(found) != len(parameters):
        raise Wrong(f"{len(parameters) - len(found)} of {len(parameters)} gradients are missing")
    torch.optim.AdamW(parameters, lr=1e-2).step()
    still = sum(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    if still or not all(torch.isfinite(p).all() for p in parameters):
        raise Wrong(f"{still} of {len(parameters)} tensors did not move, or one is not finite")


def d03_beam_search_t5(lib: Library) -> None:
    """T5, 3 beams."""
    _beams(lib, "t5", num_beams=3)


def d03_beam_search_llama(lib: Library) -> None:
    """Llama, 3 beams."""
    _beams(lib, "llama", num_beams=3)


def d03_several_returned_t5(lib: Library) -> None:
    """T5, 3 beams, `num_return_sequences=2`."""
    _beams(lib, "t5", num_beams=3, num_return_sequences=2)


def d03_several_returned_llama(lib: Library) -> None:
    """Llama, 3 beams, `num_return_sequences=2`."""
    _beams(lib, "llama", num_beams=3, num_return_sequences=2)


def d03_batch_of_one_t5(lib: Library) -> None:
    """T5, 3 beams, one prompt."""
    _beams(lib, "t5", batch=1, num_beams=3)


def d03_batch_of_one_llama(lib: Library) -> None:
    """Llama, 3 beams, one prompt."""
    _beams(lib, "llama", batch=1, num_beams=3)


def d03_greedy_t5(lib: Library) -> None:
    """T5, greedy decoding."""
    _beams(lib, "t5")


def d03_greedy_llama(lib: Library) -> None:
    """Llama, greedy decoding."""
    _beams(lib, "llama")


def _beams(lib: Library, kind: str, *, batch: int = BATCH, **how: int) -> None:
    """Each prompt's sequences are those of a plain model with its task's update merged in."""
    model, prompts = adapted(lib, kind), inputs(kind)["input_ids"][-batch:]
    ids = IDS[-batch:]
    common = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **how}
    mask = torch.ones_like(prompts)
    found = model.generate(input_ids=prompts, attention_mask=mask, task_ids=ids, **common)
    wanted = [
        merged(lib, model, kind, task).generate(
            input_ids=prompt[None], attention_mask=torch.ones_like(prompt)[None], **common
        )
        for prompt, task in zip(prompts, ids.tolist(), strict=True)
    ]
    if not torch.equal(found, torch.cat(wanted)):
        raise Wrong("other tokens than the merged models'")


def d04_two_threads(lib: Library) -> None:
    """Two threads, different ids, one model: each gets its own."""
    model, ids = adapted(lib, "llama"), {"first": IDS, "second": (IDS + 1) % 6}
    with torch.no_grad():
        wanted = {name: logits(model, "llama", task_ids=ids[name]) for name in ids}
    if torch.allclose(wanted["first"], wanted["second"]):
        raise Wrong("the ids make no difference")
    meeting = _Meeting()
    model.get_input_embeddings().register_forward_pre_hook(meeting.wait)
    found: dict[str, Tensor | Exception] = {}

    def work(name: str) -> None:
        try:
            with torch.no_grad():
                found[name] = logits(model, "llama", task_ids=ids[name])
        except Exception as error:
            found[name] = error
        finally:
            meeting.leave()

    threads = [threading.Thread(target=work, args=(name,), name=name) for name in ids]
    threads[0].start()
    meeting.first_entered.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join()
    for name, result in found.items():
        if isinstance(result, Exception):
            raise result
        agree(result, wanted[name])


class _Meeting:
    """The unlucky order, made certain: the first call computes after the second has begun."""

    def __init__(self) -> None:
        self.first_entered, self.second_entered = threading.Event(), threading.Event()
        self.first_done = threading.Event()

    def wait(self, *_: Any) -> None:
        if threading.current_thread().name == "first":
            self.first_entered.set()
            self.second_entered.wait(10)
        else:
            self.second_entered.set()
            self.first_done.wait(10)

    def leave(self) -> None:
        done_by_first = threading.current_thread().name == "first"
        for event in (self.first_entered, self.first_done) if done_by_first else ():
            event.set()
        if not done_by_first:
            self.second_entered.set()


def d05_encoder_alone(lib: Library) -> None:
    """T5's encoder by itself takes the ids."""
    model, ids = adapted(lib, "t5"), inputs("t5")["input_ids"]
    wanted = model(**inputs("t5"), task_ids=IDS).encoder_last_hidden_state
    agree(model.get_encoder()(input_ids=ids, task_ids=IDS).last_hidden_state, wanted)


def d05_exception_leaves_nothing(lib: Library) -> None:
    """After an exception in a forward, the next one sees no stale ids."""
    model = adapted(lib, "llama")
    wanted = logits(model, "llama")
    try:
        model(input_ids=torch.full((BATCH, 3), 999), task_ids=IDS.flip(0))
    except IndexError:
        pass
    else:
        raise Wrong("a token out of the vocabulary was taken")
    try:
        model(**inputs("llama"))
    except ValueError as error:
        if "task_ids" not in str(error):
            raise
    else:
        raise Wrong("a call without ids ran with the ids of the failed one")
    agree(logits(model, "llama"), wanted)
