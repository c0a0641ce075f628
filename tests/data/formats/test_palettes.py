"""Label maps with a palette: the index is the class, unless the picture is a drawing in black and white."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.data.formats.test_read import labels_of
from tests.data.quality.test_faults import png_set, shapes
from ulna.data.quality.check import check
from ulna.errors import DataError

MASK = shapes((24, 20))
BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (200, 0, 0), (0, 200, 0)


def drawn(path, indices, *colours):
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.putdata(indices.ravel().tolist())
    picture.save(path)
    return path


def tiff(path, indices, *colours):
    table = np.zeros((3, 256), np.uint16)
    table[:, : len(colours)] = np.transpose(colours) * 257
    tifffile.imwrite(path, indices, photometric="palette", colormap=table)
    return path


@pytest.mark.parametrize(("save", "suffix"), [(drawn, "png"), (drawn, "bmp"), (tiff, "tif")])
def test_white_is_foreground_whichever_entry_it_is(tmp_path, save, suffix):
    for indices, colours in ((MASK, (BLACK, WHITE)), (1 - MASK, (WHITE, BLACK))):
        assert np.array_equal(labels_of(save(tmp_path / f"a.{suffix}", indices, *colours)).array[0], MASK)
    inverted = labels_of(save(tmp_path / f"a.{suffix}", 1 - MASK, WHITE, BLACK))
    assert inverted.meta.notes == ("has a palette of black and white, read by colour: white is 1, black is 0",)
    blank = labels_of(save(tmp_path / f"a.{suffix}", np.ones_like(MASK), WHITE, BLACK))
    assert not blank.array.any()


@pytest.mark.parametrize("options", [{}, {"bits": 1}])
def test_quantized_masks_are_those_that_were_drawn(tmp_path, options):
    for seed in range(4):
        mask = shapes((24, 20), at=2 + seed) if seed else np.ones((24, 20), np.uint8)
        Image.fromarray(np.stack([mask * 255] * 3, -1)).quantize(2).save(tmp_path / "a.png", **options)
        assert np.array_equal(labels_of(tmp_path / "a.png").array[0], mask)


def test_in_a_palette_of_classes_the_index_is_the_class(tmp_path):
    indices = np.arange(480, dtype=np.uint8).reshape(24, 20) % 3
    for colours in ((BLACK, RED, WHITE), (BLACK, WHITE, RED)):
        volume = labels_of(drawn(tmp_path / "a.png", indices, *colours))
        assert np.array_equal(volume.array[0], indices) and volume.meta.notes == ()
    two = labels_of(drawn(tmp_path / "a.png", MASK * 2, BLACK, RED, WHITE))
    assert np.array_equal(two.array[0], MASK * 2)
    on_white = labels_of(drawn(tmp_path / "a.png", indices, WHITE, RED, GREEN))
    assert np.array_equal(on_white.array[0], indices)
    assert (
        "has a palette that draws 0 as (255, 255, 255); the index of the entry is the class" in on_white.meta.notes[0]
    )


def test_black_is_the_background_of_two_colours(tmp_path):
    volume = labels_of(drawn(tmp_path / "a.png", 1 - MASK, RED, BLACK))
    assert np.array_equal(volume.array[0], MASK) and "black is 0" in volume.meta.notes[0]
    assert np.array_equal(labels_of(drawn(tmp_path / "a.png", MASK, BLACK, RED)).array[0], MASK)


@pytest.mark.parametrize("colours", [(WHITE, RED), (GREEN, RED, BLACK)])
def test_a_palette_that_tells_no_background_is_refused(tmp_path, colours):
    indices = np.arange(480, dtype=np.uint8).reshape(24, 20) % len(colours)
    with pytest.raises(DataError, match=r"nothing says which is the background; save the class numbers as grey values"):
        labels_of(drawn(tmp_path / "a.png", indices, *colours))


def test_an_index_without_an_entry_is_refused(tmp_path):
    path = drawn(tmp_path / "a.png", MASK, BLACK, RED)
    data = path.read_bytes()
    at = data.index(b"PLTE")
    assert int.from_bytes(data[at - 4 : at], "big") == 6
    import struct
    import zlib

    body = b"PLTE" + data[at + 4 : at + 7]
    part = struct.pack(">I", 3) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[: at - 4] + part + data[at + 14 :])
    with pytest.raises(DataError, match="has pixels of entry 1, and a palette of 1 entries"):
        labels_of(path)


def test_palettes_that_number_the_colours_differently_are_a_problem(tmp_path):
    """What a program that counts the colours of each picture by itself writes: index 1 is red here and green there."""
    root = png_set(tmp_path)
    indices = shapes((24, 20)) + 2 * shapes((24, 20), at=10)
    for number in range(4):
        drawn(root / "labels" / f"c{number}.png", indices, BLACK, RED, GREEN)
    assert check(root).ok
    drawn(root / "labels" / "c2.png", indices, BLACK, GREEN, RED)
    (problem,) = check(root).problems
    assert problem.file.endswith("labels/c2.png")
    assert problem.what == "draws the class 1 in the colour (0, 200, 0), c0 in (200, 0, 0)"
