"""`polylab.load(RUN).figure(...)`: pictures of a finished run in a notebook."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import polylab
from polylab.runs import Run
from tests.callbacks.test_figures import row_names, words


@pytest.fixture(scope="module")
def run(trained: Callable[..., Path]) -> Run:
    return polylab.load(trained("poly", "adapter.n_splits=2"))


@pytest.mark.parametrize(
    "kind", ["allocation", "by_layer", "task_hierarchy", "task_similarity", "layers"]
)
def test_every_kind_is_drawn_and_saved(run: Run, tmp_path: Path, kind: str) -> None:
    figure = run.figure(kind)
    assert any(run.folder.resolve().name in line for line in words(figure))
    figure.savefig(tmp_path / "one.png")
    shown = Image.open(io.BytesIO(figure._repr_png_()))  # what a notebook asks for
    assert min(shown.size) > 100


def test_a_layer_and_a_head(run: Run) -> None:
    layer, weights = [*run.model.task_weights().items()][-1]
    figure = run.figure(layer=layer, split=1)
    drawn, order = figure.axes[0].images[0].get_array(), row_names(figure.axes[0])
    expected = weights[[run.tasks.index(name) for name in order], 1] * 3
    np.testing.assert_allclose(drawn, expected, rtol=1e-5)
    assert {f"normalised weight x 3, layer {layer}", "head 1 of 2"} <= set(words(figure))
    heads = run.figure("layers", layer=layer)
    assert f"normalised weight x 3, layer {layer}, all 2 heads" in words(heads)
    allocation = run.allocation()
    whole = run.figure()
    names = row_names(whole.axes[0])
    np.testing.assert_allclose(
        whole.axes[0].images[0].get_array(), allocation.loc[names] * 3, rtol=1e-5
    )


def test_refuses(run: Run) -> None:
    with pytest.raises(ValueError, match=r"kind='alocation' is no figure.*allocation.*valid: "):
        run.figure("alocation")
    with pytest.raises(ValueError, match=r"layer='nowhere' is none of the layers"):
        run.figure(layer="nowhere")
    with pytest.raises(ValueError, match=r"split=2: give a head from 0 to 1"):
        run.figure(split=2)


def test_a_run_routed_by_the_input_shows_its_last_look(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "mope"
    shutil.copytree(trained("mope"), folder)
    run = polylab.load(folder)
    with pytest.raises(ValueError, match=r"mope is routed by the input, and holds no allocation"):
        run.figure()
    kept = [*run.model.active_layers()][::2]
    (folder / "allocations").mkdir()
    looks: dict[str, torch.Tensor] = {}
    for step in (2, 3):
        looks[str(step)] = w = torch.rand(2, 1, 3).softmax(-1).half()
        about = {"step": str(step), "words": "w", "tag": f"step{step}", "input_routed": "true"}
        about |= {"tasks": json.dumps(run.tasks[:2]), "layers_total": "9"}
        path = folder / "allocations" / f"step{step:06d}.safetensors"
        save_file({f"weights/{layer}": w.clone() for layer in kept}, path, about)
    figure = run.figure(layer=kept[1])
    order = row_names(figure.axes[0])
    expected = looks["3"].float()[[run.tasks.index(name) for name in order], 0] * 3
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected, rtol=1e-3)
    said = words(run.figure("by_layer"))
    assert f"of the {len(run.model.active_layers())} layers {len(kept)} were kept" in said
    assert "entropy of means (1 = uniform)" in said
    assert any(line.startswith("mean normalised weight x 3 of validation inputs") for line in
               words(figure))  # fmt: skip
