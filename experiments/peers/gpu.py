"""What must hold on a GPU: one line per check, `name: works` or the error; runs on a CPU too.

    python experiments/peers/gpu.py [words of the checks to run]

Needs polylab, torch and transformers. Exits with 1 if a check fails.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from gpu_models import (
    BATCH,
    CUDA,
    DEVICE,
    N_TASKS,
    QUIET,
    SEQ,
    TARGETS,
    TYPES,
    base,
    batch,
    compare,
    gradients,
    poly,
    task_ids,
)

BAD_IDS = "--bad-ids"  # an assertion on the device ends the process that sees it: one of its own


class Skip(Exception):
    """The check needs a GPU."""


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Waiting for the device is an error inside."""
    if not CUDA:
        raise Skip
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def masked(kind: str) -> dict[str, torch.Tensor]:
    """A batch with the mask that transformers would make for Llama, and wait for the device."""
    if kind == "t5":
        return batch(kind)
    hidden = torch.ones(SEQ, SEQ, dtype=torch.bool, device=DEVICE).triu(1)
    mask = torch.zeros(BATCH, 1, SEQ, SEQ, dtype=torch.bfloat16, device=DEVICE)
    return {**batch(kind), "attention_mask": mask.masked_fill(hidden, -1e9)}


def base_does_not_synchronise(kind: str) -> None:
    """The yardstick: a base model that waits by itself says nothing of ours."""
    model, inputs = base(kind, torch.bfloat16).train(), masked(kind)
    model(**inputs, use_cache=False).loss.backward()
    with no_synchronisation():
        model(**inputs, use_cache=False).loss.backward()


def does_not_synchronise(kind: str, changes: dict, *, where: str, per_token: bool = False) -> None:
    """A forward and a backward in bf16, with ids on the host or on the device."""
    model, inputs = poly(kind, changes, torch.bfloat16), masked(kind)
    if kind == "llama":  # a mask of four dimensions does not say what the prompt is
        inputs["prompt_mask"] = (torch.arange(SEQ, device=DEVICE) < 4).expand(BATCH, -1)
    ids = task_ids()[:, None].repeat(1, SEQ) if per_token else task_ids()
    ids = ids.to(where)
    for turn in range(2):
        model.set_noise_key(3, turn)
        if turn == 0:  # kernels are loaded
            model(**inputs, task_ids=ids, use_cache=False).loss.backward()
            continue
        with no_synchronisation():
            output = model(**inputs, task_ids=ids, use_cache=False)
            output.loss.backward()
        assert output.logits.dtype == torch.bfloat16
        assert output.loss.isfinite().item()


def bad_ids_are_refused() -> None:
    """Ids on the device are asserted there."""
    command = [sys.executable, __file__, BAD_IDS]
    for kind in TARGETS:
        for bad in ("-1", str(N_TASKS)):
            done = subprocess.run(
                [*command, kind, bad], capture_output=True, text=True, check=False
            )
            text = done.stdout + done.stderr
            assert done.returncode, f"{kind}: id {bad} passed"
            assert "task_ids" in text or "device-side assert" in text, text[-500:]


def run_with_bad_ids(kind: str, bad: str) -> None:
    """Ends with an error."""
    ids = task_ids()
    ids[1] = int(bad)
    loss = poly(kind, QUIET["poly"])(**batch(kind), task_ids=ids.to(DEVICE)).loss
    print(loss.item())


