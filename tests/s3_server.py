"""An S3 server on this machine: moto's, made as strict as the services are where it is laxer.

Left to itself moto looks at a write's condition before it writes, not as it writes, so that two who race both
win, and it doesn't hold what it gets to Content-MD5. Both are added here. What is still missing against S3: a
condition If-Match at the end of an upload in parts, and signatures, which are not looked at.

    python tests/s3_server.py PORT
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("S3_UPLOAD_PART_MIN_SIZE", "1")  # read when moto is imported: tests use small parts

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

BAD_DIGEST = b"<?xml version='1.0'?><Error><Code>BadDigest</Code><Message>not what was sent</Message></Error>"


class Strict:
    """moto's application, one write at a time."""

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._writing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        stated = environ.get("HTTP_CONTENT_MD5")
        if stated and base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode() != stated:
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [BAD_DIGEST]
        environ["wsgi.input"] = io.BytesIO(body)
        with self._writing:
            return list(self._application(environ, start_response))


class Quiet(WSGIRequestHandler):
    """Keeps connections open, as the services do, and says nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Strict(), threaded=True, request_handler=Quiet)
