""".npy: axes, the way back, and files that are not whole."""

import numpy as np
import pytest

from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_labels
from ulna.errors import DataError


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(1, 200, shape).astype(dtype)


def image_of(path):
    return read_image([Source(path)])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 6), (1, 5, 6)), ((5, 6, 3), (3, 5, 6)), ((5, 6, 7), (1, 5, 6, 7)), ((5, 6, 7, 2), (2, 5, 6, 7))],
)
@pytest.mark.parametrize("dtype", ["u1", ">i2", "?", "f8"])
def test_npy_axes_and_the_way_back(tmp_path, shape, expected, dtype):
    array = noise(*shape).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    volume = image_of(tmp_path / "a.npy")
    wanted = np.moveaxis(array, -1, 0) if expected[0] > 1 else array[None]
    assert volume.array.shape == expected and np.array_equal(volume.array, wanted) and volume.array.dtype.isnative
    assert volume.unit == "px" and volume.array.dtype.kind in "iuf"
    path = write_labels(tmp_path / "mask", volume.array[0] > 100, volume)
    assert path.name == "mask.npy" and np.array_equal(np.load(path), volume.array[0] > 100)
    maps = np.stack([volume.array[0] > 50, volume.array[0] > 100])
    assert np.array_equal(read_labels(Source(write_labels(tmp_path / "both", maps, volume))).array, maps)


@pytest.mark.parametrize("keep", [1, 7, 60, 200, -1])
def test_cut_npy_is_found_at_any_length(tmp_path, keep):
    np.save(tmp_path / "a.npy", noise(30, 40))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:keep])
    with pytest.raises(DataError, match=r"a\.npy: (is cut short|has an array that cannot be read).*; copy or download"):
        image_of(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(data + b"\0")
    with pytest.raises(DataError, match="1 bytes follow its array"):
        image_of(tmp_path / "a.npy")


def test_npy_of_objects_or_text_is_never_opened(tmp_path):
    for values in (np.array([{}, {}], dtype=object), np.array(["a"]), np.ones(3, complex)):
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(DataError, match="has an array of type"):
            image_of(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", noise(3))
    with pytest.raises(DataError, match=r"has the shape \(3,\)"):
        image_of(tmp_path / "a.npy")
