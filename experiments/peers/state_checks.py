"""D18 to D25: gradients, several adapters, files, and what can be looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from experiments.peers.libraries import Library, Wrong, agree
from experiments.peers.models import (
    BATCH,
    IDS,
    N_SKILLS,
    N_SPLITS,
    N_TASKS,
    adapted,
    backbone,
    gradients,
    inputs,
    logits,
    one_layer,
    trained,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def d18_add_tasks(lib: Library) -> None:
    """Two more tasks: the old ones compute the same, bit for bit."""
    model = adapted(lib, "llama")
    before = logits(model, "llama")
    model.add_tasks(2)
    if not torch.equal(logits(model, "llama"), before):
        raise Wrong("other results for the old tasks")
    logits(model, "llama", task_ids=torch.full((BATCH,), N_TASKS + 1))


def d18_add_skills(lib: Library) -> None:
    """One more skill: the old tasks compute what they did, their old routing logits bit for bit."""
    model = adapted(lib, "llama")
    before = {name: _table(layer).clone() for name, layer in lib.layers(model).items()}
    wanted = logits(model, "llama")
    model.add_skills(1)
    agree(logits(model, "llama"), wanted)
    for name, layer in lib.layers(model).items():
        found = _table(layer).view(N_TASKS, N_SPLITS, -1)[..., :N_SKILLS]
        if not torch.equal(found, before[name].view(N_TASKS, N_SPLITS, N_SKILLS)):
            raise Wrong("other logits for the old skills")


def d18_more_tasks_on_load(lib: Library) -> None:
    """A saved adapter comes back with two more tasks, and computes the same for the old ones."""
    model = adapted(lib, "llama")
    with _saved(model) as folder:
        loaded = lib.load_into_more_tasks(backbone("llama"), folder, 2)
    if not torch.equal(logits(loaded, "llama"), logits(model, "llama")):
        raise Wrong("other results for the old tasks")
    logits(loaded, "llama", task_ids=torch.full((BATCH,), N_TASKS + 1))


def _table(layer: Any) -> torch.Tensor:
    return layer.poly_router["default"].module_logits.detach()


def d19_absent_tasks(lib: Library) -> None:
    """Rows of tasks that the batch lacks get no gradient, the others do."""
    model = adapted(lib, "llama").train()
    for name, gradient in gradients(model).items():
        if "module_logits" in name:
            rows = gradient.abs().sum(-1).nonzero().flatten().tolist()
            if rows != sorted({*IDS.tolist()}):
                raise Wrong(f"gradient in rows {rows}")


def d20_router_not_decayed(lib: Library) -> None:
    """The library's optimiser (PEFT's: transformers' Trainer) decays no routing logits."""
    model = adapted(lib, "llama")
    layers = lib.layers(model).values()
    routers = {id(layer.poly_router["default"].module_logits) for layer in layers}
    for group in lib.optimizer(model, 0.1).param_groups:
        if group["weight_decay"] and routers & {id(p) for p in group["params"]}:
            raise Wrong(f"weight decay {group['weight_decay']}")


def d20_backbone_frozen(lib: Library) -> None:
    """No tensor of the backbone is trainable, every one of the adapter is."""
    model = adapted(lib, "llama")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (".poly_" in name):
            raise Wrong(f"{name}: requires_grad={parameter.requires_grad}")


def d21_save_and_load(lib: Library) -> None:
    """Saved and loaded: no difference at all, in safetensors."""
    model = adapted(lib, "llama")
    with _saved(model) as folder:
        if not (Path(folder) / WEIGHTS).is_file():
            raise Wrong(f"no {WEIGHTS}")
        loaded = lib.load(backbone("llama"), folder).eval()
    if not torch.equal(logits(loaded, "llama"), logits(model, "llama")):
        raise Wrong("other results")


def d21_missing_tensor(lib: Library) -> None:
    """A file that lacks a tensor is refused, and the error names it."""
    with _saved(adapted(lib, "llama")) as folder:
        tensors = load_file(Path(folder) / WEIGHTS)
        missing = next(key for key in tensors if "poly_lora_B" in key)
        del tensors[missing]
        save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})
        _load_refuses(lib, folder, missing)


