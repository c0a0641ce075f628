"""A headless Chromium, driven over a pipe by the DevTools protocol; what imports this skips where there is none."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
WAIT_S = 60.0
# its pipes are the descriptors 3 and 4
BEGIN = """
import fcntl, os, sys
reading, writing = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reading, 3)
os.dup2(writing, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page.

    Attributes:
        requests: addresses that it asked for.
        errors: what its console told as an error or a warning, exceptions, and refusals of its policy.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer, self._number, self._answers = b"", 0, {}
        self._session = None
        self.requests, self.errors = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """The answer to one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        number, until = self._number, time.monotonic() + WAIT_S
        while number not in self._answers:
            self._read(until)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self, until):
        assert select.select([self._reading], [], [], max(0.0, until - time.monotonic()))[0], "Chromium does not answer"
        data = os.read(self._reading, 1 << 20)
        assert data, "Chromium has ended"
        *messages, self._buffer = (self._buffer + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method, told):
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in told["args"]))

    def open(self, address, size=(1200, 800), *, dark=False, scale=1):
        """Go to an address."""
        mobile = size[0] < 500
        self.send(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=scale, mobile=mobile
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def value(self, code):
        """What an expression of the page is; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, code, seconds=WAIT_S):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not (found := self.value(code)):
            assert time.monotonic() < end, f"never: {code}; {self.errors}; {self.value('document.body.innerText')}"
            time.sleep(0.1)
        return found

    def text(self, selector):
        """The text that is seen of an element."""
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def upload(self, *paths):
        """Choose files as a person does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(Path(path).resolve()) for path in paths])

    def key(self, key):
        """Press a key and let it go."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self):
        """A PNG of what is seen."""
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def keep_downloads(self, folder):
        """Where what is downloaded is put."""
        session, self._session = self._session, None
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self._session = session

    def settled(self):
        """Take what the page still has to say."""
        self.value("new Promise((done) => setTimeout(done, 200))")


@contextmanager
def browsing(folder):
    """A browser with a profile of its own."""
    ours, theirs = os.pipe(), os.pipe()  # to it, from it
    profile = f"--user-data-dir={folder / 'profile'}"
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(ours[0]), str(theirs[1]), CHROMIUM, *FLAGS, profile, "about:blank"],
        pass_fds=(ours[0], theirs[1]),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder), "TZ": "UTC"},
    )
    os.close(ours[0])
    os.close(theirs[1])
    try:
        yield Browser(theirs[0], ours[1])
    finally:
        process.kill()
        process.wait()
        os.close(theirs[0])
        os.close(ours[1])
