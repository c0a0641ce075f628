"""The page in a real browser: an upload, its mask over it, and the same mask as `predict` writes."""

import gzip
import io
import time
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image

import ulna
from tests.dicom_series import write_series
from tests.serving.servers import serving
from tests.viewer.browser import browsing, needs_chromium
from ulna.serving.limits import Limits

pytestmark = [pytest.mark.slow, needs_chromium]
SECRET = "0123456789abcdef"
READY = "!document.querySelector('#findings').hidden && document.querySelector('#wait').hidden"
YELLOW, BLUE = (240, 228, 66), (86, 180, 233)
LIMITS = Limits()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def volumes(without_torch, tmp_path_factory):
    """A server of a network for volumes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", without_torch["PYTHONPATH"])
        with serving("zoo:hippocampus", tmp_path_factory.mktemp("volumes"), LIMITS) as client:
            yield client


def opened(browser, client, **options):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(f"http://127.0.0.1:{client.port}/", **options)


def clean(browser, client):
    """Nothing was told on the console, and nothing was asked of anybody else."""
    browser.settled()
    assert browser.errors == []
    own = (f"http://127.0.0.1:{client.port}/", "data:", "blob:")
    assert [one[:80] for one in browser.requests if not one.startswith(own)] == []


def near(browser, colour, part):
    """How many pixels of the stage are nearly of a colour, over a grey image with `part` of the overlay's weight."""
    box = browser.value("Object.values(document.querySelector('#canvas').getBoundingClientRect().toJSON()).slice(0, 4)")
    x, y, width, height = map(int, box)
    seen = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB")).astype(int)[
        y : y + height, x : x + width
    ]
    wanted = np.array(colour)
    if part == 1:
        return int((abs(seen - wanted).max(axis=-1) < 12).sum())
    grey = (seen - part * wanted) / (1 - part)
    return int(((np.ptp(grey, axis=-1) < 14) & (grey.min(axis=-1) > -14)).sum())


def downloaded(browser, folder, name):
    folder.mkdir()
    browser.keep_downloads(folder)
    browser.key("d")
    until = time.monotonic() + 20
    while not (folder / name).exists():
        assert time.monotonic() < until, [*folder.iterdir()]
        time.sleep(0.05)
    return (folder / name).read_bytes()


def discs(path):
    grid = np.mgrid[:64, :80]
    array = np.full((64, 80), 20.0)
    for y, x in ((20, 20), (40, 55)):
        array += 180 * np.exp(-((((grid[0] - y) ** 2 + (grid[1] - x) ** 2) / 90.0) ** 3))
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def test_a_picture_goes_in_and_its_mask_comes_out(browser, client, tmp_path):
    image = discs(tmp_path / "<b>discs<u>.png")
    opened(browser, client)
    browser.until("document.querySelector('#model').textContent.includes('2D')")
    browser.upload(image)
    browser.until(READY)
    assert (
        browser.text("#name") == "<b>discs<u>.png"
        and browser.value("document.querySelectorAll('#side b b').length") == 0
    )
    assert "px" in browser.text("#classes")
    for _ in range(2):
        browser.key("o")  # to 100 %
    assert browser.text("#opacity-value") == "100 %"
    shown = near(browser, YELLOW, 1)
    assert shown > 2000
    browser.key("l")  # outlines
    assert 100 < near(browser, YELLOW, 1) < shown / 3
    browser.key("l")
    browser.key("1")
    assert near(browser, YELLOW, 1) == 0
    assert browser.value("document.querySelector('#classes input').checked") is False
    browser.key("1")
    browser.key("m")
    assert near(browser, YELLOW, 1) == 0
    browser.key("m")
    assert near(browser, YELLOW, 1) == shown
    ulna.predict("zoo:nuclei", image, out=tmp_path / "masks")
    name = client.get(f"/jobs/{browser_job(browser)}")["file"]
    assert (
        downloaded(browser, tmp_path / "got", name)
        == (tmp_path / "masks" / image.with_suffix(".png").name).read_bytes()
    )
    browser.key("t")
    assert browser.value("document.documentElement.dataset.theme") == "dark"
    browser.key("?")
    assert "opacity" in browser.text("#help")
    clean(browser, client)


def browser_job(browser):
    return next(
        one.split("/jobs/")[1].split("/")[0] for one in browser.requests if "/jobs/" in one and one.endswith("/events")
    )


