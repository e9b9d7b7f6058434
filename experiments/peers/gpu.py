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
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from polylab import PolyConfig, PolyModel, get_peft_model

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BATCH, SEQ, VOCABULARY, N_TASKS = 4, 12, 96, 6
TYPES = {
    "poly": {"noise_source": "global"},
    "poly, keyed noise": {"noise_source": "keyed"},
    "private": {"poly_type": "private"},
    "mope": {"poly_type": "mope"},
}
QUIET = {"poly": {"noise": "none"}, "private": TYPES["private"], "mope": TYPES["mope"]}
TARGETS = {"t5": ["q", "v", "wi_0", "wo"], "llama": ["q_proj", "v_proj", "down_proj"]}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": False}
BAD_IDS = "--bad-ids"  # an assertion on the device ends the process that sees it: one of its own


class Skip(Exception):
    """The check needs a GPU."""


# Models


def base(kind: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A tiny random model without dropout."""
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(
            vocab_size=VOCABULARY, initializer_range=0.15, **sizes, **heads, **SPECIAL
        )
        return LlamaForCausalLM(config).to(DEVICE, dtype)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 2}
    config = T5Config(
        vocab_size=VOCABULARY,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        **sizes,
        **SPECIAL,
    )
    model = T5ForConditionalGeneration(config)
    for parameter in model.parameters():
        scale = 0.15 if parameter.ndim > 1 else 1.0
        parameter.data = torch.randn_like(parameter) * scale
    return model.to(DEVICE, dtype)


def poly(
    kind: str,
    changes: dict,
    dtype: torch.dtype = torch.float32,
    *,
    adapter_in_float32: bool = True,
) -> PolyModel:
    """An adapter of random weights, in training mode."""
    values = {"r": 3, "n_tasks": N_TASKS, "n_skills": 5, "n_splits": 2, **changes}
    config = PolyConfig(target_modules=TARGETS[kind], **values)
    model = get_peft_model(base(kind, dtype), config, autocast_adapter_dtype=adapter_in_float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * drawn.to(parameter))
    model.config.use_cache = False
    return model.train()


def batch(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs on the device, without padding; ids on the host."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (BATCH, SEQ), generator=generator).to(DEVICE)
    labels = (
        ids.clone() if kind == "t5" else ids.masked_fill(torch.arange(SEQ).to(DEVICE) < 4, -100)
    )
    return {"input_ids": ids, "labels": labels}


def task_ids(turn: int = 0) -> torch.Tensor:
    """One task twice, one never."""
    return (torch.tensor([0, 5, 2, 5]) + turn) % N_TASKS


def gradients(model: PolyModel, call: Callable, kind: str, turn: int = 0) -> dict:
    """Gradients of a step with noise of its own."""
    model.zero_grad()
    model.set_noise_key(3, turn)
    call(**batch(kind, turn), task_ids=task_ids(turn), use_cache=False).loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad.abs().max() > 0 for grad in found.values()), "a gradient is zero"
    return found


def compare(found: dict, wanted: dict, tolerance: float = 1e-3) -> None:
    """Relative to the largest entry of each tensor."""
    for name, grad in wanted.items():
        error = ((found[name] - grad).abs().max() / grad.abs().max()).item()
        assert error < tolerance, f"{name} differs by {error:.1e}"


# Checks


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


def base_does_not_synchronise(kind: str) -> None:
    """The yardstick: a base model that waits by itself says nothing of ours."""
    model, inputs = base(kind, torch.bfloat16).train(), batch(kind)
    model(**inputs, use_cache=False).loss.backward()
    with no_synchronisation():
        model(**inputs, use_cache=False).loss.backward()


def does_not_synchronise(kind: str, changes: dict, *, where: str, per_token: bool = False) -> None:
    """A forward and a backward in bf16, with ids on the host or on the device."""
    model, inputs = poly(kind, changes, torch.bfloat16), batch(kind)
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
