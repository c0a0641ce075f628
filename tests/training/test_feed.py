"""Batches of a training: the same whoever makes them and wherever an epoch begins, read once, and what was waited for."""

import contextlib
import threading

import numpy as np
import pytest
import torch

from ulna.data.layout.dataset import Dataset
from ulna.data.pipeline.augment import Augment
from ulna.planning.choosing import recommended
from ulna.planning.plan import plan_training, read_training_data
from ulna.recipe import set_value
from ulna.training.feed import Feed, thread_count
from ulna.training.samples import Batches, PreparedCases, Samples, device_room

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def planned(discs):
    recipe = recommended("unet")
    for change in ("planning.patch=[24, 24]", "planning.batch=3", "augmentation.affine=0.5", "augmentation.elastic=1"):
        recipe = set_value(recipe, change)
    dataset = Dataset.from_folder(discs)
    made = plan_training(read_training_data(dataset, recipe.training), recipe)
    return dataset.of_dims(2).cases_of(made.split.train), made.plan, recipe


def feed_of(planned, *, threads=0, device=CPU, **options):
    cases, plan, recipe = planned
    samples = Samples(
        PreparedCases(cases, plan, **options), augment=Augment(recipe.augmentation, plan), foreground=0.5, seed=3
    )
    return Feed(samples, Batches(len(cases), 12, plan.batch, 3), device, threads)


def taken(feed, epoch=0, first_step=0):
    feed.batches.epoch, feed.batches.first_step = epoch, first_step
    return list(feed)


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_batches_have_the_shape_and_number_of_the_plan(planned):
    batches = taken(feed_of(planned))
    assert [(image.shape, labels.shape) for image, labels in batches] == [((3, 1, 24, 24), (3, 24, 24))] * 4
    assert all(labels.max() <= 1 and labels.dtype == torch.uint8 for _, labels in batches)


def test_epochs_differ_and_an_epoch_repeats(planned):
    feed = feed_of(planned)
    assert same(taken(feed, 1), taken(feed, 1))
    assert not same(taken(feed, 1), taken(feed, 2))


def test_an_epoch_that_goes_on_takes_the_batches_that_were_left(planned):
    whole = taken(feed_of(planned), 1)
    assert same(taken(feed_of(planned), 1, first_step=2), whole[2:])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("keep_bytes", [None, 0])
def test_threads_and_cases_that_are_read_again_change_nothing(planned, threads, keep_bytes):
    feed = feed_of(planned, threads=threads, keep_bytes=keep_bytes)
    expected = taken(feed_of(planned), 1)
    assert same(taken(feed, 1), expected)
    assert same(taken(feed, 1, first_step=1), expected[1:])


def test_the_streams_of_torch_are_left_alone(planned):
    """Dropout draws from them: what a network drops must not depend on its data path."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    taken(feed_of(planned))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("threads", [0, 2])
def test_cases_are_kept_on_the_device_then_in_memory_while_they_fit(planned, threads):
    one = sum(tensor.nbytes for tensor in (torch.zeros(1, 32, 40), torch.zeros(32, 40, dtype=torch.uint8)))
    feed = feed_of(planned, device_bytes=2 * one, keep_bytes=one, device=CPU)
    cases = feed.samples.cases
    cases._device = torch.device("meta")  # tells where a case lies, without a GPU
    assert list(cases.fill(threads)) == [0, 1, 2]
    assert [cases[index][0].image.device.type for index in range(4)] == ["meta", "meta", "cpu", "cpu"]
    assert [cases.keeps(index) for index in range(5)] == [True, True, True, False, False]


def test_filling_ahead_changes_no_batch(planned):
    feed = feed_of(planned, device_bytes=1 << 30)
    feed.samples.cases._device = CPU
    assert list(feed.samples.cases.fill(2)) == [0, 1, 2, 3, 4]
    assert same(taken(feed), taken(feed_of(planned)))


def test_on_a_gpu_the_next_batch_is_queued_before_one_is_handed_out_and_each_is_waited_for(planned, monkeypatch):
    """By streams that only write down what they are asked for."""
    done = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            done.append(f"{self.name} follows {other.name}")

        def record_event(self):
            return done[-1].removeprefix("made ")

        def wait_event(self, number):
            done.append(f"{self.name} waits for {number}")

    def make(samples, drawn, device):
        done.append(f"made {sum(entry.startswith('made') for entry in done)}")
        return torch.zeros(1), torch.ones(1)

    monkeypatch.setattr(Samples, "make", make)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("beside"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream("steps"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: done.append(f"held for {stream.name}"))
    for number, _ in enumerate(feed_of(planned, device=torch.device("cuda"))):
        done.append(f"step {number}")
    held = ["held for steps"] * 2
    assert done == [
        "beside follows steps", "made 0",
        "made 1", "steps waits for 0", *held, "step 0",
        "made 2", "steps waits for 1", *held, "step 1",
        "made 3", "steps waits for 2", *held, "step 2",
        "steps waits for 3", *held, "step 3",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("device_bytes", [0, 1 << 30])
def test_a_gpu_gets_the_same_batches(planned, device_bytes):
    gpu = torch.device("cuda")
    feed = feed_of(planned, threads=2, device=gpu)
    feed.samples.cases._device, feed.samples.cases._device_room = gpu, device_bytes
    list(feed.samples.cases.fill(2))
    for (a, b), (c, d) in zip(taken(feed), taken(feed_of(planned)), strict=True):
        assert a.is_cuda
        torch.testing.assert_close(a.cpu(), c, atol=2e-3, rtol=0)
        assert (b.cpu() == d).float().mean() > 0.999


def test_a_fault_in_a_thread_is_that_of_its_batch(planned, monkeypatch):
    monkeypatch.setattr(Samples, "draw", lambda samples, key: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        taken(feed_of(planned, threads=2))


def test_threads_end_with_their_reader(planned):
    before = threading.active_count()
    batches = iter(feed_of(planned, threads=3))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_settings_say_how_many_threads():
    assert [thread_count(None, "cpu"), thread_count(None, "cuda"), thread_count(2, "cpu")] == [0, 4, 2]


def test_without_a_gpu_no_case_is_kept_on_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_room(0) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10_000, 20_000))
    assert [device_room(4_000), device_room(20_000)] == [3_000, 0]


def test_a_case_that_is_not_kept_is_not_held_by_its_samples(planned):
    sample = feed_of(planned, keep_bytes=0).samples.draw((0, 0, 0))
    assert sample.piece.image.untyped_storage().nbytes() == sample.piece.image.nbytes
    assert np.prod(sample.piece.image.shape) < 32 * 40