def test_a_file_that_fails_tells_why_and_another_may_follow(browser, client, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    (tmp_path / "cut.png").write_bytes(discs(tmp_path / "a.png").read_bytes()[:200])
    opened(browser, client)
    browser.until("document.querySelector('#model').textContent")
    browser.upload(tmp_path / "no.png", tmp_path / "cut.png")
    browser.until("document.querySelectorAll('#studies .failed').length === 2")
    told = browser.text("#studies")
    assert "bytes are those of no .png file" in told and "cut" in told and "/" not in told.replace("/no.png", "")
    browser.value("document.querySelectorAll('#studies .remove')[0].click()")
    browser.until("document.querySelectorAll('#studies li').length === 1")
    errors = [one for one in browser.errors if "415" not in one]  # the browser notes the refusal itself
    assert errors == []


def test_a_token_is_asked_for_and_kept_in_the_tab(browser, without_torch, tmp_path):
    (tmp_path / "served").mkdir()
    with serving("zoo:nuclei", tmp_path / "served", LIMITS, token=SECRET) as client:
        opened(browser, client, size=(390, 844))
        browser.until("!document.querySelector('#token').hidden")
        fill = "document.querySelector('#token-value').value = '%s'; document.querySelector('#token').requestSubmit()"
        browser.value(fill % "wrong-wrong-wrong-wrong")
        browser.until("document.querySelector('#token-error').textContent.includes('wrong')")
        browser.errors.clear()  # the browser notes the refusal itself
        browser.value(fill % SECRET)
        browser.until("document.querySelector('#token').hidden && document.querySelector('#model').textContent")
        browser.upload(discs(tmp_path / "a.png"))
        browser.until(READY)
        assert browser.value("document.documentElement.scrollWidth") <= 390
        assert browser.value("JSON.stringify([localStorage, sessionStorage, document.cookie])") == '[{},{},""]'
        assert SECRET not in "".join(browser.requests)
        clean(browser, client)


def tube():
    """Something bent and dark of which the network takes a part for a hippocampus."""
    share = np.linspace(0, 1, 60)
    line = np.stack([np.full(60, 17.0), 42 - 34 * share, 12 + 12 * share**1.5], 1)
    grid = np.mgrid[:34, :50, :36].astype(float)
    apart = np.min([((grid - point.reshape(3, 1, 1, 1)) ** 2).sum(0) for point in line], axis=0)
    values = 110 - 30 * np.exp(-((apart / 30) ** 3)) + np.random.default_rng(0).normal(0, 4, apart.shape)
    return np.clip(values, 0, None).astype(np.int16)


def test_a_volume_is_shown_in_planes_and_in_3d(browser, volumes, tmp_path):
    array = tube()
    image = tmp_path / "scan.nii.gz"
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(image)
    opened(browser, volumes)
    browser.until("document.querySelector('#model').textContent.includes('3D')")
    browser.upload(image)
    browser.until(READY)
    assert "Anterior" in browser.text("#classes") and "ml" in browser.text("#classes")
    half = [near(browser, colour, 0.5) for colour in (YELLOW, BLUE)]
    for number in (1, 2):
        browser.key(str(number))
    hidden = [near(browser, colour, 0.5) for colour in (YELLOW, BLUE)]
    assert sum(half) > sum(hidden) + 300, (half, hidden)
    for number in (1, 2):
        browser.key(str(number))
    before = browser.text("#place")
    browser.key("PageUp")
    browser.until(f"document.querySelector('#place').innerText !== {before!r}")
    browser.key("v")
    assert browser.value("document.querySelector('#layouts [aria-pressed=true]').textContent") == "Axial"
    ulna.predict("zoo:hippocampus", image, out=tmp_path / "masks")
    own = gzip.decompress((tmp_path / "masks" / "scan.nii.gz").read_bytes())
    assert gzip.decompress(downloaded(browser, tmp_path / "got", "scan.nii.gz")) == own
    clean(browser, volumes)


def test_a_zip_of_a_dicom_series_is_shown(browser, volumes, tmp_path):
    values = np.random.default_rng(0).integers(0, 400, (20, 24, 22)).astype(np.int16)
    write_series(tmp_path / "dicom", values)
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((tmp_path / "dicom").iterdir()):
            archive.write(file, file.name)
    opened(browser, volumes)
    browser.until("document.querySelector('#model').textContent")
    browser.upload(tmp_path / "study.zip")
    browser.until(READY)
    assert downloaded(browser, tmp_path / "got", "study.dcm")[128:132] == b"DICM"
    assert browser.value("document.querySelector('#window option:nth-child(2)').value")
    clean(browser, volumes)
