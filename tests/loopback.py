"""Servers on loopback for the tests: HTTP, with TLS where it is asked for, and a proxy to them.

A stand-in derives its handler from `Handler`, and is served by `loopback`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

Server = TypeVar("Server", bound=ThreadingHTTPServer)


class Handler(BaseHTTPRequestHandler):
    """Takes and gives JSON, and says nothing on standard error."""

    def body(self) -> bytes:
        """What the client has sent."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def json_body(self) -> Any:
        """What it has sent, read as JSON; None if that is nothing."""
        content = self.body()
        return json.loads(content) if content else None

    def respond(self, status: int, content: Any, *, text_type: str = "text/plain") -> None:
        """Send a text as it is, and anything else as JSON."""
        is_text = isinstance(content, str)
        data = (content if is_text else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", text_type if is_text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def http_server(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server on a free port of 127.0.0.1, not serving yet."""
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)


@contextlib.contextmanager
def loopback(server: Server, *, tls: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """Serve until the block ends, each connection in a thread; over TLS if given certificate and key."""
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        # The handshake is the connection's thread's, so that a client that fails at it stops no other one.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def certificate(host: str, key: rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    """Key and self-signed certificate of a host, PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem_key, made.public_bytes(serialization.Encoding.PEM)


@contextlib.contextmanager
def connect_proxy(places: Mapping[str, str]) -> Iterator[str]:
    """Serve HTTP's CONNECT on loopback for the hosts in `places`, and no others; yields its URL."""

    class Connecting(Handler):
        def do_CONNECT(self) -> None:
            if self.path not in places:
                self.send_error(403)
                return
            address, _, port = places[self.path].partition(":")
            with socket.create_connection((address, int(port))) as far:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_pump, args=(far, self.connection), daemon=True)
                back.start()
                _pump(self.connection, far)
                back.join()
            self.close_connection = True

    with loopback(http_server(Connecting)) as proxy:
        yield f"http://127.0.0.1:{proxy.server_port}"


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
