"""A large PNG, decoded by strips, is the picture that Pillow decodes as a whole."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.data.formats.test_read import image_of, labels_of
from ulna.data.formats import png_strips
from ulna.data.formats import raster as read_raster
from ulna.data.formats.png_strips import in_strips, strips
from ulna.errors import DataError


def smooth(*shape):
    """Values that every kind of row (unchanged, from the left, from above, from both) stores best somewhere."""
    noise = np.random.default_rng(0).integers(0, 9, shape)
    return (
        np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1]) * 5)[(..., *[None] * (len(shape) - 2))] + noise
    ) % 251


def saved(array, mode=None, **options):
    picture = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("slab", [1, 700, 5000])
@pytest.mark.parametrize(
    ("shape", "dtype", "mode"),
    [
        ((61, 53), "u1", None),
        ((61, 53, 3), "u1", None),
        ((61, 53, 4), "u1", None),
        ((61, 53), "u1", "LA"),
        ((61, 53), "u2", None),
        ((61, 53, 3), "u1", "P"),
    ],
)
def test_strips_are_the_picture(monkeypatch, slab, shape, dtype, mode):
    monkeypatch.setattr(png_strips, "SLAB", slab)
    data = saved((smooth(*shape) * (200 if dtype == "u2" else 1)).astype(dtype), mode)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    assert in_strips(data, 100)
    assert np.array_equal(np.concatenate([np.asarray(part) for part in strips(data)]), whole)


@pytest.mark.parametrize("as_labels", [False, True])
@pytest.mark.parametrize("mode", [None, "P", "LA", "RGBA"])
def test_both_ways_of_reading_agree(tmp_path, monkeypatch, mode, as_labels):
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = Image.fromarray((smooth(61, 53) % 3).astype(np.uint8)).convert(mode or "L")
    if mode == "P":
        colours.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, *[9] * 60])  # so many that it takes 8 bits
        colours.putdata((smooth(61, 53) % 3).astype(np.uint8).ravel().tolist())
    colours.save(path, exif=exif)
    read = labels_of if as_labels else image_of
    whole = read(path)
    for module in (png_strips, read_raster):
        monkeypatch.setattr(module, "SLAB", 1000)
    assert in_strips(path.read_bytes(), 1000)
    by_strips = read(path)
    assert np.array_equal(by_strips.array, whole.array) and by_strips.meta == whole.meta


def test_what_pillow_does_not_keep_is_not_cut(tmp_path):
    for depth, colour, interlaced in ((16, 2, 0), (1, 0, 0), (4, 3, 0), (8, 0, 1)):
        head = bytes(12) + b"IHDR" + (9000).to_bytes(4, "big") * 2 + bytes([depth, colour, 0, 0, interlaced])
        assert not in_strips(head, 100)


def test_a_stream_that_ends_too_early_is_told(tmp_path, monkeypatch):
    for module in (png_strips, read_raster):
        monkeypatch.setattr(module, "SLAB", 1000)
    from tests.data.quality.test_faults import png_part

    data = saved(smooth(61, 53).astype(np.uint8))
    (tmp_path / "a.png").write_bytes(
        data[:8] + png_part(b"IHDR", (53).to_bytes(4, "big") + (99).to_bytes(4, "big") + data[24:29]) + data[33:]
    )
    with pytest.raises(DataError, match=r"is cut short \(truncated: 61 of 99 rows\)"):
        image_of(tmp_path / "a.png")


def test_a_large_png_takes_little_more_than_itself(tmp_path, monkeypatch):
    for module in (png_strips, read_raster):
        monkeypatch.setattr(module, "SLAB", 1 << 18)
    array = smooth(3000, 2800).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(saved(array, compress_level=9))
    tracemalloc.start()
    volume = image_of(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "a.png").stat().st_size
    assert np.array_equal(volume.array[0], array) and peak < 1.3 * array.nbytes + 2 * size
