"""The page of a server: open to all without a token, while everything with data wants it; and what it is given to show."""

import io
import json

import numpy as np
from PIL import Image

from tests.serving.servers import png, serving
from ulna.viewer.page import page_paths

SECRET = "0123456789abcdef"


def test_the_page_is_answered_with_its_policy(client):
    for path in page_paths():
        status, headers, body = client.ask("GET", path)
        assert (status, headers["x-content-type-options"]) == (200, "nosniff") and body
        if not path.endswith(".json"):
            assert "default-src 'none'" in headers["content-security-policy"]
            status, _, body = client.ask("GET", path, headers={"If-None-Match": headers["etag"]})
            assert (status, body) == (304, b"")
    assert b"<title>ulna" in client.ask("GET", "/")[2]
    assert not {"/", "/page/main.js"} & set(client.get("/openapi.json")["paths"])
    for path in ("/page/niivue.txt", "/page/../serve.py", "/page/index.html", "/page/", "//"):
        assert client.ask("GET", path)[0] == 404, path


def test_the_page_needs_no_token_and_everything_with_data_does(without_torch, tmp_path):
    with serving("zoo:nuclei", tmp_path, token=SECRET) as client:
        for path in page_paths():
            assert client.ask("GET", path)[0] == 200
        assert client.get("/page/about.json")["token"] is True
        data = (
            "/model",
            "/jobs/x",
            "/jobs/x/mask",
            "/jobs/x/view/shown",
            "/jobs/x/events",
            "/page",
            "/page/",
            "/page/main.js/",
            "//",
        )
        for path in data:
            assert client.ask("GET", path)[0] == 401, path
        assert client.send("a.png", png())[0] == 401
        assert client.ask("GET", "/", headers={"Host": "evil.example"})[0] == 421
        assert client.ask("GET", "/", headers={"Origin": "http://evil.example"})[0] == 403


def test_a_picture_has_views_that_every_browser_shows(client):
    told = client.ended(client.send("a.png", png())[1]["id"])
    assert told["view"]["dims"] == 2 and told["view"]["values"] == [[], [0]]
    mask = np.asarray(Image.open(io.BytesIO(client.ask("GET", f"/jobs/{told['id']}/mask")[2])))
    for what in ("shown", "overlay", "image", "mask"):
        status, headers, body = client.ask("GET", f"/jobs/{told['id']}/view/{what}")
        assert (status, headers["content-type"]) == (200, "image/png")
        assert headers["content-disposition"] == f'attachment; filename="a_{what}.png"'
        found = np.asarray(Image.open(io.BytesIO(body)))
        if what in ("overlay", "mask"):
            assert np.array_equal(found, mask != 0)
    assert client.ask("GET", f"/jobs/{told['id']}/view/other")[0] == 400
    client.ask("DELETE", f"/jobs/{told['id']}")


def test_what_is_told_of_a_job_is_text(client):
    """A name that is markup is no part of what is told, and types cannot be guessed otherwise."""
    status, told = client.send("%3Cimg%20src=x%20onerror=alert(1)%3E.png", png())
    assert status == 200
    told = client.ended(told["id"])
    assert "<" not in json.dumps(told)
    client.ask("DELETE", f"/jobs/{told['id']}")
