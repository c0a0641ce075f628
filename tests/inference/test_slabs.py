"""Slab by slab gives what the whole gives, and holds no more than a window's length for every class."""

import gc
import itertools
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.plans import make
from ulna.data.pipeline.preprocess import prepare, restored
from ulna.data.volume import Volume
from ulna.inference.sliding import gaussian, window_starts
from ulna.inference.volume import predict_slabs
from ulna.networks.build import build
from ulna.recipe import Inference, Labels, Slices

CPU = torch.device("cpu")


def labels_of(classes):
    return Labels(names=("background", *(f"class {n}" for n in range(1, classes))))


def network_of(classes, dims):
    generator = torch.Generator().manual_seed(0)
    network = build("unet", classes=classes, spatial_dims=dims, channels=(4, 8), generator=generator)
    for parameter in network.head.parameters():  # biases too, else dead pixels are ties
        torch.nn.init.normal_(parameter, generator=generator)
    return network.eval()


def straightforward(network, plan, volume, overlap):
    """All windows into maps of the whole grid, then resampled at once."""
    prepared = prepare(volume, plan)
    image = prepared.image
    size = image.shape[1:]
    patch = [min(p, n) for p, n in zip(plan.patch, size, strict=True)]
    starts = [window_starts(n, p, overlap) for n, p in zip(size, patch, strict=True)]
    weights = gaussian(patch)
    total, weight_sum = torch.zeros(plan.labels.outputs, *size), torch.zeros(size)
    for corner in itertools.product(*starts):
        window = (..., *(slice(s, s + p) for s, p in zip(corner, patch, strict=True)))
        with torch.no_grad():
            total[window] += network(image[window][None])[0].softmax(0) * weights
        weight_sum[window] += weights
    (whole,) = restored([total / weight_sum], prepared)
    return whole


@pytest.mark.parametrize(
    ("size", "spacing", "patch"),
    [((40, 31), (1.0, 1.0), (16, 16)), ((31, 40), (1.3, 0.6), (16, 8)), ((12, 30, 14), (1.0, 1.7, 0.8), (8, 8, 8))],
)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_slabs_are_the_straightforward_prediction(size, spacing, patch, overlap):
    dims = len(size)
    plan = make(
        spatial_dims=dims, strides=((2,) * dims,), patch=patch, whole_image_limit=10, labels=labels_of(4),
        spacing=spacing, unit="mm",
    )  # fmt: skip
    network = network_of(4, dims)
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    volume = Volume(image, (1.0,) * dims, plan.unit)
    expected = straightforward(network, plan, volume, overlap)
    settings = Inference(overlap=overlap)
    made = predict_slabs(network, plan, prepare(volume, plan), settings=settings, device=CPU).maps()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    best, second = expected.topk(2, dim=0).values
    decided = (best - second > 1e-5).numpy()  # else the last bit decides
    assert decided.mean() > 0.99
    for axis in range(dims):
        slabs = predict_slabs(network, plan, prepare(volume, plan), settings=settings, device=CPU, axis=axis)
        mask = slabs.label_map(plan.labels, 0.5)
        assert np.array_equal(mask[decided], expected.argmax(0).numpy()[decided])
        assert mask.dtype == np.uint8


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, key, size)
        return made

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak_bytes(classes, length):
    """Of predicting a mask of `classes` classes on a volume of 8 x 8 x length, in windows of 8 x 8 x 8."""
    plan = make(spatial_dims=3, strides=((2, 2, 2),), patch=(8, 8, 8), whole_image_limit=10, labels=labels_of(classes))
    network = network_of(classes, 3)
    prepared = prepare(Volume(np.zeros((1, 8, 8, length), np.float32), (1.0,) * 3), plan)
    gc.collect()
    with Peak() as counted:
        predict_slabs(network, plan, prepared, settings=Inference(), device=CPU).label_map(plan.labels)
    return counted.peak


def test_memory_for_sixty_classes_does_not_grow_with_the_volume():
    whole_maps = 57 * 8 * 8 * 256 * 4  # what 57 more maps of the long volume would take
    long = peak_bytes(60, 256) - peak_bytes(3, 256)
    short = peak_bytes(60, 32) - peak_bytes(3, 32)
    assert long <= 1.05 * short
    assert long < whole_maps / 4


ACROSS = Slices(axis=0, full_count=1, empty_count=0)


@pytest.mark.parametrize(
    ("size", "slices", "tta"),
    [((20, 9, 9), None, False), ((20, 9, 9), None, True), ((37, 50), None, False), ((6, 20, 20), ACROSS, False)],
)
def test_every_window_is_told_and_no_more(monkeypatch, size, slices, tta):
    """So the bar of a large volume ends where the volume does."""
    told = []

    @contextmanager
    def bar(what, total):
        steps = []
        yield steps.append
        told.append((what, total, sum(steps)))

    monkeypatch.setattr("ulna.inference.volume.bar", bar)
    dims = len(size) if slices is None else 2
    plan = make(spatial_dims=dims, spacing=(1.0,) * len(size), patch=(8,) * dims, whole_image_limit=0, slices=slices)
    volume = Volume(np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32), (1.0,) * len(size))
    settings = Inference(tta=tta)
    predict_slabs(network_of(2, dims), plan, prepare(volume, plan), settings=settings, device=CPU).maps()
    ((what, total, done),) = told
    assert what == "windows" and total == done > 1
