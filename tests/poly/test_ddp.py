"""DistributedDataParallel and fully_shard of plain PyTorch, in two processes: as one."""

import socket

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from polylab.poly.sharding import average_gradients, is_sharded, shard, whole
from tests.poly.tiny import BATCH, inputs_of, poly, task_ids

# [0, 5, 2, 5] over two ranks: task 0 is missing on the second, 2 on the first, 1, 3 and 4 on both
CASES = {
    "poly": {"noise": "none"},
    "noise": {"noise_source": "keyed"},
    "mope": {"poly_type": "mope"},
    "private": {"poly_type": "private"},
    "checkpointing": {"noise_source": "keyed"},
    "frozen skills": {"noise": "none"},
    "shared routers": {"granularity": "block", "noise_source": "keyed"},
    "tokens": {"poly_type": "mope", "router_level": "token"},
}
KINDS = ["t5", "llama"]
ENGINES = ["ddp", "fsdp"]


def model_of(kind, case):
    model = poly(kind, **CASES[case]).train().double()  # sums over ranks, in another order
    model.config.use_cache = False
    if case == "checkpointing":
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    if case == "frozen skills":
        for layer in model.poly_layers().values():
            layer.poly_lora_A.requires_grad_(False)
            layer.poly_lora_B.requires_grad_(False)
    return model


def gradients_of(model, call, kind, *, first, rows):
    model.set_noise_key(4, 9, first_row=first)
    part = slice(first, first + rows)
    inputs = {name: tensor[part] for name, tensor in inputs_of(kind).items()}
    call(**inputs, task_ids=task_ids()[part]).loss.backward()
    if is_sharded(model):
        average_gradients(p for n, p in model.named_parameters() if "poly_router" in n)
    return {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def work(rank, port, path):
    torch.set_num_threads(1)
    store = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for kind in KINDS:
        for case in CASES:
            for engine in ENGINES:
                model, rows = model_of(kind, case), BATCH // 2
                call = model
                if engine == "ddp":
                    call = DistributedDataParallel(model)
                else:
                    shard(model, mesh)
                grads = gradients_of(model, call, kind, first=rank * rows, rows=rows)
                found[kind, case, engine] = {name: grad.clone() for name, grad in grads.items()}
    torch.save(found, path / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(("of_others", "expected"), [(0.0, None), (1.0, 0.5)])
def test_what_no_rank_has_reached_keeps_no_gradient(of_others, expected, monkeypatch):
    reached, other = (torch.nn.Parameter(torch.ones(n)) for n in (3, 2))
    reached.grad = torch.tensor([1.0, 2.0, 4.0])
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: flat.add_(of_others))
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    average_gradients([reached, other])
    assert reached.grad.tolist() == [(g + of_others) / 2 for g in (1, 2, 4)]
    assert (other.grad if expected is None else other.grad.tolist()) == (
        None if expected is None else [expected, expected]
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Gradients of every case on both ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path_factory.mktemp("ddp")
    multiprocessing.spawn(work, args=(port, path), nprocs=2)
    return [torch.load(path / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_two_processes_are_those_of_one(kind, case, engine, ranks):
    model = model_of(kind, case)
    wanted = gradients_of(model, model, kind, first=0, rows=BATCH)
    assert {*wanted} == {name for name, p in model.named_parameters() if p.requires_grad}
    for found in ranks:
        assert {*found[kind, case, engine]} == {*wanted}
        for name, grad in wanted.items():
            assert grad.abs().max() > 0, name
            torch.testing.assert_close(found[kind, case, engine][name], grad)
