"""Packed batch norm: torch's numbers on one process, one process's numbers on two."""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from splatlearn.ops import norm
from splatlearn.ops.norm import LinearBatchNorm, PackedBatchNorm

CHANNELS = 5


def _rows(count=60):
    torch.manual_seed(0)
    return torch.randn(count, CHANNELS) * 3 + 1


def _module(**options):
    torch.manual_seed(1)
    module = PackedBatchNorm(CHANNELS, **options)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    return module


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_one_process_is_torch(momentum):
    ours, theirs = _module(momentum=momentum), torch.nn.BatchNorm1d(CHANNELS, momentum=momentum)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        assert torch.allclose(ours(_rows()), theirs(_rows()), atol=1e-5)
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values())
    )
    assert torch.allclose(ours.eval()(_rows()), theirs.eval()(_rows()), atol=1e-5)


def test_one_row_gives_the_bias_and_leaves_statistics_alone():
    module = _module()
    before = copy.deepcopy(module.state_dict())
    row = torch.randn(1, CHANNELS, requires_grad=True)
    output = module(row)
    output.sum().backward()
    assert torch.allclose(output, module.bias.expand(1, -1)) and bool(torch.isfinite(row.grad).all())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert module(row[:0]).shape == (0, CHANNELS)


def test_gradients_are_those_of_torch():
    ours, theirs = _module(), torch.nn.BatchNorm1d(CHANNELS)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for module in (ours, theirs):
        rows = _rows().requires_grad_()
        (module(rows) * torch.cos(_rows())).sum().backward()
        found.append([rows.grad, module.weight.grad, module.bias.grad])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found))


def test_sums_in_blocks(monkeypatch):
    whole = _module()(_rows())
    monkeypatch.setattr(norm, "BLOCK", 7 * CHANNELS)
    assert torch.equal(_module()(_rows()), whole)


def test_precision_of_the_input_is_kept():
    assert _module()(_rows().bfloat16()).dtype == torch.bfloat16
    assert _module().double()(_rows().double()).dtype == torch.float64


def _layer(kind, momentum=0.1):
    """A layer without bias from 5 to 7 channels, and a norm after it."""
    torch.manual_seed(2)
    module = kind(7, momentum=momentum)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    return torch.randn(7, CHANNELS).requires_grad_(), module


def _folded(rows, cotangent):
    """Output of a folded norm and all that changed, by name."""
    layer, module = _layer(LinearBatchNorm)
    rows = rows.clone().requires_grad_()
    weight, bias = module.fold(rows, layer)
    output = rows @ weight.t() + bias
    (output * cotangent.repeat(1, 2)[:, :7]).sum().backward()
    found = {"rows": output.detach(), "rows gradient": rows.grad, **module.state_dict()}
    return found | {f"{n} gradient": p.grad for n, p in (("layer", layer), *module.named_parameters())}


@pytest.mark.parametrize("momentum", [0.1, None])
def test_folded_norm_is_the_layer_and_the_norm(momentum):
    found = []
    for kind in (LinearBatchNorm, PackedBatchNorm):
        layer, module = _layer(kind, momentum)
        outputs, rows = [], _rows().requires_grad_()
        for train in (True, True, False):
            module.train(train)
            if isinstance(module, LinearBatchNorm):
                weight, bias = module.fold(rows, layer)
                outputs.append(rows @ weight.t() + bias)
            else:
                outputs.append(module(rows @ layer.t()))
        sum((output * torch.cos(output.detach())).sum() for output in outputs).backward()
        gradients = [rows.grad, layer.grad, module.weight.grad, module.bias.grad]
        found.append([*outputs, *gradients, *module.state_dict().values()])
    for mine, theirs in zip(*found):
        assert torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4)


def test_folded_norm_of_equal_rows_gives_the_bias():
    layer, module = _layer(LinearBatchNorm)
    rows = torch.zeros(4, CHANNELS).requires_grad_()
    weight, bias = module.fold(rows, layer)
    output = rows @ weight.t() + bias
    output.sum().backward()
    assert torch.allclose(output, module.bias.expand(4, -1)) and bool(torch.isfinite(layer.grad).all())


def _single(rows, cotangent, momentum, steps=2):
    module = _module(momentum=momentum)
    rows = rows.clone().requires_grad_()
    for _ in range(steps):
        output = module(rows)
    (output * cotangent).sum().backward()
    return module, output.detach(), rows.grad


SPLITS = ((47, 13), (60, 0))


def _worker(rank, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        results = []
        for sizes, momentum in zip(SPLITS, (0.1, None)):
            rows, cotangent = _rows().split(sizes)[rank], torch.cos(_rows()).split(sizes)[rank]
            module, output, gradient = _single(rows, cotangent, momentum)
            values = {"output": output, "gradient": gradient, **module.state_dict()}
            values |= {f"{n} gradient": p.grad for n, p in module.named_parameters()}
            values |= {f"folded {name}": value for name, value in _folded(rows, cotangent).items()}
            results.append({name: value.numpy() for name, value in values.items()})
        queue.put((rank, results))
    finally:
        dist.destroy_process_group()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two_processes():
    """What each of two processes saw, for each split of the rows: (rank, split) -> name -> tensor."""
    context, port = mp.get_context("spawn"), _free_port()
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    return {
        (rank, split): {name: torch.from_numpy(value) for name, value in values.items()}
        for rank, both in results.items()
        for split, values in zip(SPLITS, both)
    }


def _equal_one_process(first, second, momentum):
    module, output, gradient = _single(_rows(), torch.cos(_rows()), momentum)
    """Rows bit for bit: sums in float64 are rounded once."""
    assert torch.equal(torch.cat([first["output"], second["output"]]), output)
    assert torch.equal(torch.cat([first["gradient"], second["gradient"]]), gradient)
    for key, value in module.state_dict().items():
        assert torch.equal(first[key], value) and torch.equal(first[key], second[key]), key
    for name, parameter in module.named_parameters():
        assert torch.allclose(first[f"{name} gradient"] + second[f"{name} gradient"], parameter.grad, rtol=1e-6)


def test_two_processes_with_unequal_rows_equal_one(two_processes):
    _equal_one_process(two_processes[0, (47, 13)], two_processes[1, (47, 13)], 0.1)


def test_a_process_without_rows_takes_part(two_processes):
    assert two_processes[1, (60, 0)]["output"].shape == (0, CHANNELS)
    _equal_one_process(two_processes[0, (60, 0)], two_processes[1, (60, 0)], None)


def test_without_weight_and_bias():
    module = PackedBatchNorm(CHANNELS, affine=False)
    assert torch.allclose(module(_rows()), torch.nn.BatchNorm1d(CHANNELS, affine=False)(_rows()), atol=1e-5)
    assert bool((module(_rows(1)) == 0).all())


@pytest.mark.parametrize("sizes", SPLITS)
def test_folded_norm_on_two_processes_equals_one(two_processes, sizes):
    first, second = (two_processes[rank, sizes] for rank in range(2))
    for name, expected in _folded(_rows(), torch.cos(_rows())).items():
        mine, other = first[f"folded {name}"], second[f"folded {name}"]
        joined = torch.cat([mine, other]) if "rows" in name else mine + other if "gradient" in name else mine
        assert torch.allclose(joined, expected, atol=1e-5, rtol=1e-5), name
