import numpy as np
import pytest

from ulna.data.quality.slices import SliceCount, added, count_slices


def literal(image, classes, axis):
    full = empty = blank = 0
    for number in range(image.shape[axis + 1]):
        seen = np.take(image, number, axis + 1)
        drawn = np.take(classes, number, axis - 3)
        if (drawn != 0).any():
            full += 1
        elif all(channel.min() == channel.max() for channel in seen):
            blank += 1
        else:
            empty += 1
    return SliceCount(full, empty, blank)


@pytest.mark.parametrize("maps", [None, 2])
def test_slices_are_counted_across_every_axis(maps):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 3, (2, 7, 6, 5)).astype(np.int16)
    image[:, 2:4], image[:, :, :, 4], image[1, :, 5] = 7, -1, 0
    classes = np.zeros((7, 6, 5) if maps is None else (maps, 7, 6, 5), np.uint8)
    classes[..., 3, 1:3, 2] = 1
    classes[..., 6, 5, 0] = 2
    counts = count_slices(image, classes)
    assert counts == tuple(literal(image, classes, axis) for axis in range(3))
    assert [count.all for count in counts] == [7, 6, 5]
    assert added([counts, counts])[1] == SliceCount(*(2 * n for n in counts[1]))


def test_what_is_not_known_is_no_structure_and_a_slice_of_nothing_else_counts_as_blank():
    image = np.arange(4 * 3 * 3, dtype=np.float32).reshape(1, 4, 3, 3)
    classes = np.zeros((4, 3, 3), np.uint8)  # as `label_values` gives them: 0 where the class is not known
    classes[0, 1, 1] = 1
    known = np.ones((4, 3, 3), bool)
    known[1], known[2, 0] = False, False
    assert count_slices(image, classes, known)[0] == SliceCount(full=1, empty=2, blank=1)
    assert count_slices(image, classes)[0] == SliceCount(full=1, empty=3)


def test_a_picture_has_no_slices():
    assert count_slices(np.zeros((1, 4, 4)), np.zeros((4, 4), np.uint8)) == ()


def test_a_slice_of_one_value_in_each_channel_is_blank_although_channels_differ():
    image = np.stack([np.full((2, 3, 3), 1.0), np.full((2, 3, 3), 2.0)])
    assert count_slices(image, None)[0] == SliceCount(blank=2)
