"""Code as users write it: only the import line is polylab's."""

import subprocess
import sys

import peft
import pytest
import torch

import polylab
from tests.poly.tiny import BATCH, inputs_of
from tests.poly.tiny import base as tiny_base


def test_gpt2_with_its_projections():
    from polylab import PolyConfig, PolyLayer, get_peft_model

    model = tiny_base("gpt2")
    config = PolyConfig(
        r=8,
        n_tasks=4,
        n_skills=8,
        n_splits=1,
        target_modules=["c_attn", "c_proj"],
        poly_type="poly",
    )
    model = get_peft_model(model, config)
    input_ids = inputs_of("gpt2")["input_ids"]
    logits = model(input_ids, task_ids=torch.tensor([0, 1, 0, 2])).logits
    assert logits.shape == (BATCH, 7, 40)
    output = model.generate(input_ids, task_ids=torch.tensor([0, 1, 0, 2]), max_new_tokens=3)
    assert output.shape[0] == BATCH
    layers = [module for module in model.modules() if isinstance(module, PolyLayer)]
    assert len(layers) == 6
    assert layers[0].poly_lora_A["default"].shape == (1, 8, 16, 8)
    assert layers[0].poly_lora_B["default"].shape == (1, 8, 8, 48)


def test_llama_with_task_ids():
    from polylab import PolyConfig, get_peft_model

    model = tiny_base("llama")
    config = PolyConfig(r=16, n_tasks=3, n_skills=6, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, config)
    input_ids = inputs_of("llama")["input_ids"]
    loss = model(input_ids, labels=input_ids, task_ids=torch.tensor([0, 1, 0, 2])).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_llama_routed_by_its_input():
    from polylab import PolyConfig, get_peft_model

    model = tiny_base("llama")
    config = PolyConfig(
        r=8, n_tasks=1, n_skills=8, target_modules=["q_proj", "v_proj"], poly_type="mope"
    )
    model = get_peft_model(model, config)
    input_ids = inputs_of("llama")["input_ids"]
    assert model(input_ids).logits.shape == (BATCH, 7, 40)


@pytest.mark.parametrize("library", [peft, polylab])
def test_one_script_runs_under_both_imports(library, tmp_path):
    config = library.PolyConfig(
        task_type=library.TaskType.SEQ_2_SEQ_LM,
        poly_type="poly",
        target_modules=["q", "v"],
        r=8,
        n_tasks=3,
        n_skills=2,
        n_splits=1,
    )
    model = library.get_peft_model(tiny_base("t5"), config)
    model.print_trainable_parameters()
    inputs = inputs_of("t5")
    ids = torch.tensor([0, 1, 2, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(2):
        loss = model(**inputs, task_ids=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(str(tmp_path))
    wanted = model(**inputs, task_ids=ids).logits
    loaded = library.PeftModel.from_pretrained(tiny_base("t5"), str(tmp_path)).eval()
    assert torch.equal(loaded(**inputs, task_ids=ids).logits, wanted)
    assert loaded.peft_config["default"].n_tasks == 3
    assert loaded.generate(input_ids=inputs["input_ids"], task_ids=ids).shape[0] == BATCH
    with loaded.disable_adapter():
        loaded.get_base_model()(**inputs)


def test_loss_halves():
    from polylab import PolyConfig, get_peft_model

    model = get_peft_model(
        tiny_base("llama"), PolyConfig(r=4, n_tasks=2, n_skills=3, target_modules="all-linear")
    ).train()
    ids = inputs_of("llama")["input_ids"]
    tasks, losses = torch.tensor([0, 1, 0, 1]), []
    torch.manual_seed(0)
    groups = [
        {"params": [p for n, p in model.named_parameters() if "poly_lora" in n], "lr": 2e-2},
        {"params": [p for n, p in model.named_parameters() if "poly_router" in n], "lr": 0.1},
    ]
    optimizer = torch.optim.Adam(groups)
    for _ in range(40):
        loss = model(ids, labels=ids, task_ids=tasks).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", ["polylab", "polylab.poly", "polylab.poly.config"])
def test_importing_is_light(name):
    code = f"import sys, {name}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_names():
    for module in (polylab, polylab.poly):
        for name in module.__all__:
            assert getattr(module, name) is not None
        with pytest.raises(
            AttributeError, match=rf"module '{module.__name__}' has no attribute 'x'"
        ):
            _ = module.x
    assert polylab.PeftModel is polylab.PolyModel
    assert {kind.value for kind in polylab.TaskType} == {kind.value for kind in peft.TaskType}
