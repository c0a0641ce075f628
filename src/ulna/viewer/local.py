"""A server of one page for one person: this machine alone, below a path that nobody guesses, with a fixed set of answers."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ulna.errors import UsageError
from ulna.viewer.headers import POLICY, SAFE
from ulna.viewer.page import ABOUT, Served, about_body, page_files, read_page

HOST = "127.0.0.1"
PATIENCE_S = 20  # for a client that neither asks nor takes
Answer = Callable[[], Served]


class LocalServer(ThreadingHTTPServer):
    """Answers below a random path, and nothing else.

    Args:
        files: path -> what is answered, beside the page.
        port: 0 for any that is free.

    Attributes:
        address: to be opened.

    Raises:
        UsageError: if the port is not free.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, files: Mapping[str, Answer], port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise UsageError(f"--port {port}: is no port; choose one from 1 to 65535, or 0 for any that is free")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"--port {port}: cannot be listened to ({why}); choose another --port") from None
        secret = secrets.token_urlsafe(18)
        own = self.server_address[1]
        self.address = f"http://{HOST}:{own}/{secret}/"
        self.hosts = frozenset((f"{HOST}:{own}", f"localhost:{own}"))
        page: dict[str, Answer] = {path: _page_file(path) for path in page_files()}
        page[ABOUT] = lambda: Served(about_body("view"), {"Content-Type": "application/json"})
        self.answers = {f"/{secret}{path}": answer for path, answer in {**page, **files}.items()}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error; of all else the traceback is printed."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def _page_file(path: str) -> Answer:
    return lambda: read_page(path)


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server is not known under that name", with_body)
            return
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{hosts[0].lower()}":
            self._refuse(HTTPStatus.FORBIDDEN, "pages of other sites may not ask this server", with_body)
            return
        answer = self.server.answers.get(self.path)
        if answer is None:
            self._refuse(
                HTTPStatus.NOT_FOUND, "there is nothing here; open the address that ulna view printed", with_body
            )
            return
        try:
            found = answer()
        except FileNotFoundError:
            self._refuse(HTTPStatus.NOT_FOUND, "the file is no longer where it was", with_body)
            return
        except OSError as error:
            why = error.strerror or type(error).__name__
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the file cannot be read ({why})", with_body)
            return
        tag = found.headers.get("ETag")
        known = tag is not None and self.headers.get("If-None-Match") == tag
        self._send(HTTPStatus.NOT_MODIFIED if known else HTTPStatus.OK, found, with_body=with_body and not known)

    def _refuse(self, status: HTTPStatus, text: str, with_body: bool) -> None:
        self._send(
            status, Served(f"{text}\n".encode(), {"Content-Type": "text/plain; charset=utf-8"}), with_body=with_body
        )

    def _send(self, status: HTTPStatus, served: Served, *, with_body: bool) -> None:
        self.send_response(status)
        safe = {name.decode(): value.decode() for name, value in SAFE}
        headers = {**safe, "content-security-policy": POLICY, **{name.lower(): v for name, v in served.headers.items()}}
        if status != HTTPStatus.NOT_MODIFIED:
            headers["content-length"] = str(len(served.body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(served.body)

    def version_string(self) -> str:
        return "ulna"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing of a file is logged."""
