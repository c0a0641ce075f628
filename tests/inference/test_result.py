"""What is told of a segmented image."""

import tracemalloc

import numpy as np

from ulna.data.volume import Meta, Volume
from ulna.inference.result import Result
from ulna.recipe import Labels


def result_of(mask, labels):
    size = mask.shape[-2:]
    return Result(mask, None, Volume(np.zeros((1, *size)), (1.0, 1.0), "px", None, None, Meta()), labels)


def test_shares_of_exclusive_and_of_overlapping_classes():
    mask = np.array([[0, 1], [2, 2]], np.uint8)
    assert str(result_of(mask, Labels(names=("background", "a", "b")))) == "Result: mask of 2x2, a 25.00%, b 50.00%"
    maps = np.stack([mask > 0, mask > 1]).astype(np.uint8)
    assert str(result_of(maps, Labels(names=("a", "b"), multilabel=True))) == "Result: mask of 2x2, a 75.00%, b 50.00%"


def test_many_classes_of_a_large_image_are_counted_one_by_one():
    labels = Labels(names=("background", *(f"organ {n}" for n in range(60))))
    found = result_of(np.zeros((512, 512), np.uint8), labels)
    tracemalloc.start()
    try:
        str(found)
        assert tracemalloc.get_traced_memory()[1] < 4 * found.mask.nbytes  # 60 maps at once before
    finally:
        tracemalloc.stop()
