"""Windows in batches and from a graph give what they give one by one; what is asked for decides what comes back."""

import logging

import numpy as np
import pytest
import torch

from tests.plans import make
from tests.recording import Notes
from ulna.data.pipeline.preprocess import prepare
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference import forward as running
from ulna.inference import volume as predicting
from ulna.inference.finite import FiniteCheck
from ulna.inference.forward import Forward
from ulna.inference.replay import MOST_GRAPHS, Replayed
from ulna.inference.spread import Agreement
from ulna.inference.volume import predict_slabs
from ulna.networks.build import build
from ulna.recipe import Inference, Labels, Recipe

CPU = torch.device("cpu")
FOUR = Labels(names=("background", "a", "b", "c"))


def plan_of(dims, **changes):
    settings = {"strides": ((2,) * dims,), "patch": (16,) * dims, "whole_image_limit": 10, "labels": FOUR}
    return make(spatial_dims=dims, **{**settings, **changes})


def network_of(dims, name="unet", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return build(name, classes=4, spatial_dims=dims, channels=(4, 8), generator=generator).eval()


def image_of(size, seed=0):
    values = np.random.default_rng(seed).normal(size=(1, *size)).astype(np.float32)
    return Volume(values, (1.0,) * len(size))


def predicted(forward, volume, **settings):
    prepared = prepare(volume, forward.plan)
    slabs = predict_slabs(
        forward.network, forward.plan, prepared, settings=Inference(**settings), device=CPU, forward=forward
    )
    return slabs.maps()


class Counted:
    """How many windows a forward was asked for at a time."""

    def __init__(self, forward, monkeypatch):
        self.counts, run = [], forward.network.encode

        def encode(image):
            self.counts.append(len(image))
            return run(image)

        monkeypatch.setattr(forward.network, "encode", encode)


@pytest.mark.parametrize(
    ("name", "size", "settings"),
    [
        ("unet", (37, 50), {}),
        ("unet", (37, 50), {"tta": True}),
        ("unet", (16, 16), {"tta": True}),  # one window: its flipped copies go together
        ("unet", (20, 30, 25), {"overlap": 0.25}),
        ("implicit_unet", (37, 50), {}),
        ("implicit_unet", (37, 50), {"tta": True, "mesh_step": 4}),
    ],
)
@pytest.mark.parametrize("most", [5, 999])
@pytest.mark.share(3)
def test_windows_together_give_what_they_give_one_by_one(monkeypatch, name, size, settings, most):
    plan = plan_of(len(size), mirror_axes=(0, 1))
    network = network_of(len(size), name)
    expected = predicted(Forward(network, plan, CPU), image_of(size), **settings)
    monkeypatch.setattr(running, "free_memory", lambda device: 10**12)
    monkeypatch.setattr(running, "MOST_VOXELS", most * 16 ** len(size))
    forward = Forward(network, plan, CPU)
    assert forward.together((16,) * len(size)) == most
    counted = Counted(forward, monkeypatch)
    torch.testing.assert_close(predicted(forward, image_of(size), **settings), expected, atol=1e-5, rtol=1e-5)
    assert 1 < max(counted.counts) <= most
    if most == 999 and size == (37, 50):  # of all places along the axis, and all copies
        assert counted.counts == [4 * 6 * (4 if settings.get("tta") else 1)]


def test_the_free_memory_decides_how_many_windows_go_together_and_one_always_does(monkeypatch):
    def together(free, patch=(16, 16)):
        monkeypatch.setattr(running, "free_memory", lambda device: free)
        return Forward(network_of(2), plan_of(2), CPU).together(patch)

    assert together(0) == together(1) == 1
    some, more = together(10**7), together(2 * 10**7)
    assert 1 < some < more <= 2 * some + 1
    assert together(10**15) == running.MOST_VOXELS // 256
    assert together(10**15, (4096, 4096)) == 1


def test_how_many_go_together_stays_when_memory_is_taken(monkeypatch):
    forward = Forward(network_of(2), plan_of(2), CPU)
    monkeypatch.setattr(running, "free_memory", lambda device: 10**7)
    before = forward.together((16, 16))
    monkeypatch.setattr(running, "free_memory", lambda device: 10**4)
    assert forward.together((16, 16)) == before > 1


def test_a_batch_that_memory_does_not_hold_is_halved(caplog):
    caplog.set_level(logging.INFO)
    forward, asked = Forward(network_of(2), plan_of(2), CPU), []

    def ask(windows):
        asked.append(len(windows))
        if len(windows) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 2 * windows

    batch = torch.randn(9, 1, 4, 4)
    assert torch.equal(forward.within_memory(ask, batch), 2 * batch)
    assert asked == [9, 4, 2, 2, 2, 2, 1]
    assert "from now on 2" in caplog.text
    assert forward.within_memory(ask, batch[:2]).shape == (2, 1, 4, 4)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        forward.within_memory(lambda windows: ask(torch.cat([windows] * 4)), batch[:1])


@pytest.mark.parametrize("settings", [{}, {"tta": True}])
def test_windows_from_a_graph_give_what_they_give_without(monkeypatch, settings):
    """Also a smaller batch at the end, and after the weights have changed in place."""
    monkeypatch.setattr(running, "free_memory", lambda device: 12 * 10**5)
    plan, network, recorder = plan_of(2, mirror_axes=(0,)), network_of(2), Notes(list)
    eager, forward = Forward(network, plan, CPU), Forward(network, plan, CPU, recorder=recorder)
    assert 1 < forward.together((16, 16)) < 24
    for seed in (0, 1):
        for size in ((37, 50), (90, 41)):
            image = image_of(size, seed)
            expected = predicted(eager, image, **settings)
            torch.testing.assert_close(predicted(forward, image, **settings), expected, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)
    assert recorder.recorded
    assert recorder.replayed > 2 * recorder.recorded


def test_a_shape_is_recorded_when_it_comes_again_and_smaller_batches_go_through_its_graph():
    calls, recorder = [], Notes(list)

    def run(batch):
        calls.append(len(batch))
        return batch * 3

    replayed = Replayed(run, recorder)
    for count in (4, 4, 3, 2, 1, 4):
        batch = torch.randn(count, 1, 2, 2)
        assert torch.equal(replayed(batch), batch * 3)
    assert recorder.recorded == 1
    assert recorder.replayed == 4  # a single one would be three quarters in vain
    for length in range(3, 20):  # whole images of many sizes
        for _ in range(2):
            replayed(torch.randn(4, 1, length, length))
    assert recorder.recorded == MOST_GRAPHS


def test_where_recording_fails_everything_goes_on_without_and_one_line_says_so(caplog):
    caplog.set_level(logging.INFO)

    class Fails(Notes):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing")

    replayed, batch = Replayed(lambda batch: batch + 1, Fails(list)), torch.zeros(2, 1, 2, 2)
    for _ in range(5):
        assert torch.equal(replayed(batch), batch + 1)
    told = "windows go without a CUDA graph, as none could be made ('operation not permitted when stream is capturing')"
    assert [record.message for record in caplog.records] == [f"note: {told}"]


@pytest.mark.parametrize("labels", [Labels(), FOUR, Labels(names=("a", "b", "c", "d"), multilabel=True)])
def test_labels_are_made_where_the_maps_are_and_small_integers_come_back(monkeypatch, labels):
    brought, bring = [], predicting.to_host

    def noted(tensor):
        brought.append(tensor.dtype)
        return bring(tensor)

    monkeypatch.setattr(predicting, "to_host", noted)
    plan = plan_of(2, labels=labels, spacing=(1.3, 0.8), unit="mm")
    network = build("unet", classes=labels.outputs, channels=(4, 8), generator=torch.Generator().manual_seed(0)).eval()
    volume = Volume(image_of((37, 50)).array, (1.0, 1.0), "mm")

    def slabs():
        return predict_slabs(network, plan, prepare(volume, plan), settings=Inference(), device=CPU)

    mask = slabs().label_map(labels, 0.5)
    assert set(brought) == {torch.uint8}
    assert mask.dtype == np.uint8
    maps = slabs().maps().numpy()
    if labels.multilabel:
        expected = maps > 0.5
    else:
        expected = maps[0] > 0.5 if labels.outputs == 1 else maps.argmax(0)
    assert np.array_equal(mask, expected)
    assert brought[-1] == torch.float32


def test_more_than_256_classes_come_back_in_two_bytes():
    labels = Labels(names=tuple(f"class {n}" for n in range(300)))
    maps = torch.rand(300, 5, 6)
    mask = predicting.to_labels(maps, labels)
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, maps.numpy().argmax(0))


