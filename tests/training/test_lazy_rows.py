"""`optim.router=lazy`: Adam on the router rows of present tasks, and on nothing else of them."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from polylab import PolyConfig, PolyModel, get_peft_model
from polylab.poly.routers.rows import side_by_side
from polylab.training.lazy_rows import LazyRows, task_tables
from polylab.training.optim import OptimConfig, build_optimizer, clip_by_group, grad_norms

N_TASKS, BETAS, EPS, RATE = 7, (0.8, 0.95), 1e-7, 0.1
SETTINGS = {"lr": 0.02, "router_lr": RATE, "betas": BETAS, "eps": EPS, "weight_decay": 0.1}


class Net(nn.Module):
    """Three linear layers, as small as they can be."""

    def __init__(self):
        super().__init__()
        for name, (d_in, d_out) in {"a": (4, 6), "b": (6, 4), "c": (4, 2)}.items():
            self.add_module(name, nn.Linear(d_in, d_out))

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def make(**poly):
    torch.manual_seed(2)
    sizes = {"r": 3, "n_tasks": N_TASKS, "n_skills": 5, "n_splits": 2}
    config = PolyConfig(**{**sizes, "target_modules": ["a", "b", "c"], "noise": "none", **poly})
    model = get_peft_model(Net(), config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "poly_lora_B" in name:
                parameter.normal_()
    return model


def start(router, *, name="adamw", **poly):
    model = make(**poly)
    return model, build_optimizer(model, OptimConfig(name=name, router=router, **SETTINGS))


def step(model, optimizer, tasks, *, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.tensor(tasks)
    x, y = torch.randn(len(ids), 4, generator=draw), torch.randn(len(ids), 2, generator=draw)
    (model(x, task_ids=ids) - y).square().mean().backward()
    if isinstance(optimizer, LazyRows):
        optimizer.mark(ids)
    optimizer.step()
    optimizer.zero_grad()


def tables(model):
    return {n: p for n, p in model.named_parameters() if n.endswith("_logits")}


def values(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


VARIANTS = [
    {},
    {"poly_type": "c-poly", "n_private": 2, "n_splits": 1},
    {"granularity": "model"},
    {"modules_to_save": ["c"], "target_modules": ["a", "b"]},
]


@pytest.mark.parametrize("name", ["adamw", "adam"])
@pytest.mark.parametrize("poly", VARIANTS, ids=str)
def test_rows_that_are_always_present_move_as_under_the_dense_optimizer(name, poly):
    lazy, dense = start("lazy", name=name, **poly), start("dense", name=name, **poly)
    for i in range(6):
        for model, optimizer in (lazy, dense):
            step(model, optimizer, [*range(N_TASKS), 2, 2], seed=i)
    found, wanted = values(lazy[0]), values(dense[0])
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not torch.equal(values(make(**poly))[next(iter(wanted))], wanted[next(iter(wanted))])


def reference(start, visits, gradients):
    """One cell of a table, by the formula: steps, moments and corrections of its own."""
    value, mean, square, count = start, 0.0, 0.0, 0
    for is_present, gradient in zip(visits, gradients, strict=True):
        if is_present:
            count += 1
            mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
            square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
            root = math.sqrt(square / (1 - BETAS[1] ** count))
            value -= RATE * mean / (1 - BETAS[0] ** count) / (root + EPS)
    return value


@pytest.mark.parametrize("poly", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_each_row_is_stepped_by_its_own_visits(poly, seed):
    model, optimizer = start("lazy", **poly)
    before = {name: table.detach().clone() for name, table in tables(model).items()}
    draw = torch.Generator().manual_seed(seed)
    visits, gradients = [], {name: [] for name in before}
    for _ in range(9):
        ids = torch.randint(N_TASKS - 1, (3,), generator=draw)  # the last task never comes
        visits.append(ids.tolist())
        for name, table in tables(model).items():
            table.grad = torch.randn(table.shape, generator=draw)
            gradients[name].append(table.grad.clone())
        optimizer.mark(ids)
        optimizer.step()
    for name, table in tables(model).items():
        for task in range(N_TASKS):
            present = [task in ids for ids in visits]
            for cell in range(table.shape[1]):
                own = [g[task, cell].item() for g in gradients[name]]
                wanted = reference(before[name][task, cell].item(), present, own)
                assert table[task, cell].item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert torch.equal(table[-1], before[name][-1])


def test_rows_of_absent_tasks_keep_their_bits_and_their_moments():
    model, optimizer = start("lazy")
    step(model, optimizer, [*range(N_TASKS)])
    before = copy.deepcopy(optimizer.state_dict()["state"]), values(model)
    step(model, optimizer, [3, 0, 3, 3], seed=1)
    after = optimizer.state_dict()["state"], values(model)
    absent, present = [1, 2, 4, 5, 6], [0, 3]
    for name in tables(model):
        assert torch.equal(after[1][name][absent], before[1][name][absent])
        assert (after[1][name][present] != before[1][name][present]).any(1).all()
    rows = [index for index, state in after[0].items() if state["step"].ndim]
    assert len(rows) == len(tables(model)) == 3
    for index in rows:
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(after[0][index][key][absent], before[0][index][key][absent])
        assert after[0][index]["step"].tolist() == [2, 1, 1, 2, 1, 1, 1]


def test_under_the_dense_optimizer_absent_rows_move():
    model, optimizer = start("dense")
    step(model, optimizer, [*range(N_TASKS)])
    before = values(model)
    step(model, optimizer, [3, 0, 3, 3], seed=1)
    for name, table in tables(model).items():
        assert (table != before[name]).any(1).all()


@pytest.mark.parametrize("poly", VARIANTS, ids=str)
def test_a_copied_and_reloaded_optimizer_goes_on_with_the_same_bits(poly, tmp_path):
    visits = [[0, 1, 1], [4, 5, 0], [2, 2, 2], [6, 1, 4]]
    model, optimizer = start("lazy", **poly)
    for i, tasks in enumerate(visits[:2]):
        step(model, optimizer, tasks, seed=i)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    again, resumed = start("lazy", **poly)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for i, tasks in enumerate(visits[2:]):
        step(model, optimizer, tasks, seed=9 + i)
        step(again, resumed, tasks, seed=9 + i)
    found, wanted = values(again), values(model)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_tables_that_have_been_moved_are_laid_out_again():
    (model, optimizer), (other, steady) = start("lazy"), start("lazy")
    for i, tasks in enumerate([[0, 1], [1, 5], [0, 6]]):
        step(other, steady, tasks, seed=i)
        step(model, optimizer, tasks, seed=i)
        for table in tables(model).values():
            table.data = table.data.clone()
        assert side_by_side([*tables(model).values()]) is None
    step(model, optimizer, [2], seed=5), step(other, steady, [2], seed=5)
    assert all(torch.equal(values(model)[key], value) for key, value in values(other).items())


def test_layers_that_no_forward_has_reached_are_not_stepped():
    model, optimizer = start("lazy")
    first, *others = tables(model).values()
    before = first.detach().clone()
    for table in others:
        table.grad = torch.ones_like(table)
    optimizer.mark(torch.tensor([1, 1]))
    optimizer.step()
    assert torch.equal(first, before)
    for table in others:
        assert optimizer.state[table]["step"].tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert optimizer.state[first]["step"].tolist() == [0] * N_TASKS


def test_gradients_of_their_own_storages_are_read_as_well():
    (model, optimizer), (other, scattered) = start("lazy"), start("lazy")
    for i in range(3):
        step(model, optimizer, [0, 2, 2], seed=i)
        draw = torch.Generator().manual_seed(i)
        x, y = torch.randn(3, 4, generator=draw), torch.randn(3, 2, generator=draw)
        (other(x, task_ids=torch.tensor([0, 2, 2])) - y).square().mean().backward()
        for table in tables(other).values():
            table.grad = table.grad.clone()
        assert side_by_side([table.grad for table in tables(other).values()]) is None
        scattered.mark(torch.tensor([0, 2]))
        scattered.step(), scattered.zero_grad()
    assert all(torch.equal(values(model)[key], value) for key, value in values(other).items())


def test_tables_and_their_gradients_lie_side_by_side_in_the_order_of_the_forward():
    model, optimizer = start("lazy", poly_type="c-poly", n_private=5, n_splits=1)
    groups = task_tables(model)
    assert [len(group) for group in groups] == [3, 3]
    assert all(side_by_side(group) is not None for group in groups)
    model(torch.randn(2, 4), task_ids=torch.tensor([0, 3])).sum().backward()
    assert all(side_by_side([p.grad for p in group]) is not None for group in groups)
    optimizer.mark(torch.tensor([0, 3]))
    optimizer.step(lambda: None)
    assert all(side_by_side(group) is not None for group in groups)


def test_clipping_and_norms_see_the_tables():
    model, optimizer = start("lazy")
    model(torch.randn(2, 4), task_ids=torch.tensor([0, 3])).square().sum().backward()
    before = grad_norms(optimizer)
    assert set(before) == {"skills", "router"}
    clip_by_group(optimizer, float(before["router"]) / 4)
    assert grad_norms(optimizer)["router"] == pytest.approx(float(before["router"]) / 4, rel=1e-4)


def test_a_schedule_reaches_the_rows():
    model, optimizer = start("lazy")
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = values(model)
    step(model, optimizer, [0, 1])
    assert all(torch.equal(values(model)[key], value) for key, value in before.items())


def test_routers_that_are_no_tables_of_tasks_are_stepped_densely():
    (model, optimizer), (other, dense) = (
        start(router, poly_type="mope", router_level="token") for router in ("lazy", "dense")
    )
    assert not task_tables(model)
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4)
    for _ in range(3):
        for net, own in ((model, optimizer), (other, dense)):
            net(x).square().mean().backward()
            own.step(), own.zero_grad()
    assert all(torch.equal(values(model)[key], value) for key, value in values(other).items())


def test_frozen_routers_are_no_tables_to_step():
    model, optimizer = start("lazy", trainable="skills")
    assert not task_tables(model)
    before = values(model)
    step(model, optimizer, [0, 1])
    assert not any(torch.equal(values(model)[key], value) for key, value in before.items())


def test_a_step_for_no_tasks_is_refused():
    model, optimizer = start("lazy")
    step(model, optimizer, [0, 1])
    with pytest.raises(RuntimeError, match=r"optim.router=lazy .* optimizer.mark\(task_ids\)"):
        optimizer.step()


def test_a_run_of_the_routers_alone_steps_their_rows():
    model, optimizer = start("lazy", trainable="router")
    before = values(model)
    assert [*before] == [*tables(model)]
    step(model, optimizer, [5, 5])
    for name, table in tables(model).items():
        assert (table != before[name]).any(1).nonzero().tolist() == [[5]]


def test_an_adapter_whose_tables_share_memory_is_saved_and_copied_as_ever(tmp_path):
    model, optimizer = start("lazy")
    step(model, optimizer, [0, 4])
    model.save_pretrained(str(tmp_path))
    torch.manual_seed(2)
    found = PolyModel.from_pretrained(Net(), str(tmp_path))
    loaded = tables(found)
    copied = tables(copy.deepcopy(model))
    step(model, optimizer, [0, 4], seed=1)
    assert len(loaded) == len(copied) == 3
    for name, table in tables(model).items():
        assert torch.equal(loaded[name], copied[name])
        assert not torch.equal(table, copied[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_the_device():
    model = make().cuda()
    optimizer = build_optimizer(model, OptimConfig(router="lazy", **SETTINGS))
    x, ids = torch.randn(3, 4, device="cuda"), torch.tensor([2, 0, 2], device="cuda")
    for mode in ("default", "error", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode(mode)
        try:
            model(x, task_ids=ids).square().mean().backward()
            optimizer.mark(ids)
            optimizer.step()
            optimizer.zero_grad()
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("default")
    assert optimizer.state[next(iter(tables(model).values()))]["step"].tolist()[:3] == [3, 0, 3]