def d21_wrong_shape(lib: Library) -> None:
    """A file of another rank is refused, and the error names the tensor."""
    with _saved(adapted(lib, "llama")) as folder:
        _change_config(folder, r=4)
        _load_refuses(lib, folder, "model.layers.0.self_attn.q_proj.poly_lora_A")


def d21_task_names(lib: Library) -> None:
    """The tasks' names are saved with their ids."""
    names = [f"task {letter}" for letter in "fbdace"]
    with _saved(adapted(lib, "llama", task_names=names)) as folder:
        loaded = lib.load(backbone("llama"), folder)
    if [*loaded.peft_config["default"].task_names] != names:
        raise Wrong(f"loaded: {loaded.peft_config['default'].task_names}")


@contextmanager
def _saved(model: Any) -> Iterator[str]:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield folder


def _change_config(folder: str, **changes: Any) -> None:
    path = Path(folder) / CONFIG
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(values), encoding="utf-8")


def _load_refuses(lib: Library, folder: str, word: str) -> None:
    try:
        lib.load(backbone("llama"), folder)
    except (ValueError, RuntimeError, TypeError) as error:
        if word not in str(error):
            raise
    else:
        raise Wrong("loaded without an error")


def d22_adapter_names(lib: Library) -> None:
    """`adapter_names=`, an adapter per row: honoured, or refused by name."""
    model, names = _two_adapters(lib), ["default", "other", "other", "default"]
    by_name = {}
    for name in dict.fromkeys(names):
        model.set_adapter(name)
        by_name[name] = logits(model, "llama")
    model.set_adapter("default")
    try:
        found = logits(model, "llama", adapter_names=names)
    except (ValueError, TypeError, NotImplementedError) as error:
        if "adapter_names" not in str(error):
            raise
        return
    if torch.allclose(found, by_name["default"]):
        raise Wrong("ignored")
    agree(found, torch.stack([by_name[name][row] for row, name in enumerate(names)]))


def d22_two_active_adapters(lib: Library) -> None:
    """Two adapters active at once take ids of their own, or are refused by name."""
    model = _two_adapters(lib)
    try:
        model.base_model.set_adapter(["default", "other"])
    except (ValueError, TypeError, NotImplementedError) as error:
        if "adapter" not in str(error):
            raise
        return
    logits(model, "llama")
    raise Wrong("one id for both")


def _two_adapters(lib: Library) -> Any:
    model = adapted(lib, "llama")
    config = lib.config(
        r=2, n_tasks=N_TASKS, n_skills=3, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    model.add_adapter("other", config)
    model.set_adapter("other")
    trained(model, seed=3)
    model.set_adapter("default")
    return model.eval()


def d24_unknown_option(lib: Library) -> None:
    """An unknown option of `PolyConfig` is an error that names it."""
    try:
        lib.config(n_skill=4)
    except (TypeError, ValueError) as error:
        if "n_skill" not in str(error):
            raise
    else:
        raise Wrong("taken without a word")


def d24_unknown_variant(lib: Library) -> None:
    """An unknown `poly_type` is an error that names it."""
    try:
        one_layer(lib, poly_type="polly")
    except ValueError as error:
        if "polly" not in str(error):
            raise
    else:
        raise Wrong("taken without a word")


def d24_unknown_key_in_file(lib: Library) -> None:
    """An unknown key in a saved configuration is an error that names it."""
    with _saved(adapted(lib, "llama")) as folder:
        _change_config(folder, scale_by=4)
        _load_refuses(lib, folder, "scale_by")


def d25_weights_of_a_layer(lib: Library) -> None:
    """A layer's router gives the weights of every head, `[batch, n_splits, n_skills]`."""
    layer = one_layer(lib)[1]
    _are_weights(layer.poly_router["default"](task_ids=IDS, input_ids=None))


def d25_weights_of_a_call(lib: Library) -> None:
    """The weights of all layers and heads for a call of the model."""
    model = adapted(lib, "llama")
    found = model.mixing_weights(**inputs("llama"), task_ids=IDS)
    if found.keys() != lib.layers(model).keys():
        raise Wrong(f"layers {[*found]}")
    for weights in found.values():
        _are_weights(weights)


def _are_weights(weights: torch.Tensor) -> None:
    if weights.shape != (BATCH, N_SPLITS, N_SKILLS):
        raise Wrong(f"shape {[*weights.shape]}")
    agree(weights.sum(-1), torch.ones(BATCH, N_SPLITS))
