import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.data.pipeline.normalising import normalise, normalise_there
from ulna.data.pipeline.percentile import percentiles
from ulna.errors import UsageError
from ulna.recipe import Normalization, parse

RNG = np.random.default_rng(0)


def literal(array, how, inside):
    """Value by value, in Python's own numbers."""
    values = [[float(v) for v in channel.ravel()] for channel in array]
    for c, one in enumerate(how):
        low, high = one.clip or (None, None)
        values[c] = [v if low is None else max(v, low) for v in values[c]]
        values[c] = [v if high is None else min(v, high) for v in values[c]]

    def moments(channels):
        some = [v for c in channels for v, chosen in zip(values[c], inside.ravel(), strict=True) if chosen]
        mean = sum(some) / len(some)
        return mean, (sum((v - mean) ** 2 for v in some) / len(some)) ** 0.5

    joint = [c for c, one in enumerate(how) if one.kind == "zscore_joint"]
    made = []
    for c, one in enumerate(how):
        if one.kind in ("zscore", "zscore_joint"):
            mean, std = moments([c] if one.kind == "zscore" else joint)
        else:
            mean, std = (one.low, one.high - one.low) if one.kind == "rescale" else (0.0, 1.0)
        made.append(np.reshape([(v - mean) / std for v in values[c]], array.shape[1:]))
    return np.stack(made)


KINDS = {
    "joint": [Normalization(kind="zscore_joint")] * 3,
    "joint of two": [
        Normalization(kind="zscore_joint", clip=(None, 110.0)),
        Normalization(kind="zscore"),
        Normalization(kind="zscore_joint"),
    ],
    "window": [Normalization(kind="rescale", low=90, high=105, clip=(90, 105))] * 3,
    "cap": [Normalization(kind="zscore", clip=(None, 103.5), cap=95)] * 3,
    "clipped": [Normalization(kind="none", clip=(95.0, None))] * 3,
    "open": [Normalization(kind="none", clip=(None, None))] * 3,
}


@pytest.mark.parametrize("how", KINDS.values(), ids=list(KINDS))
def test_normalisations_are_their_formulas(how):
    array = RNG.normal(100, 10, (3, 5, 6)).astype(np.float32)
    for index in ((...,), (..., slice(1, 4), slice(0, 3))):
        inside = np.zeros(array.shape[1:], bool)
        inside[index] = True
        expected = literal(array, how, inside)
        np.testing.assert_allclose(normalise(array, how, index), expected, atol=1e-5)
        np.testing.assert_allclose(normalise_there(torch.from_numpy(array), how, index), expected, atol=1e-4)


def test_channels_that_are_standardised_together_keep_their_differences():
    array = np.stack([np.zeros((4, 4)), np.full((4, 4), 2.0)]).astype(np.float32)
    np.testing.assert_allclose(normalise(array, [Normalization(kind="zscore_joint")] * 2), array - 1)


@pytest.mark.parametrize("level", [0.001, 5, 50, 95, 99.5, 100])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_a_percentile_is_that_of_all_values_together(dtype, level):
    whole = [(RNG.normal(0, 40, (2, *size))).astype(dtype) for size in ((7, 9), (30, 4), (1, 1), (11, 3))]
    whole[0][:, 0, :3] = 0
    expected = [
        np.percentile(
            np.concatenate([one[c].ravel() for one in whole]).astype(np.float32), level, method="inverted_cdf"
        )
        for c in range(2)
    ]
    assert percentiles(lambda: whole, level) == tuple(map(float, expected))


def test_a_plan_whose_clip_is_upside_down_is_refused():
    with pytest.raises(UsageError, match=r"clip is \[5.0, 1.0\]"):
        parse(Normalization, {"kind": "none", "clip": (5, 1)})


def test_a_plan_of_the_first_format_has_no_sizes():
    with pytest.raises(ValueError, match="size, crop and kept_axes are of format 2"):
        make(format=1, spacing=None, crop=(4, 4))