def test_an_image_that_the_gpu_cannot_prepare_is_prepared_by_the_cpu(monkeypatch):
    from ulna.inference import segmenter as segmenting

    segmenter = segmenting.Segmenter(network_of(2), plan_of(2), Recipe(), CPU)
    volume, asked = image_of((37, 50)), []
    expected = segmenter.mask(volume)

    def prepared(volume, plan, device=None):
        asked.append(device)
        if device is not None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return prepare(volume, plan)

    monkeypatch.setattr(segmenting, "prepare", prepared)
    assert np.array_equal(segmenter.mask(volume), expected)
    assert asked == [CPU, None]


def test_what_a_gpu_counted_is_looked_at_when_a_slab_is_finished():
    network = network_of(2)
    network.origin = "runs/a"
    check = FiniteCheck(network, torch.device("cuda"))
    check.add(torch.full((1, 2, 2), 3e38))  # their sum is infinite, they are not
    check.finish()
    check.add(torch.tensor([1.0, float("nan")]))
    check.add(torch.tensor([1.0, float("inf"), float("-inf")]))
    with pytest.raises(UsageError, match="runs/a: 3 of 5 values that it computed are NaN or infinite"):
        check.finish()
    check.finish()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("dims", "size"), [(2, (90, 130)), (3, (40, 50, 30))])
