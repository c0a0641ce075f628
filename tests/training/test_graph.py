"""Recorded steps on a GPU: as plain ones within rounding, without waiting for the device, and plain where they must be."""

import contextlib
import logging

import pytest
import torch

from tests.training.test_step import batches
from ulna.data.pipeline.points import sample_points
from ulna.losses import make_loss
from ulna.networks.build import build
from ulna.recipe import Optimizer
from ulna.system.graphs import CudaGraphs
from ulna.training.late import LateNumbers
from ulna.training.optimizers import make_optimizer, set_lr
from ulna.training.replay import WARM_UP, Replayed
from ulna.training.step import Step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
STEPS = 12


def trained(recorder, model, accumulate, precision="fp32", **changes):
    torch.manual_seed(0)
    checkpointing = changes.pop("activation_checkpointing", False)
    network = build(model, channels=(8, 16, 16), **changes).cuda().to(memory_format=torch.channels_last)
    network.activation_checkpointing = checkpointing
    optimizer = make_optimizer(Optimizer(kind="sgd", momentum=0.9), network.parameters(), recorded=True)
    step = Step(
        network, make_loss("dice_ce", multilabel=False), optimizer,
        precision=precision, accumulate=accumulate, clip=1.0, recorder=recorder,
    )  # fmt: skip
    torch.cuda.manual_seed(1)
    late, losses = LateNumbers(torch.device("cuda")), []
    for number, batch in enumerate(batches(STEPS, network.head.sparse)):
        images, labels, points = (None if t is None else t.cuda() for t in batch)
        set_lr(optimizer, 1e-3 * (1 + number % 3))
        losses += late.add(step(images, labels, points, update=(number + 1) % accumulate == 0))
    return network, losses + late.rest(), torch.cuda.get_rng_state(), step


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("unet", {"conv": {"kind": "double_conv", "options": {"dropout": 0.2}}}),
        ("nnunet", {}),
        ("nnunet", {"activation_checkpointing": True}),
        ("implicit_unet", {"head": {"kind": "points", "options": {"width": 16, "depth": 2}}}),
    ],
)
def test_a_graph_takes_plain_steps(model, changes, accumulate):
    plain, losses, random, _ = trained(None, model, accumulate, **changes)
    made, same_losses, same_random, step = trained(CudaGraphs(draws=True), model, accumulate, **changes)
    assert step.settled and step._replayed._replays  # recorded, and not given up
    torch.testing.assert_close(torch.tensor(same_losses), torch.tensor(losses), rtol=1e-3, atol=1e-3)
    for (name, one), two in zip(plain.state_dict().items(), made.state_dict().values(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-2, atol=1e-3, msg=name)  # other sums, twelve steps on
    assert torch.equal(random, same_random)  # as many draws


@pytest.mark.parametrize("recorder", [None, CudaGraphs], ids=["plain", "graph"])
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_nothing_in_a_step_waits_for_the_device(recorder, kind):
    network = build("unetpp", channels=(8, 16)).cuda()
    optimizer = make_optimizer(Optimizer(kind=kind), network.parameters(), recorded=True)
    step = Step(
        network, make_loss("dice_ce", multilabel=False), optimizer,
        precision="bf16", clip=1.0, recorder=recorder(draws=True) if recorder else None,
    )  # fmt: skip
    images, labels = torch.randn(2, 1, 32, 32, device="cuda"), torch.zeros(2, 32, 32, dtype=torch.uint8, device="cuda")
    labels[:, 8:20, 8:20] = 1
    generator = torch.Generator("cuda").manual_seed(0)

    def points():
        return sample_points(labels, 2, count=50, alpha=0.5, sigma=2.0, generator=generator)

    for _ in range(WARM_UP + 1):
        step(images, labels)
        points()
    late = LateNumbers(torch.device("cuda"), ahead=100)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(5):
            set_lr(optimizer, 1e-3)
            late.add(step(images, labels))
            points()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(late.rest()) <= 5


def test_what_cannot_be_recorded_goes_on_one_by_one_and_draws_go_on(caplog):
    x = torch.ones(4, device="cuda")

    def work(step, way):
        x.mul_(step * torch.nn.functional.dropout(torch.ones_like(x), 0.5).sum().sign().item())

    call = Replayed(work, CudaGraphs(draws=True))
    with caplog.at_level(logging.INFO, logger="ulna"):
        for _ in range(WARM_UP + 3):
            call(torch.full((4,), 1.0, device="cuda"))
    assert [record.getMessage().startswith("note: steps go one by one") for record in caplog.records] == [True]
    assert torch.nn.functional.dropout(x, 0.5).isfinite().all()


def test_a_refused_recording_leaves_no_memory_behind():
    """The driver ends such a recording before torch's allocator hears of it: all blocks would then be kept."""

    def work(step, way):
        (step * 2).sum().item()

    call, beside = Replayed(work, CudaGraphs(draws=True)), torch.cuda.Stream()
    for _ in range(WARM_UP + 2):
        call(torch.ones(4, device="cuda"))

    def batch():
        with torch.cuda.stream(beside):
            made = torch.ones(2**20, device="cuda")
        torch.cuda.current_stream().wait_stream(beside)
        made.record_stream(torch.cuda.current_stream())

    batch()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    for _ in range(20):
        batch()
    torch.cuda.synchronize()
    batch()
    assert torch.cuda.memory_stats()["active_bytes.all.current"] <= before + 2 * 2**22


def test_a_recording_that_draws_nothing_leaves_the_random_numbers_to_the_others():
    """Else a checkpoint would hold the state of a generator that no graph moves on."""
    x = torch.ones(64, device="cuda")

    def draws(step, way):
        x.copy_(torch.nn.functional.dropout(step, 0.5))

    call = Replayed(draws, CudaGraphs(draws=True))
    for _ in range(WARM_UP + 1):
        call(torch.ones(64, device="cuda"))
    for fails in (False, True):
        beside, y = CudaGraphs(draws=False), torch.zeros(4, device="cuda")
        with contextlib.suppress(RuntimeError):
            beside.record(lambda y=y, fails=fails: y.add_(y.sum().item() if fails else 1))
        before = torch.cuda.get_rng_state()
        call(torch.ones(64, device="cuda"))
        assert not torch.equal(torch.cuda.get_rng_state(), before)