def compiled_gradients(kind: str, changes: dict) -> None:
    """In one graph, those of eager mode, for other ids too; the reference is taken first."""
    model = poly(kind, changes)
    wanted = [gradients(model, model, kind, turn) for turn in range(3)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = "inductor" if CUDA else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for turn in range(3):
        compare(gradients(model, compiled, kind, turn), wanted[turn])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 1, f"{graphs} graphs for three batches of ids"


def static_cache(kind: str, changes: dict, *, compiles: bool) -> None:
    """The tokens of the dynamic cache. On a GPU transformers compiles the decoding steps."""
    torch._dynamo.reset()
    model = poly(kind, changes).eval()
    for turn in range(2):
        prompts = batch(kind, turn)["input_ids"]
        how = {"attention_mask": torch.ones_like(prompts), "task_ids": task_ids(turn)}
        how |= {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        wanted = model.generate(prompts, **how)
        how |= {"cache_implementation": "static", "disable_compile": not compiles}
        assert torch.equal(model.generate(prompts, **how), wanted), f"other tokens, call {turn}"


def checkpointing(kind: str, changes: dict, *, use_reentrant: bool) -> None:
    """The gradients of a run without it: the backward has a thread of its own on a GPU."""
    model = poly(kind, changes)
    wanted = gradients(model, model, kind)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    compare(gradients(model, model, kind), wanted)


def threads(kind: str, changes: dict, *, checkpoints: bool) -> None:
    """Two threads, forward and backward with ids of their own."""
    model = poly(kind, changes)
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def step(turn: int) -> dict:
        loss = model(**batch(kind, turn), task_ids=task_ids(turn), use_cache=False).loss
        return dict(zip(trained, torch.autograd.grad(loss, [*trained.values()]), strict=True))

    wanted, errors = [step(turn) for turn in range(2)], []

    def work(turn: int) -> None:
        try:
            for _ in range(20):
                compare(step(turn), wanted[turn])
        except Exception as error:
            errors.append(error)

    running = [threading.Thread(target=work, args=(turn,)) for turn in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def shut_gates(kind: str, dtype: torch.dtype) -> None:
    """A 16-bit router whose gates are all almost 0 gives even weights and no NaN."""
    model = poly(kind, QUIET["poly"], dtype, adapter_in_float32=False)
    for layer in model.poly_layers().values():
        layer.poly_router["default"].module_logits.data.fill_(-20)
    loss = model(**batch(kind), task_ids=task_ids(), use_cache=False).loss
    loss.float().backward()
    assert loss.isfinite().item(), "the loss is not finite"
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all().item(), name
    for weights in model.task_weights().values():
        assert (weights.float().sum(-1) - 1).abs().max().item() < 1e-2, "weights do not sum to 1"


def autocast(kind: str, changes: dict, *, dtype: torch.dtype) -> None:
    """Each layer's output has the dtype of its base layer's; gradients stay in float32."""
    model, seen = poly(kind, changes), set()
    for layer in model.poly_layers().values():
        layer.base_layer.register_forward_hook(lambda *args: seen.add(args[2].dtype))
        layer.register_forward_hook(lambda *args: seen.add(args[2].dtype))
    model.set_noise_key(3, 0)
    with torch.autocast(DEVICE, dtype=dtype):
        loss = model(**batch(kind), task_ids=task_ids(), use_cache=False).loss
    loss.backward()
    assert seen == {dtype}, f"outputs in {seen}"
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g.dtype == torch.float32 and g.isfinite().all().item() for g in grads)


def moves(kind: str) -> None:
    """A copy on the host computes what the original does on the device."""
    model = poly(kind, QUIET["poly"])
    twin, inputs = copy.deepcopy(model).cpu(), batch(kind)
    found = twin(**{n: t.cpu() for n, t in inputs.items()}, task_ids=task_ids()).logits
    wanted = model(**inputs, task_ids=task_ids()).logits.cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


_Checks = Iterator[tuple[str, Callable[[], None]]]


def checks() -> _Checks:
    """Names, and what raises if it does not hold."""
    for kind in TARGETS:
        yield from checks_of_host(kind)
        for name, changes in TYPES.items():
            yield from checks_of_steps(kind, name, changes=changes)
        for name, changes in QUIET.items():
            yield from checks_of_calls(kind, name, changes=changes)
    label = "llama, poly: no synchronisation, ids per token"
    yield label, partial(does_not_synchronise, "llama", TYPES["poly"], where=DEVICE, per_token=True)
    yield "ids out of range are refused", bad_ids_are_refused


def checks_of_host(kind: str) -> _Checks:
    """Base, devices and dtypes."""
    yield f"{kind}: the base model does not synchronise", partial(base_does_not_synchronise, kind)
    yield f"{kind}: moves to the host", partial(moves, kind)
    for dtype in (torch.float16, torch.bfloat16):
        yield f"{kind}: almost shut gates in {dtype}", partial(shut_gates, kind, dtype)


def checks_of_steps(kind: str, name: str, *, changes: dict) -> _Checks:
    """Training steps, with noise too."""
    for where in dict.fromkeys(("cpu", DEVICE)):
        label = f"{kind}, {name}: no synchronisation, ids on {where}"
        yield label, partial(does_not_synchronise, kind, changes, where=where)
    for dtype in (torch.float16, torch.bfloat16):
        yield f"{kind}, {name}: autocast {dtype}", partial(autocast, kind, changes, dtype=dtype)
    if changes != TYPES["poly"]:  # noise that cannot be drawn again
        label = f"{kind}, {name}: compiled gradients are those of eager mode"
        yield label, partial(compiled_gradients, kind, changes)


def checks_of_calls(kind: str, name: str, *, changes: dict) -> _Checks:
    """Checkpointing, threads and static caches."""
    for flag in (True, False):
        label = f"{kind}, {name}: checkpointing, use_reentrant={flag}"
        yield label, partial(checkpointing, kind, changes, use_reentrant=flag)
        label = f"{kind}, {name}: two threads, checkpointing={flag}"
        yield label, partial(threads, kind, changes, checkpoints=flag)
        label = f"{kind}, {name}: static cache, compiled={flag}"
        yield label, partial(static_cache, kind, changes, compiles=flag)


def main(words: list[str]) -> int:
    """Run the checks whose name holds every word; the number of failures."""
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if CUDA else 'CPU'}")
    failed = 0
    for name, check in checks():
        if not all(word in name for word in words):
            continue
        try:
            check()
            print(f"{name}: works", flush=True)
        except Skip:
            print(f"{name}: skipped (needs CUDA)", flush=True)
        except Exception as error:
            failed += 1
            lines = str(error).strip().splitlines() or [""]
            print(f"{name}: error: {type(error).__name__}: {lines[0][:300]}", flush=True)
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == [BAD_IDS]:
        run_with_bad_ids(*sys.argv[2:])
    else:
        sys.exit(min(1, main(sys.argv[1:])))
