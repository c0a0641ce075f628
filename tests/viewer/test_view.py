"""`ulna view`: which masks lie on an image, what their classes are called, and who gets an answer."""

import gc
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import weakref
import webbrowser
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import ulna
from tests.dicom_series import write_series
from tests.places import ROOT
from ulna.cli import main as cli
from ulna.data.formats.dicom.about import About
from ulna.data.formats.write import write_labels
from ulna.errors import UsageError
from ulna.system.outputs import file_digest
from ulna.viewer import view
from ulna.viewer.hand import lay_mask, read_at_hand
from ulna.viewer.local import LocalServer
from ulna.viewer.view import _showing


def nifti(path, array, affine=None):
    nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine).to_filename(path)
    return path


def volume_and_mask(folder):
    image = nifti(folder / "scan.nii.gz", np.random.default_rng(0).integers(0, 99, (6, 7, 8)).astype(np.int16))
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[1:4, 2:6, 3:5] = 1
    mask[0, 0, 0] = 3
    return image, mask


def picture(path, array):
    Image.fromarray(array).save(path)
    return path


def test_a_mask_of_another_order_of_voxels_is_turned(tmp_path):
    path, mask = volume_and_mask(tmp_path)
    affine = np.array([[0, -1.0, 0, 5], [1.0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])  # stored columns first, mirrored
    turned = np.ascontiguousarray(mask.transpose(1, 0, 2)[:, ::-1])
    laid = lay_mask(nifti(tmp_path / "m.nii.gz", turned, affine), read_at_hand(path))
    assert np.array_equal(laid.mask, np.where(mask == 3, 2, mask))
    assert laid.labels.foreground == ("1", "3")
    assert laid.trust["unit"] == "ml"
    assert laid.trust["structures"]["1"]["volume"] == pytest.approx(3 * 4 * 2 * 2 / 1000)


def test_a_mask_whose_file_does_not_say_how_it_lies_is_never_turned(tmp_path):
    """Without codes a file is taken to run to the left: turned by that, it would lie on the wrong side of the body."""
    path, mask = volume_and_mask(tmp_path)
    centred = np.diag([1.0, 1.0, 2.0, 1.0])
    centred[:3, 3] = -2.5, -3.0, -7.0  # where the place that is assumed lies on the voxels of the image, mirrored
    array = np.random.default_rng(0).integers(0, 99, mask.shape).astype(np.int16)
    image = read_at_hand(nifti(path, array, centred))
    plain = nibabel.Nifti1Image(mask, None)
    plain.header.set_zooms((1.0, 1.0, 2.0))
    plain.header.set_sform(None, 0)
    plain.header.set_qform(None, 0)
    plain.to_filename(tmp_path / "m.nii.gz")
    with pytest.raises(UsageError, match="at another place"):
        lay_mask(tmp_path / "m.nii.gz", image)


def test_what_does_not_lie_on_the_image_is_refused_in_a_sentence(tmp_path):
    path, mask = volume_and_mask(tmp_path)
    image = read_at_hand(path)
    moved = np.diag([1.0, 1.0, 2.0, 1.0])
    moved[0, 3] = 0.4
    for other, affine, said in (
        (np.ones((9, 7, 8), np.uint8), None, r"it has 9 x 7 x 8 at .*, the image 6 x 7 x 8 at"),
        (mask, moved, "at another place"),
        (np.random.default_rng(1).normal(size=mask.shape).astype(np.float32), None, "is an image and no mask"),
        (-mask.astype(np.int16), None, "negative"),
        (
            np.arange(mask.size).reshape(mask.shape).astype(np.int16),
            None,
            "holds 335 values, and no mask more than 256 ",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            lay_mask(nifti(tmp_path / "other.nii.gz", other, affine), image)
    for name in ("a.npz", "a.zip"):
        (tmp_path / name).touch()
        with pytest.raises(UsageError, match=r"save it as \.npy|unpack it"):
            read_at_hand(tmp_path / name)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_whole_body_has_a_hundred_classes(tmp_path, pieces):
    """Each in one piece, as objects are, or in several."""
    mask = np.tile(np.kron(np.arange(1, 101).reshape(10, 10), np.ones((2, 2))), (1, pieces)).astype(np.uint8)
    mask = np.stack([np.zeros_like(mask), mask, mask], axis=-1)
    image = read_at_hand(nifti(tmp_path / "i.nii.gz", np.zeros(mask.shape, np.int16)))
    laid = lay_mask(nifti(tmp_path / "m.nii.gz", mask), image)
    assert laid.labels.foreground == tuple(map(str, range(1, 101))) and laid.objects is None
    assert np.array_equal(laid.mask, mask)


def test_grey_values_are_no_mask(tmp_path):
    image = picture(tmp_path / "i.png", np.random.default_rng(2).integers(0, 256, (30, 40), np.uint8))
    with pytest.raises(UsageError, match="and no mask more than 32 "):
        lay_mask(image, read_at_hand(image))


def test_colours_are_no_mask_and_numbered_objects_are(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (30, 40, 3), np.uint8)
    image = read_at_hand(picture(tmp_path / "i.png", pixels))
    with pytest.raises(UsageError, match="is an image and no mask"):
        lay_mask(tmp_path / "i.png", image)
    numbers = np.kron(np.arange(48).reshape(6, 8), np.ones((5, 5))).astype(np.uint8)
    laid = lay_mask(picture(tmp_path / "m.png", numbers), image)
    assert laid.labels.foreground == ("objects",) and np.array_equal(laid.objects, numbers)
    two = lay_mask(picture(tmp_path / "t.png", (numbers > 9).astype(np.uint8) * 255), image)
    assert two.labels.foreground == ("255",) and two.mask.max() == 1


@pytest.mark.slow
def test_names_and_trust_are_those_of_predict(tmp_path):
    path = tmp_path / "a.png"
    picture(path, np.random.default_rng(3).integers(0, 255, (40, 33), np.uint8))
    ulna.predict("zoo:nuclei", path, out=tmp_path / "masks")
    laid = lay_mask(tmp_path / "masks" / "a.png", read_at_hand(path))
    assert laid.labels.foreground == ("foreground",)
    facts = json.loads((tmp_path / "masks" / "predict.json").read_text())
    assert laid.trust == facts["cases"][0]["trust"]
    picture(tmp_path / "masks" / "a.png", np.full((40, 33), 7, np.uint8))  # no longer what was written
    other = lay_mask(tmp_path / "masks" / "a.png", read_at_hand(path))
    assert other.labels.foreground == ("7",) and "flags" not in other.trust


def seg_of_two(folder, names):
    """A series, a mask of two classes that do not touch, and the mask as a SEG."""
    write_series(folder / "ct", np.random.default_rng(4).integers(0, 400, (4, 12, 14)).astype(np.int16))
    image = read_at_hand(folder / "ct")
    mask = np.zeros(image.size, np.uint8)
    mask[2:5, 3:6, 1:3] = 1
    mask[8:, 3:6, 1:3] = 2
    return image, mask, write_labels(folder / "mask", mask, image, About(names, "unet", "0"))


def test_a_seg_names_its_structures(tmp_path):
    image, mask, seg = seg_of_two(tmp_path, ("liver", "<b>tumour</b>"))
    laid = lay_mask(seg, image)
    assert laid.labels.foreground == ("liver", "<b>tumour</b>")
    assert np.array_equal(laid.mask, np.stack([mask == 1, mask == 2]))


def test_segments_of_one_name_are_two(tmp_path):
    image, mask, seg = seg_of_two(tmp_path, ("Lesion", "Lesion"))
    laid = lay_mask(seg, image)
    assert laid.labels.foreground == ("1", "2")
    assert np.array_equal(laid.mask, np.stack([mask == 1, mask == 2]))


def test_a_seg_of_predict_has_the_classes_of_predict(tmp_path):
    image, mask, seg = seg_of_two(tmp_path, ("liver", "tumour"))
    row = {"case": "mask", "file": seg.name, "files": {seg.name: file_digest(seg)}, "trust": {"unit": "ml"}}
    facts = {"labels": {"names": ["background", "liver", "tumour"]}, "cases": [row]}
    (tmp_path / "predict.json").write_text(json.dumps(facts))
    laid = lay_mask(seg, image)
    assert laid.labels.names == ("background", "liver", "tumour")
    assert np.array_equal(laid.mask, mask)
    assert laid.trust == {"unit": "ml"}


@contextmanager
def answering(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    finally:
        connection.close()


def test_only_who_knows_the_path_gets_an_answer(tmp_path):
    path, mask = volume_and_mask(tmp_path)
    with _showing(path, nifti(tmp_path / "m.nii.gz", mask), 0) as server, answering(server):
        base = urllib.parse.urlsplit(server.address).path
        assert len(base) > 20
        case = json.loads(ask(server, f"{base}case.json")[2])
        assert (case["name"], case["file"], case["classes"]) == ("scan.nii.gz", "m.nii.gz", ["1", "3"])
        assert json.loads(ask(server, f"{base}page/about.json")[2])["mode"] == "view"
        status, headers, page = ask(server, base)
        assert status == 200 and b"<title>ulna" in page
        assert "default-src 'none'" in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"
        assert ask(server, base, If_None_Match=headers["etag"])[::2] == (304, b"")
        assert ask(server, base, "HEAD")[::2] == (200, b"")
        assert ask(server, f"{base}mask")[2] == (tmp_path / "m.nii.gz").read_bytes()
        assert ask(server, f"{base}view/shown")[2][:2] == b"\x1f\x8b"
        for wrong in (
            "/",
            "/case.json",
            "/page/main.js",
            f"{base}../case.json",
            f"{base}view/../../etc/passwd",
            f"{base}x",
        ):
            assert ask(server, wrong)[0] == 404, wrong
        for host in ("evil.example", f"evil.example:{server.server_address[1]}", "127.0.0.1"):
            assert ask(server, f"{base}case.json", Host=host)[0] == 421, host
        assert ask(server, f"{base}case.json", Origin="http://evil.example")[0] == 403
        assert ask(server, f"{base}case.json", "POST")[0] == 501
        assert b"evil" not in ask(server, "/evil<script>")[2]


def test_a_file_that_cannot_be_read_any_more_is_told(tmp_path):
    path, mask = volume_and_mask(tmp_path)
    file = nifti(tmp_path / "m.nii.gz", mask)
    with _showing(path, file, 0) as server, answering(server):
        base = urllib.parse.urlsplit(server.address).path
        file.unlink()
        assert ask(server, f"{base}mask")[::2] == (404, b"the file is no longer where it was\n")
        file.mkdir()
        status, _, body = ask(server, f"{base}mask")
        assert status == 500 and body.startswith(b"the file cannot be read (")


def test_an_error_of_our_own_is_printed_and_a_client_that_left_is_not(capfd):
    def fail():
        raise KeyError("of ours")

    with LocalServer({"/own": fail}) as server:
        with answering(server), pytest.raises(http.client.RemoteDisconnected):
            ask(server, f"{urllib.parse.urlsplit(server.address).path}own")
        for error in (BrokenPipeError, ConnectionResetError, TimeoutError):
            try:
                raise error
            except OSError:
                server.handle_error(None, ("127.0.0.1", 1))
    told = capfd.readouterr().err
    assert told.count("Traceback") == 1 and "of ours" in told


def test_an_image_alone_has_nothing_to_download(tmp_path):
    path, _ = volume_and_mask(tmp_path)
    with _showing(path, None, 0) as server, answering(server):
        base = urllib.parse.urlsplit(server.address).path
        assert json.loads(ask(server, f"{base}case.json")[2])["file"] is None
        assert ask(server, f"{base}mask")[0] == ask(server, f"{base}view/overlay")[0] == 404


def test_a_port_that_is_taken_is_told():
    with LocalServer({}) as taken:
        port = taken.server_address[1]
        with pytest.raises(UsageError, match=f"--port {port}: cannot be listened to"):
            LocalServer({}, port)
    with pytest.raises(UsageError, match="is no port"):
        LocalServer({}, 70000)


def test_what_the_command_line_refuses(tmp_path, capfd):
    path, mask = volume_and_mask(tmp_path)
    other = nifti(tmp_path / "m.nii.gz", mask, np.eye(4))
    for words, said in (
        ([str(tmp_path / "no.png")], "does not exist"),
        ([str(path), str(other), "--no-browser"], "does not lie on the image"),
        ([str(path), "--colour"], "--colour"),
    ):
        assert cli.run(["view", *words]) == 2
        told = capfd.readouterr().err
        assert said in told and "Traceback" not in told


def test_the_browser_is_given_a_page_of_our_own_while_the_server_answers(tmp_path, monkeypatch):
    """All users can read what a browser is started with; and a browser of a terminal does not return."""
    path, _ = volume_and_mask(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    served, opened, seen = threading.Event(), threading.Event(), {}

    def browse(address):
        seen["answering"] = served.wait(10)
        page = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
        seen.update(address=address, page=page, text=page.read_text(), mode=page.stat().st_mode & 0o777)
        opened.set()
        return True

    def serve(server):
        seen["server"] = server.address
        served.set()
        assert opened.wait(20)

    monkeypatch.setattr(webbrowser, "open", browse)
    monkeypatch.setattr(LocalServer, "serve_forever", serve)
    ulna.view(path)
    secret = urllib.parse.urlsplit(seen["server"]).path.strip("/")
    assert seen["answering"]
    assert seen["address"].startswith("file://") and secret not in seen["address"]
    assert seen["mode"] == 0o600 and f"url={seen['server']}" in seen["text"]
    assert not seen["page"].parent.exists()


def test_what_is_shown_is_held_in_memory_and_the_arrays_are_not(tmp_path, monkeypatch):
    path, mask = volume_and_mask(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    read = []

    def reading(path):
        volume = read_at_hand(path)
        read.append(weakref.ref(volume.array))
        return volume

    monkeypatch.setattr(view, "read_at_hand", reading)
    with _showing(path, nifti(tmp_path / "m.nii.gz", mask), 0):
        gc.collect()
        assert [one() for one in read] == [None]
        assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number, browser", [("SIGINT", False), ("SIGTERM", True), ("SIGHUP", False)])
def test_it_ends_with_a_signal_and_leaves_no_folder(tmp_path, number, browser):
    path, _ = volume_and_mask(tmp_path)
    (tmp_path / "tmp").mkdir()
    sent = getattr(signal, number)
    places = os.pathsep.join(map(str, (ROOT / "src", ROOT / "packages" / "runtime" / "src")))
    process = subprocess.Popen(
        [sys.executable, "-m", "ulna", "view", str(path), *(() if browser else ("--no-browser",))],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": places, "BROWSER": "true"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, sent, signal.SIG_DFL),
    )
    try:
        assert "showing scan.nii.gz at http://127.0.0.1:" in process.stderr.readline()
        until = time.monotonic() + 20
        while browser and not list((tmp_path / "tmp").glob("ulna-view-*/open.html")):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(sent)
        assert process.wait(20) == 128 + sent
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert not list((tmp_path / "tmp").glob("ulna-view-*"))
