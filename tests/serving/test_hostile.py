"""Requests that mean harm: none crashes the server, fills memory or disk, or leaves a file."""

import contextlib
import gzip
import io
import json
import re
import socket
import stat
import struct
import threading
import time
import zipfile
import zlib

import nibabel
import numpy as np
import pytest

from tests.serving.servers import SMALL, png

HOST = b"Host: localhost\r\n"


def zipped(members, *, links=(), compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            if name in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, data)
    return file.getvalue()


def png_of(width, height):
    """A header that promises a picture, and next to nothing behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 5000))
        + chunk(b"IEND", b"")
    )


def npy_of(shape):
    """A header of an array, and no array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def tiff_of(side):
    """A directory that promises a picture in one strip, and ten bytes of it."""
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: 10}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 18) + bytes(10) + struct.pack("<H", len(tags)) + entries + bytes(4)


def nifti_of(side):
    """A header that promises a volume, and no volume."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((side,) * 3)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return gzip.compress(header.binaryblock + bytes(4))


@pytest.fixture(autouse=True)
def nothing_is_left(client):
    """After each: the server answers, and no file lies in its folder."""
    before = client.settled()
    yield
    assert client.settled() == before
    assert client.get("/health")["status"] == "ok"


REFUSED = {
    "unknown type": ("x.exe", b"MZ" + bytes(100), 415, "this kind of file is not read"),
    "no name": ("", png(), 400, "has no name"),
    "wrong bytes": ("x.png", b"GIF89a" + bytes(400), 415, "bytes are those of no .png"),
    "empty": ("x.png", b"", 400, "is empty"),
    "too large": ("x.nii", (348).to_bytes(4, "little") + bytes(SMALL.body), 413, "larger than"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_it_is_read(client, kind):
    name, data, status, said = REFUSED[kind]
    answer, told = client.send(name, data)
    assert (answer, said in told["error"]) == (status, True), told


TRAVERSAL = "has a member whose name leads out of it"
FAILED = {
    "zip with a link": ("a.zip", zipped([("a", b"/etc/passwd")], links=("a",)), "is a link"),
    "zip with absolute members": ("a.zip", zipped([("/tmp/escaped.dcm", b"x")]), TRAVERSAL),
    "zip that climbs": ("a.zip", zipped([("a/../../escaped.dcm", b"x")]), TRAVERSAL),
    "zip of Windows that climbs": ("a.zip", zipped([("..\\escaped.dcm", b"x")]), TRAVERSAL),
    "zip in a zip": ("a.zip", zipped([("b.zip", zipped([("c", b"x")]))]), "holds an archive in it"),
    "zip of many": ("a.zip", zipped([(f"{n}", b"x") for n in range(SMALL.members + 1)]), "of which 20 files are read"),
    "zip that grows": ("a.zip", zipped([("a", bytes(900_000))]), "more than 100 times its size"),
    "zip that grows too large": ("a.zip", zipped([("a", bytes(5_000_000))]), "unpacks to 5 MB"),
    "zip of nothing": ("a.zip", zipped([("a/", b"")]), "holds no file"),
    "zip of other files": ("a.zip", zipped([("a.txt", b"x")]), "holds no DICOM image"),
    "zip cut short": ("a.zip", zipped([("a", b"x" * 100)])[:-30], "is cut short"),
    "zip packed otherwise": ("a.zip", zipped([("a", b"x" * 99)], compression=zipfile.ZIP_LZMA), "not read here"),
    "picture bomb": ("a.png", png_of(50_000, 50_000), "declares 50000 x 50000 pixels"),
    "scan bomb": ("a.tif", tiff_of(60_000), "pixels"),
    "volume bomb": ("a.nii.gz", nifti_of(30_000), "declares 30000 x 30000 x 30000 pixels"),
    "array bomb": ("a.npy", npy_of((60_000, 60_000)), "60000"),
    "truncated picture": ("a.png", png()[:300], "cut short"),
    "truncated volume": ("a.nii.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3\0\0\0", "a.nii.gz"),
    "no form of its own": ("../../../etc/passwd.nii", (348).to_bytes(4, "little") + bytes(400), ""),
}


@pytest.mark.parametrize("kind", FAILED)
def test_ends_in_one_sentence(client, kind, tmp_path):
    name, data, said = FAILED[kind]
    status, told = client.send(name, data)
    assert status == 200, told
    job = client.ended(told["id"])
    client.ask("DELETE", f"/jobs/{told['id']}")
    assert job["state"] == "failed"
    assert said.replace("a.nii.gz", "upload.nii.gz") in job["error"]
    assert "Traceback" not in job["error"] and str(client.folder) not in job["error"] and "passwd" not in job["error"]


def test_a_name_that_is_a_path_is_none(client):
    status, told = client.send("..%2F..%2F../x.png", png())
    assert status == 200
    assert client.ended(told["id"])["file"] == "x.png"
    status, headers, _ = client.ask("GET", f"/jobs/{told['id']}/mask")
    assert (status, headers["content-disposition"]) == (200, 'attachment; filename="x.png"')
    client.ask("DELETE", f"/jobs/{told['id']}")


def test_slow_headers_are_not_waited_for(client):
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + HOST)
        with pytest.raises(ConnectionError):  # dripping does not help
            while True:
                connection.sendall(b"A: b\r\n")
                time.sleep(0.1)
    assert time.monotonic() - began < 8


def test_slow_bodies_are_not_waited_for(client):
    head = b"POST /jobs HTTP/1.1\r\n" + HOST + b"X-File-Name: a.png\r\nContent-Length: 300000\r\n\r\n"
    assert b" 408 " in client.raw(head + png()[:50])  # silent after that
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(head + png()[:50])
        said = b""
        connection.settimeout(0.1)
        for _ in range(60):  # drips
            try:
                connection.sendall(b"x")
                said += connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
            if said:
                break
        assert b" 408 " in said


def test_endless_chunks_are_cut(client):
    head = b"POST /jobs HTTP/1.1\r\n" + HOST + b"X-File-Name: a.nii\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + (348).to_bytes(4, "little") + bytes(0x10000 - 4) + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(head)
        said = b""
        try:
            while sent < 200_000_000:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            said = connection.recv(65536)
    assert sent < 200_000_000  # it was cut
    assert said == b"" or b" 413 " in said


def test_a_body_shorter_than_it_says_is_no_job(client):
    head = b"POST /jobs HTTP/1.1\r\n" + HOST + b"X-File-Name: a.png\r\nContent-Length: 5000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(head + png()[:100])
        connection.shutdown(socket.SHUT_WR)
    assert client.settled() == []


def test_a_body_longer_than_it_says_is_the_next_request(client):
    head = b"POST /jobs HTTP/1.1\r\n" + HOST + b"X-File-Name: a.png\r\nContent-Length: 10\r\n\r\n"
    said = client.raw(head + png())
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"400"]  # ten bytes of a picture, and nonsense


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::"])
def test_other_hosts_are_refused(client, host):
    assert client.ask("GET", "/health", headers={"Host": host})[0] == 421


def test_two_hosts_are_refused(client):
    assert b" 400 " in client.raw(b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"Connection: close\r\n\r\n")
    assert b" 400 " in client.raw(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://"])
def test_pages_of_others_are_refused(client, origin):
    status, told = client.send("x.png", png(), Origin=origin)
    assert (status, "other sites" in told["error"]) == (403, True)


def test_its_own_page_may_ask(client):
    own = {"Origin": f"http://127.0.0.1:{client.port}"}
    assert client.ask("GET", "/health", headers=own)[0] == 200


def test_wrong_content_types(client):
    for kind in ("application/json", "text/html", "multipart/mixed; boundary=a", "application/x-www-form-urlencoded"):
        assert client.send("x.png", png(), **{"Content-Type": kind})[0] == 415
    assert client.send("x.png", png(), **{"Content-Type": "multipart/form-data"})[0] == 400


def test_oversized_json_is_not_read(client):
    body = json.dumps([0] * 200_000)
    status, told = client.send("x.png", body, **{"Content-Type": "application/json"})
    assert (status, "the body is no file" in told["error"]) == (415, True)


def test_header_bombs(client):
    many = b"".join(b"A%d: b\r\n" % n for n in range(5000))
    for headers in (many, b"A: " + b"b" * 100_000 + b"\r\n"):
        said = client.raw(b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n" + headers + b"\r\n")
        assert said == b"" or said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    said = client.raw(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert said == b"" or said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


def test_method_confusion(client):
    for method in ("PUT", "PATCH", "TRACE", "OPTIONS", "CONNECT", "BREW"):
        assert client.ask(method, "/jobs")[0] in (400, 404, 405)
    overridden = {"X-HTTP-Method-Override": "DELETE", "X-File-Name": "x.png"}
    assert client.ask("GET", "/jobs", headers=overridden)[0] == 405
    assert b" 400 " in client.raw(b"\x16\x03\x01\x02\x00\x01\x00 nonsense\r\n\r\n")


def test_smuggled_lengths_are_refused(client):
    both = b"POST /jobs HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n"
    assert b" 400 " in client.raw(both)


@pytest.mark.parametrize(
    "path", ["/jobs/../../etc/passwd", "/jobs/%2e%2e%2f%2e%2e%2fetc", "/jobs/x/mask", "/jobs/a%00b"]
)
def test_ids_that_are_paths_find_nothing(client, path):
    assert client.ask("GET", path)[0] == 404


def test_forms(client):
    def form(*parts, end=b"--b--\r\n"):
        text = b"".join(b"--b\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
        return text + end

    file = b'Content-Disposition: form-data; name="file"; filename="C:\\x\\y.png"'
    other = b'Content-Disposition: form-data; name="note"'
    header = {"Content-Type": "multipart/form-data; boundary=b"}
    sound, told = client.send("", form((other, b"hello"), (file, png())), **header)
    assert sound == 200
    assert client.ended(told["id"])["file"] == "y.png"
    client.ask("DELETE", f"/jobs/{told['id']}")
    wrong = {
        "several files": form((file, png()), (file, png())),
        "no file": form((other, b"x")),
        "large field": form((other, b"x" * 70_000), (file, png())),
        "cut short": form((file, png()), end=b""),
        "too long": form((b"A: " + b"b" * 5000, b""), (file, png())),
        "more than": form(*[(other, b"x")] * 20),
        "damaged": b"nonsense",
    }
    for said, body in wrong.items():
        status, told = client.send("", body, **header)
        assert (status, said in told["error"]) == (400, True) or (said == "too long" and status == 400), told


def test_concurrent_cancels(client):
    """Jobs are removed by several at once while they wait and while they are computed."""
    ids = [client.send(f"{n}.png", png((100, 100), n))[1]["id"] for n in range(6)]
    answers = []

    def cancel():
        answers.extend(client.ask("DELETE", f"/jobs/{id}")[0] for id in ids)

    threads = [threading.Thread(target=cancel) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [204] * 6 + [404] * 18


def test_nobody_who_reads_nothing_is_waited_for(client):
    """A client that asks again and again, and takes no answer."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = (b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * 200
        with pytest.raises(ConnectionError):
            for _ in range(60):
                connection.sendall(ask)
                time.sleep(0.05)


def test_many_idle_connections_do_not_shut_others_out_for_long(client):
    """More than may be open at a time: they are told so, or closed when their headers do not come."""
    idle = [socket.create_connection(("127.0.0.1", client.port), timeout=5) for _ in range(3 * SMALL.connections)]
    until = time.monotonic() + 10
    answered = False
    while not answered and time.monotonic() < until:
        try:
            answered = client.ask("GET", "/health")[0] == 200
        except OSError:
            time.sleep(0.05)
    for connection in idle:
        connection.close()
    assert answered
