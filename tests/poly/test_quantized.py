"""Frozen weights in 4 and 8 bits: the adapter stays in floating point and gets its gradients."""

from functools import partial

import pytest
import torch
from torch import nn

from polylab import PolyConfig, PolyLayer, PolyModel, get_peft_model
from polylab.poly.linears import features_of, float_dtype_of
from tests.poly.tiny import trained

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
if "cpu" not in getattr(bnb, "supported_torch_devices", ()):
    pytest.skip("this bitsandbytes has no CPU kernels", allow_module_level=True)

D_IN, D_OUT, BATCH, SEQ = 64, 96, 3, 5


def four_bit(d_in, d_out, compute_dtype=torch.float32):
    layer = bnb.nn.Linear4bit(d_in, d_out, compute_dtype=compute_dtype, quant_type="nf4")
    return layer.to("cpu")  # quantises


def eight_bit(d_in, d_out):
    return bnb.nn.Linear8bitLt(d_in, d_out, has_fp16_weights=False).to("cpu")


def dequantised(layer):
    """A plain linear that computes what the quantised one approximates."""
    plain = nn.Linear(layer.in_features, layer.out_features)
    if isinstance(layer, bnb.nn.Linear4bit):
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        layer(torch.zeros(1, layer.in_features))  # moves the scales into its state
        scales = layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
        weight = layer.weight.data.float() * scales[:, None] / 127
    plain.weight.data = weight.float()
    plain.bias.data = layer.bias.data.float()
    return plain


def net(make):
    torch.manual_seed(0)
    return nn.Sequential(make(D_IN, D_OUT), nn.Tanh(), make(D_OUT, D_IN))


def wrapped(model, **options):
    torch.manual_seed(1)
    config = PolyConfig(r=3, n_tasks=4, n_skills=2, target_modules=["0", "2"], init_weights=False)
    return get_peft_model(model, config, **options).eval()


def run(model):
    x = torch.randn(BATCH, SEQ, D_IN, generator=torch.Generator().manual_seed(2))
    y = model(x, task_ids=torch.tensor([0, 3, 0]))
    y.square().mean().backward()
    return y, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


# 8-bit multiplications quantise x too: 1 part in 127 of its largest value
@pytest.mark.parametrize(
    ("make", "loose"),
    [(four_bit, {"rtol": 1e-5, "atol": 1e-6}), (eight_bit, {"rtol": 0.1, "atol": 5e-3})],
)
def test_output_and_gradients_are_those_of_the_dequantised_layers(make, loose):
    quantised = net(make)
    plain = nn.Sequential(dequantised(quantised[0]), nn.Tanh(), dequantised(quantised[2]))
    y, grads = run(wrapped(quantised))
    wanted, wanted_grads = run(wrapped(plain))
    torch.testing.assert_close(y, wanted, rtol=loose["rtol"], atol=10 * loose["atol"])
    assert set(grads) == set(wanted_grads)
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        scale = wanted_grads[name].abs().max()
        assert scale > 0
        torch.testing.assert_close(grad / scale, wanted_grads[name] / scale, **loose, msg=name)


@pytest.mark.parametrize("make", [four_bit, eight_bit])
def test_a_loss_falls_and_the_base_stays(make):
    model = wrapped(net(make)).train()
    before = {n: t.clone() for n, t in model.state_dict().items() if ".poly_" not in n}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    x, ids = torch.randn(BATCH, SEQ, D_IN), torch.tensor([0, 3, 0])
    with torch.no_grad():
        wanted = trained(wrapped(net(make)))(x, task_ids=ids)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x, task_ids=ids) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (partial(four_bit, compute_dtype=torch.bfloat16), torch.bfloat16),
        (partial(four_bit, compute_dtype=None), torch.float32),
        (eight_bit, torch.float32),
        (lambda d_in, d_out: nn.Linear(d_in, d_out).to(torch.float8_e4m3fn), torch.float32),
        (lambda d_in, d_out: nn.Linear(d_in, d_out).half(), torch.float16),
        (lambda d_in, d_out: nn.Linear(d_in, d_out).double(), torch.float64),
    ],
    ids=["4bit", "4bit without compute dtype", "8bit", "float8", "float16", "float64"],
)
def test_the_adapter_is_never_of_a_storage_dtype(make, dtype):
    assert features_of(make(D_IN, D_OUT)) == (D_IN, D_OUT)
    assert float_dtype_of(make(D_IN, D_OUT)) == dtype
    full = torch.float64 if dtype == torch.float64 else torch.float32
    assert dtypes(wrapped(net(make))) == {full}
    assert dtypes(wrapped(net(make), autocast_adapter_dtype=False)) == {dtype}
    layer = PolyLayer(make(D_IN, D_OUT))
    layer.update_layer("default", PolyConfig(r=2))
    for asked, given in (
        (torch.uint8, dtype),
        (torch.float8_e4m3fn, dtype),
        (torch.half, torch.half),
    ):
        layer.cast_adapter("default", asked)
        assert {p.dtype for n, p in layer.named_parameters() if n.startswith("poly_")} == {given}


def dtypes(model):
    return {p.dtype for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("before_wrapping", [False, True])
def test_an_evaluation_on_the_cpu_ends_no_gradient(before_wrapping):
    x, ids = torch.randn(BATCH, D_IN), torch.tensor([0, 3, 0])
    torch.manual_seed(0)
    model = nn.Sequential(*(four_bit(D_IN, D_IN) for _ in range(3))).eval()  # sizes it would pack
    if before_wrapping:
        with torch.no_grad():
            model(x)
    model = get_peft_model(model, PolyConfig(n_tasks=4, target_modules=["0"], init_weights=False))
    with torch.no_grad():
        model.eval()(x, task_ids=ids)
    model.train()(x, task_ids=ids).square().sum().backward()
    weight = model.get_base_model()[0].poly_lora_A["default"]
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


@pytest.mark.parametrize("make", [four_bit, eight_bit])
def test_a_round_trip_changes_no_bit(make, tmp_path):
    model = wrapped(net(make))
    x, ids = torch.randn(BATCH, SEQ, D_IN), torch.tensor([0, 3, 0])
    wanted = model(x, task_ids=ids)
    model.save_pretrained(tmp_path)
    loaded = PolyModel.from_pretrained(net(make), tmp_path)
    torch.testing.assert_close(loaded(x, task_ids=ids), wanted, rtol=0, atol=0)


def test_a_copy_of_quantised_weights_could_not_be_trained():
    config = PolyConfig(target_modules=["0"], modules_to_save=["2"])
    with pytest.raises(
        ValueError, match=r"'2' is quantised \(\['torch.float32', 'torch.uint8'\]\)"
    ):
        get_peft_model(net(four_bit), config)
