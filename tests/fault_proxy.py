"""An HTTP proxy between a client and a server on this machine that damages the answers it is told to."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from urllib.parse import urlsplit

from loopback import Handler, loopback

PIECES = 8
CONDITIONS = ("if-match", "if-none-match")


@dataclass
class Fault:
    """What happens to requests that match, and how often.

    Attributes:
        kind: an HTTP status; `reset` or `truncated` (the connection breaks, or ends, in the middle of the
            body), `short` (half the body, with a length that fits), `flipped` (one byte is another), `lost`
            (the server has answered, the client hears nothing), `slow` (the body comes in pieces), `spoilt`
            (one byte of what is sent is another), `unconditional` (the server is not told of conditions).
        pattern: regular expression found in "METHOD /path?query".
        times: how many requests; once these have passed, answers are left alone.
    """

    kind: str
    pattern: str
    times: int = 1
    seen: int = 0


class FaultProxy(ThreadingHTTPServer):
    """Passes requests on to `upstream`; `faults` can be changed at any time, `requests` says what passed."""

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._lock = threading.Lock()

    def add(self, kind: str, pattern: str, times: int = 1) -> Fault:
        """Damage the next answers to requests that match."""
        self.faults.append(Fault(kind, pattern, times))
        return self.faults[-1]

    def note(self, line: str, headers: dict[str, str]) -> str:
        """Remember a request; the kind of fault that befalls it, or ""."""
        with self._lock:
            self.requests.append((line, headers))
            for fault in self.faults:
                if fault.seen < fault.times and re.search(fault.pattern, line):
                    fault.seen += 1
                    return fault.kind
        return ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def handle_any(self) -> None:
        line = f"{self.command} {self.path}"
        kind = self.server.note(line, dict(self.headers))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind.isdigit():
            error = {"error": {"code": int(kind), "message": f"fault {kind}"}}
            self.answer(int(kind), [("Retry-After", "1")], json.dumps(error).encode())
            return
        if kind == "spoilt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        status, headers, data = self.forward(body, CONDITIONS if kind == "unconditional" else ())
        half = len(data) // 2
        if kind == "lost":
            self.reset()
        elif kind in ("reset", "truncated"):
            self.answer(status, headers, data, sent=data[:half])
            self.close_connection = True
            if kind == "reset":
                self.reset()
        elif kind == "short":
            self.answer(status, headers, data[:half])
        elif kind == "flipped":
            self.answer(status, headers, data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
        elif kind == "slow":
            self.answer(status, headers, data, sent=b"")
            for start in range(0, len(data), -(-len(data) // PIECES)):
                self.wfile.write(data[start : start - (-len(data) // PIECES)])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.answer(status, headers, data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any  # noqa: N815

    def forward(self, body: bytes, without: Iterable[str]) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer; URLs in it that name the server name the proxy instead."""
        dropped = {"connection", "expect", *without}
        upstream = urlsplit(self.server.upstream)
        with contextlib.closing(http.client.HTTPConnection(upstream.netloc, timeout=60)) as connection:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            data = response.read()
            kept = [(k, v.replace(self.server.upstream, self.server.url)) for k, v in response.getheaders()]
            if "json" in (response.getheader("Content-Type") or ""):
                data = data.replace(self.server.upstream.encode(), self.server.url.encode())
            return response.status, kept, data

    def answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, sent: bytes | None = None
    ) -> None:
        self.send_response_only(status)
        dropped = {"transfer-encoding", "connection"} | (
            {"content-length"} if self.command != "HEAD" else set()
        )
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if sent is None else sent)
        self.wfile.flush()

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy that runs while the block does."""
    with loopback(FaultProxy(upstream)) as proxy:
        yield proxy
