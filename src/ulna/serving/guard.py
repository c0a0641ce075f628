"""Who may ask: the Host, the Origin and the token of every request, before anything else of it is looked at."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ulna.serving.limits import Limits, Refused
from ulna.serving.metrics import Metrics
from ulna.viewer.headers import SAFE

LOOPBACK = ("127.0.0.1", "::1", "localhost")
OPEN = ("/health",)  # told without a token: whether it runs, and nothing else
Send = Callable[[Any], Awaitable[None]]


class Guard:
    """Lets requests to an ASGI application pass that may, and answers the others itself.

    Args:
        app: what is guarded.
        names: hosts under which the server may be reached.
        token: that requests must bring; None on a loopback address.
        metrics: count the answers.
        most: bytes of the address and all headers.
        public: paths that need no token, such as those of a page that asks for it.
    """

    def __init__(
        self,
        app: Any,
        names: Iterable[str],
        token: str | None,
        metrics: Metrics,
        most: int = Limits().header_bytes,
        public: Iterable[str] = (),
    ) -> None:
        self.app, self.token, self.metrics, self.most = app, token, metrics, most
        self.names = frozenset(name.lower() for name in names)
        self.public = frozenset((*OPEN, *public))

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(int(message["status"]))
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in SAFE if one[0] not in present)]
            await send(message)

        try:
            self._check(scope)
        except Refused as refused:
            await answer(refused, sent)
            return
        await self.app(scope, receive, sent)

    def _check(self, scope: Any) -> None:
        fields = sum(len(name) + len(value) for name, value in scope["headers"])
        if fields + len(scope["raw_path"]) + len(scope["query_string"]) > self.most:
            raise Refused(431, f"the request has more than {self.most} bytes of headers")
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        host = _only(headers, b"host")
        if host_name(host) not in self.names:
            raise Refused(421, "this server is not known under that name; ask for it as `ulna serve --name` says")
        origin = _only(headers, b"origin") if b"origin" in headers else None
        if origin is not None and not _same(origin, host):
            raise Refused(403, "pages of other sites may not ask this server")
        if self.token is not None and scope["path"] not in self.public:
            given = _only(headers, b"authorization") if b"authorization" in headers else ""
            if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {self.token}".encode()):
                raise Refused(401, "a token is needed; send the header `Authorization: Bearer TOKEN`")


async def answer(refused: Refused, send: Send) -> None:
    """The answer to a request that is not carried out; what still comes of its body is thrown away (`protocol_of`)."""
    body = json.dumps({"error": refused.text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in extra_headers(refused).items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def extra_headers(refused: Refused) -> Mapping[str, str]:
    """Headers that belong to a status."""
    found = {"Retry-After": str(refused.retry_s)} if refused.retry_s else {}
    return found | ({"WWW-Authenticate": "Bearer"} if refused.status == 401 else {})


def host_name(host: str) -> str:
    """The name in a Host header, without its port; empty where it is none.

    Example:
        >>> host_name("LOCALHOST:8000"), host_name("[::1]:80"), host_name("a.b:x")
        ('localhost', '::1', '')
    """
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # refuses what is no number
    except ValueError:
        return ""
    return (parts.hostname or "").lower() if parts.netloc == host and "@" not in host else ""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_everywhere(host: str) -> bool:
    """Whether an address stands for all of this machine's."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def _only(headers: Mapping[bytes, list[bytes]], name: bytes) -> str:
    """A header that must be there once."""
    values = headers.get(name, [])
    if len(values) != 1:
        raise Refused(400, f"the request has {len(values)} headers {name.decode()}; send one")
    return values[0].decode("latin-1")


def _same(origin: str, host: str) -> bool:
    """Whether a page of an origin is one of this server's own."""
    scheme, separator, place = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and place.lower() == host.lower()
