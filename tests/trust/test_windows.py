"""A CT is shown in the window for what its mask covers; what are no Hounsfield units, as any other image."""

from dataclasses import replace

import numpy as np
import pytest

from ulna.data.volume import Volume
from ulna.recipe import Labels
from ulna.trust.pictures import draw_case
from ulna.trust.windows import BONE, LUNG, SOFT, ct_window


def scan(organ=60, *, modality="CT", size=(20, 24, 6)):
    """Air, a body of 40 HU, and an organ in it; and where it is."""
    values = np.full(size, -1000, np.int16)
    values[2:-2, 2:-2] = 40
    mask = np.zeros(size, np.uint8)
    mask[6:12, 6:12, 2:4] = 1
    values[mask > 0] = organ
    volume = Volume(values[None], (1.0, 1.0, 2.0), "mm", np.diag([1.0, 1.0, 2.0, 1.0]))
    return replace(volume, meta=replace(volume.meta, modality=modality)), mask


@pytest.mark.parametrize(("organ", "window"), [(-800, LUNG), (60, SOFT), (700, BONE)])
def test_the_window_follows_what_is_covered(organ, window):
    volume, mask = scan(organ)
    assert ct_window(volume, mask) == window
    assert ct_window(volume, np.stack([mask, 0 * mask])) == window  # overlapping classes
    assert ct_window(volume, 0 * mask) == SOFT


def test_an_mri_and_values_that_are_no_hounsfield_units_have_none():
    assert ct_window(*scan(modality="MR")) is None
    volume, mask = scan()
    assert ct_window(volume.with_array(volume.array.astype(np.int32) * 50 + 90000), mask) is None


def test_an_organ_of_a_ct_differs_from_the_body_around_it_in_its_picture(monkeypatch):
    """From air to bone 20 HU are two of 256 grey levels."""
    seen = []
    monkeypatch.setattr("ulna.trust.pictures.embed", lambda image, **_: seen.append(image) or str(len(seen)))
    volume, mask = scan()
    shots = draw_case(volume, mask, Labels(names=("background", "organ")), ["organ"], planes=False)
    assert shots[0].caption == "largest area of organ, axial; -160 to 240 HU"
    (image,) = seen
    levels = sorted({int(level) for level in np.unique(image)})
    assert len(levels) == 3 and levels[2] - levels[1] > 20
