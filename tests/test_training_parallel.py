"""Two real gloo processes against one: sums and their gradients, shared batch norm, what is passed around."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path as FilePath

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cxr_ray.nets.dropout import key_dropout
from cxr_ray.nets.layers import BatchNorm
from cxr_ray.nets.path import Path
from cxr_ray.nets.segmenter import Segmenter, lung_probability
from training.losses.cross_entropy import weighted_cross_entropy
from training.losses.tanimoto import contour_weights, tanimoto_loss
from training.parallel.processes import Processes
from training.parallel.sync_batch_norm import SyncBatchNorm, use_sync_batch_norm

pytestmark = pytest.mark.filterwarnings("ignore:Grad strides do not match")

BATCH = 5
SHARES = (slice(0, 3), slice(3, 5))
"""Unequal on purpose."""
STEPS = 20

Reduce = Callable[[Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def path_loss(model: nn.Module, processes: Processes, share: slice) -> Tensor:
    """Weighted cross-entropy of a real path on a small map."""
    x = torch.cat((random(BATCH, 49, 8, 10), random(BATCH, 1, 8, 10, seed=1).sigmoid()), dim=1)[share]
    label, weight = torch.tensor([0, 1, 1, 0, 1])[share], torch.tensor([0.4, 1.6, 1.6, 0.4, 1.6])[share]
    key_dropout(model, range(100, 100 + BATCH)[share])
    logits = model(x).mean(dim=(2, 3))
    return weighted_cross_entropy(logits, label, weight, batch=BATCH) * processes.size


def segmenter_loss(model: nn.Module, processes: Processes, share: slice) -> Tensor:
    """Weighted Tanimoto of a small segmenter."""
    frames = random(BATCH, 24, 28, seed=2).sigmoid()
    lungs = torch.zeros(BATCH, 24, 28)
    for picture in range(BATCH):
        lungs[picture, 4 : 18 + picture, 3 + picture : 20] = 1
    target = torch.stack((lungs, 1 - lungs), dim=1)[share]
    key_dropout(model, range(BATCH)[share])
    lung = lung_probability(model(frames[share]))
    weight = contour_weights(target, box=5, across=processes.sum)
    return tanimoto_loss(torch.stack((lung, 1 - lung), dim=1), target, weight, across=processes.sum)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Processes, slice], Tensor]]] = {
    "path": (lambda: Path().initialise(), path_loss),
    "segmenter": (lambda: Segmenter(filters=4, blocks=3).initialise(), segmenter_loss),
}


def train_few_steps(name: str, processes: Processes, share: slice, *, sync: bool) -> dict[str, Tensor]:
    """First gradient, state after the first forward, and the losses of a few steps of plain descent."""
    make, loss_of = NETS[name]
    model = make()
    if sync:
        use_sync_batch_norm(model, processes)
    model.train()
    # One net through torch's wrapper, one through ours: both must give the gradient of the whole batch.
    wrapped = DistributedDataParallel(model) if processes.size > 1 and name == "path" else model
    optimiser = torch.optim.Adam(model.parameters(), lr=0.002)
    losses, found = [], {}
    for step in range(STEPS):
        loss = loss_of(wrapped, processes, share)
        optimiser.zero_grad()
        loss.backward()
        if wrapped is model:
            processes.mean_gradients(model)
        losses.append(processes.sum(loss.detach()) / processes.size)
        if step == 0:
            found = {
                f"gradient.{n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
            }
            found |= {f"buffer.{n}": b.clone() for n, b in model.named_buffers()}
        optimiser.step()
    return found | {"losses": torch.stack(losses)}


def plain_cases(processes: Processes, share: slice) -> dict[str, Tensor]:
    """Ratio of sums, the two ways to average gradients, buffers, and an empty share in batch norm."""
    x, target = random(BATCH, 7, seed=3), random(BATCH, 4, seed=4)
    models = [nn.Linear(7, 4) for _ in range(2)]
    for model in models:
        nn.init.constant_(model.bias, 0.1)
        with torch.no_grad():
            model.weight.copy_(random(4, 7, seed=5))
        out = model(x[share]).sigmoid()
        sums = processes.sum(torch.stack(((out * target[share]).sum(), out.square().sum())))
        loss = sums[0] / (1 + sums[1])
        loss.backward()
    processes.mean_gradients(models[0])
    found = {"ratio.loss": loss.detach(), "ratio.gradient": gradient(models[0].weight)}
    found["ratio.own_gradient"] = gradient(models[1].weight)

    norm = BatchNorm(7)
    processes.mean_gradients(norm)  # nobody has a gradient: 0, not an error
    norm(x[share][:, :, None, None])
    processes.mean_buffers(norm)
    found["local.running_mean"] = norm.running_mean.clone()

    for name, part in {"whole": share, "empty": slice(0, BATCH if processes.rank == 0 else 0)}.items():
        norm = BatchNorm(7)
        use_sync_batch_norm(norm, processes)
        out = norm(x[part][:, :, None, None])
        (out * target[part, :1, None, None]).sum().mul(processes.size).backward()
        processes.mean_gradients(norm)
        found |= {f"{name}.weight": gradient(norm.weight), f"{name}.running_var": norm.running_var.clone()}
    return found


def work(rank: int, folder: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    try:
        found = findings(rank)
    finally:
        dist.destroy_process_group()
    safetensors.torch.save_file(
        {k: t.contiguous() for k, t in found.items()}, f"{folder}/rank{rank}.safetensors"
    )


def findings(rank: int) -> dict[str, Tensor]:
    """Everything that the tests below look at, by name."""
    processes = Processes.from_environment()
    share = SHARES[rank]
    found = plain_cases(processes, share)
    for name in NETS:
        found |= {f"{name}.{key}": t for key, t in train_few_steps(name, processes, share, sync=True).items()}
    gathered = processes.gather_objects([{"rank": rank, "loss": 0.1 + rank}] * (rank + 1))
    found["gathered"] = torch.tensor([[row["rank"], row["loss"]] for row in gathered], dtype=torch.float64)
    told = processes.broadcast_bytes(b"from zero" if rank == 0 else b"unheard")
    found["told"] = torch.tensor(list(told or b""))
    found["told_nothing"] = torch.tensor(processes.broadcast_bytes(None if rank == 0 else b"x") is None)
    processes.barrier()
    found["rank_size"] = torch.tensor([processes.rank, processes.size])
    return found


def second_process(_: int, folder: str) -> None:
    work(1, folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    child = mp.spawn(second_process, args=(str(folder),), nprocs=1, join=False)
    work(0, str(folder))  # the first of the two is this process, which has imported torch already
    while not child.join():
        continue
    return [safetensors.torch.load_file(FilePath(folder) / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, Tensor]:
    return plain_cases(Processes.alone(), slice(None))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_every_process_knows_its_place(two: list[dict[str, Tensor]]) -> None:
    assert [found["rank_size"].tolist() for found in two] == [[0, 2], [1, 2]]


def test_ratio_of_sums_has_the_loss_and_gradient_of_the_whole_batch(
    one: dict[str, Tensor], two: list[dict[str, Tensor]]
) -> None:
    for found in two:
        assert float(found["ratio.loss"]) == pytest.approx(float(one["ratio.loss"]), rel=1e-6)
        assert relative(found["ratio.gradient"], one["ratio.gradient"]) < 1e-6
    # The derivation: what a process has before the mean is its part of the gradient, times the number of processes.
    parts = sum(found["ratio.own_gradient"] for found in two) / 2
    assert relative(torch.as_tensor(parts), one["ratio.gradient"]) < 1e-6
    assert relative(two[0]["ratio.own_gradient"], one["ratio.gradient"]) > 0.1


@pytest.mark.parametrize("case", ["whole", "empty"])
def test_shared_statistics_of_unequal_shares(
    one: dict[str, Tensor], two: list[dict[str, Tensor]], case: str
) -> None:
    for found in two:
        assert relative(found[f"{case}.weight"], one["whole.weight"]) < 1e-6
        assert torch.equal(found[f"{case}.running_var"], one["whole.running_var"])


def test_buffers_become_the_mean_over_the_processes(two: list[dict[str, Tensor]]) -> None:
    x = random(BATCH, 7, seed=3)
    expected = BatchNorm.MOMENTUM * torch.stack([x[share].mean(dim=0) for share in SHARES]).mean(dim=0)
    for found in two:
        torch.testing.assert_close(found["local.running_mean"], expected)


@pytest.mark.parametrize("name", sorted(NETS))
def test_two_workers_train_as_one(two: list[dict[str, Tensor]], name: str) -> None:
    single = train_few_steps(name, Processes.alone(), slice(None), sync=False)
    for found in two:
        keys = [key for key in single if key.startswith("gradient.")]
        both = [
            torch.cat([state[prefix + key].flatten() for key in keys])
            for state, prefix in ((found, f"{name}."), (single, ""))
        ]
        assert relative(*both) < 1e-5
        for key in single:
            if key.startswith("buffer."):
                torch.testing.assert_close(found[f"{name}.{key}"], single[key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[f"{name}.losses"], single["losses"], rtol=1e-4, atol=0)
    assert single["losses"][-1] < single["losses"][0]


def test_shared_batch_norm_of_one_process_is_batch_norm() -> None:
    x = random(3, 6, 5, 4, seed=6).mul(3).add(2)
    plain, shared = BatchNorm(6), BatchNorm(6)
    plain.momentum = shared.momentum = 0.5
    use_sync_batch_norm(shared, Processes.alone())
    assert isinstance(shared, SyncBatchNorm)
    results = []
    for norm in (plain, shared):
        leaf = x.clone().requires_grad_()
        out = norm(leaf)
        (out * random(3, 6, 5, 4, seed=7)).sum().backward()
        results.append(
            (out, leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
        )
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain.eval()
    shared.eval()
    shared.load_state_dict(plain.state_dict())
    assert torch.equal(shared(x), plain(x))


def test_swapping_keeps_names_parameters_and_settings() -> None:
    model = Path()
    names, parameters = list(model.state_dict()), list(model.parameters())
    model.norm.momentum = 0.03
    before = copy.deepcopy(model.state_dict())
    use_sync_batch_norm(model, Processes.alone())
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.norm.momentum == 0.03
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not [m for m in model.modules() if type(m) is BatchNorm]


def test_what_is_passed_around_arrives(two: list[dict[str, Tensor]]) -> None:
    for found in two:
        assert found["gathered"].tolist() == [[0, 0.1], [1, 1.1], [1, 1.1]]
        assert bytes(found["told"].tolist()) == b"from zero"
        assert bool(found["told_nothing"])


def test_a_single_process_needs_no_group() -> None:
    alone = Processes.from_environment()
    assert (alone.rank, alone.size, alone.device.type) == (0, 1, "cpu")
    tensor = torch.ones(2, requires_grad=True)
    assert alone.sum(tensor) is tensor
    assert alone.gather_objects([1]) == [1]
    assert alone.broadcast_bytes(b"x") == b"x"
    alone.barrier()
