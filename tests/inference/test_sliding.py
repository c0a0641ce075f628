import itertools

import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.data.pipeline.preprocess import prepare
from ulna.data.volume import Volume
from ulna.inference.sliding import by_windows, gaussian, window_starts
from ulna.inference.volume import flips, predict_slabs, to_labels
from ulna.networks.build import build
from ulna.recipe import Inference, Labels

CPU = torch.device("cpu")


def joined(slabs, axis=0):
    return torch.cat([slab.clone() for slab in slabs], dim=axis + 1)


@pytest.mark.parametrize(
    ("size", "patch", "overlap"), [*itertools.product((5, 16, 17, 40), (4, 16), (0.0, 0.3, 0.5, 0.75))]
)
def test_windows_cover_everything_and_overlap_enough(size, patch, overlap):
    starts = window_starts(size, patch, overlap)
    covered = {i for s in starts for i in range(s, min(s + patch, size))}
    assert covered == set(range(size))
    assert all(0 <= s <= max(size - patch, 0) for s in starts)
    if size > patch:
        assert max(b - a for a, b in itertools.pairwise(starts)) <= max(1, round(patch * (1 - overlap)) + 1)


def test_weights_are_highest_in_the_middle_symmetric_and_positive():
    w = gaussian((9, 8))
    assert w.shape == (9, 8)
    assert w.argmax() in (4 * 8 + 3, 4 * 8 + 4)
    torch.testing.assert_close(w, w.flip(0, 1))
    assert w.min() > 0
    assert (w[4, 3] / w[4, 3 + 2]).item() == pytest.approx(np.exp(0.5 * (1.5**2 - 0.5**2)), rel=1e-4)  # sigma = 1 pixel


@pytest.mark.parametrize("size", [(11, 17), (9, 10, 13)])
def test_a_function_of_single_pixels_comes_out_as_if_applied_to_the_whole(size):
    image = torch.randn(2, *size)
    patch = (4,) * len(size)
    for axis in range(len(size)):
        merged = joined(by_windows(lambda x: x.sigmoid(), image, patch, overlap=0.4, axis=axis, batch=3), axis)
        torch.testing.assert_close(merged, image.sigmoid())


def test_windows_are_averaged_by_weight():
    calls = iter([0.0, 1.0])
    merged = joined(by_windows(lambda x: torch.full((1, 1, 4), next(calls)), torch.zeros(1, 6), (4,), overlap=0.5))
    w = gaussian((4,))
    expected = torch.tensor([0, 0, w[0] / (w[0] + w[2]), w[1] / (w[1] + w[3]), 1, 1])
    torch.testing.assert_close(merged[0], expected)


def maps_of(net, plan, image, **settings):
    prepared = prepare(Volume(image, (1.0, 1.0)), plan)
    return predict_slabs(net, plan, prepared, settings=Inference(**settings), device=CPU).maps()


def test_prediction_of_a_whole_image_equals_the_network():
    net = build("unet", channels=(4, 8), generator=torch.Generator().manual_seed(0)).eval()
    plan = make(strides=((2, 2),))
    image = np.random.default_rng(0).normal(size=(1, 21, 18)).astype(np.float32)
    maps = maps_of(net, plan, image)
    z = (image - image.mean()) / image.std()
    with torch.no_grad():
        torch.testing.assert_close(maps, net(torch.from_numpy(z)[None])[0].sigmoid(), atol=1e-5, rtol=1e-4)


def test_flips_are_all_sets_of_axes():
    assert sorted(flips((0, 1, 2))) == [(), (0,), (0, 1), (0, 1, 2), (0, 2), (1,), (1, 2), (2,)]


def test_mirroring_averages_over_every_safe_flip():
    net = build("unet", channels=(4, 8), generator=torch.Generator().manual_seed(0)).eval()
    image = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    plan = make(strides=((2, 2),), mirror_axes=(1,))

    def predicted(array):
        return maps_of(net, plan, array)

    both = maps_of(net, plan, image, tta=True)
    expected = (predicted(image) + predicted(image[:, :, ::-1].copy()).flip(2)) / 2
    torch.testing.assert_close(both, expected, atol=1e-6, rtol=1e-5)


def test_labels_are_thresholded_or_the_most_probable():
    one = torch.tensor([[[0.4, 0.6]]])
    assert to_labels(one, Labels()).tolist() == [[0, 1]]
    assert to_labels(one, Labels(), threshold=0.3).tolist() == [[1, 1]]
    three = torch.tensor([0.2, 0.5, 0.3]).reshape(3, 1, 1)
    made = to_labels(three, Labels(names=("background", "a", "b")))
    assert made.tolist() == [[1]]
    assert made.dtype == np.uint8
    assert to_labels(three, Labels(names=("a", "b", "c"), multilabel=True), 0.25).tolist() == [[[0]], [[1]], [[1]]]
