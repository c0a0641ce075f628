"""On which side of the picture a mask is seen, in a real browser, and what of its graphics is taken for that."""

import io
import threading

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.viewer.browser import browsing, needs_chromium
from ulna.evaluation.views import view
from ulna.viewer.hand import read_at_hand
from ulna.viewer.view import _showing

pytestmark = [pytest.mark.slow, needs_chromium]
READY = "!document.querySelector('#findings').hidden && document.querySelector('#wait').hidden"
BOX = "Object.values(document.querySelector('#canvas').getBoundingClientRect().toJSON()).slice(0, 4)"

CONTEXTS = """import("./page/volume.js").then(({ canShow }) => {
  let made = 0;
  const own = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (...given) { made += 1; return own.apply(this, given); };
  return [canShow(), canShow(), made];
})"""


def written(path, array, stated):
    """A NIfTI that says how it lies, or leaves it to be assumed."""
    file = nibabel.Nifti1Image(array, np.eye(4) if stated else None)
    file.to_filename(path)
    return path


def seen_at(browser, server):
    """Where the mask is in the axial plane: 0 at the left of the stage, 1 at its right."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        browser.open(server.address)
        browser.until(READY)
        browser.key("v")
        assert browser.value("document.querySelector('#layouts [aria-pressed=true]').textContent") == "Axial"
        x, y, width, height = map(int, browser.value(BOX))
        pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB")).astype(int)
    finally:
        server.shutdown()
        thread.join()
    coloured = np.ptp(pixels[y : y + height, x : x + width], axis=-1) > 60
    wide = np.flatnonzero(coloured.sum(0) > 30)  # not letters, not the crosshair
    assert len(wide) > 50
    return wide.mean() / width


@pytest.mark.parametrize("stated", [True, False])
def test_a_mask_is_seen_on_the_side_that_the_reports_show(tmp_path, stated):
    mask = np.zeros((24, 20, 18), np.uint8)
    mask[2:6, 6:14, 4:14] = 1
    path = written(tmp_path / "image.nii.gz", np.full(mask.shape, 60, np.int16), stated)
    image = read_at_hand(path)
    assert image.meta.oriented is stated
    columns = np.flatnonzero(view(image, mask).maps[0].any(0))
    with _showing(path, written(tmp_path / "mask.nii.gz", mask, stated), 0) as server, browsing(tmp_path) as browser:
        assert (seen_at(browser, server) < 0.5) == (columns.mean() < 12) == (not stated)
        assert browser.value(CONTEXTS) == [True, True, 0]  # asked before, once
