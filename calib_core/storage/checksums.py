"""CRC32C, by which stores and manifests tell one content from another."""

from __future__ import annotations

import base64
from pathlib import Path


def crc32c(data: bytes) -> str:
    """CRC32C of bytes as the services write it: big-endian, base64.

    >>> crc32c(b"123456789")
    '4waSgw=='
    """
    import google_crc32c  # noqa: PLC0415 (comes with the extras gcs and s3)

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def crc32c_file(path: Path) -> str:
    """CRC32C of a file, as `crc32c`."""
    import google_crc32c  # noqa: PLC0415 (comes with the extras gcs and s3)

    checksum = google_crc32c.Checksum()
    with path.open("rb") as stream:
        for _ in checksum.consume(stream, 2**20):
            pass
    return base64.b64encode(checksum.digest()).decode()