@pytest.mark.parametrize("tta", [False, True])
def test_a_gpu_gives_what_a_cpu_gives(dims, size, tta, caplog):
    """In float32, from batches and graphs, with normalisation and resampling there."""
    plan = plan_of(dims, spacing=(1.3,) + (0.8,) * (dims - 1), unit="mm", mirror_axes=(0,))
    volume = Volume(image_of(size).array, (1.0,) * dims, "mm")
    network, settings, gpu = network_of(dims), Inference(tta=tta), torch.device("cuda")
    expected = predict_slabs(network, plan, prepare(volume, plan), settings=settings, device=CPU).maps()
    forward = Forward(network_of(dims).to(gpu), plan, gpu)
    caplog.set_level(logging.INFO)
    for _ in range(3):
        prepared = prepare(volume, plan, gpu)
        assert prepared.image.is_cuda
        made = predict_slabs(forward.network, plan, prepared, settings=settings, device=gpu, forward=forward)
        torch.testing.assert_close(made.maps(), expected, atol=5e-3, rtol=0)  # TF32 where torch takes it
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_heads_are_counted_window_by_window_and_change_no_answer(name, graph, monkeypatch):
    """A head at a coarser level is compared on its own grid, and a window that only fills a graph counts for nothing."""
    monkeypatch.setattr(running, "free_memory", lambda device: 12 * 10**5)
    generator = torch.Generator().manual_seed(0)
    network = build(
        name, classes=4, spatial_dims=2, channels=(4, 8, 8), deep_supervision=True, generator=generator
    ).eval()
    plan = plan_of(2, strides=((2, 2),) * 2)
    counting = Forward(network, plan, CPU, recorder=Notes(list) if graph else None, heads=True)
    plain, agreement, windows = Forward(network, plan, CPU), Agreement(FOUR), []
    image = image_of((37, 50))
    logits = network.outputs
    plain.together((16, 16)), counting.together((16, 16))  # which looks at the network before any window
    with monkeypatch.context() as patched:
        patched.setattr(network, "outputs", lambda batch: (windows.append(batch.clone()), logits(batch))[1])
        expected = predicted(plain, image)
    seen = torch.cat(windows)
    maps = predict_slabs(
        network, plan, prepare(image, plan), settings=Inference(), device=CPU, forward=counting, agreement=agreement
    ).maps()
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)
    outputs = logits(seen)
    answer = outputs.logits.argmax(1)
    for number, structure in enumerate(FOUR.foreground, start=1):
        common = both = 0
        for head in outputs.heads.values():
            step = answer.shape[-1] // head.shape[-1]
            ours, its = answer[:, ::step, ::step] == number, head.argmax(1) == number
            common, both = common + int((ours & its).sum()), both + int(ours.sum() + its.sum())
        assert agreement.by_class()[structure] == pytest.approx(2 * common / both, abs=2e-3)
