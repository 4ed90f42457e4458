"""A file as its bytes say what it is: packed or not, Parquet or text, and its lines, within limits."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from calib_core.data.rows import NoRowsError, Problem
from calib_core.errors import DataFormatError, listed
from calib_core.storage.limits import FILE_BYTES, LINE_BYTES

FILE_TYPES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files that can be read; each also with .gz behind it. Content goes before the ending."""

HUB_PREFIX = "hf://"
PARQUET_MAGIC, GZIP_MAGIC, BOM = b"PAR1", b"\x1f\x8b", b"\xef\xbb\xbf"
_CHUNK_BYTES = 1024 * 1024
_HEAD_BYTES = 4096
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet); unpack it, or save it as CSV",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it, or pack it with gzip",
    b"BZh": "packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zXZ": "packed with xz; unpack it, or pack it with gzip",
    GZIP_MAGIC: "packed with gzip twice; unpack it once",
    b"\xff\xfe\0\0": "byte 0: this is UTF-32; save the file as UTF-8",
    b"\0\0\xfe\xff": "byte 0: this is UTF-32; save the file as UTF-8",
    b"\xff\xfe": "byte 0: this is UTF-16; save the file as UTF-8",
    b"\xfe\xff": "byte 0: this is UTF-16; save the file as UTF-8",
    b"ARROW1": "an Arrow file; save it as Parquet",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A local file that holds rows.

    Attributes:
        name: The file as the user knows it.
        path: Where it is on this machine.
        packed: Whether it is packed with gzip, whatever its name.
        kind: `parquet`, `json` (lines or a list), `csv` or `tsv`.
    """

    name: str
    path: Path
    packed: bool
    kind: str

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's unpacked bytes, to be read in pieces.

        Raises:
            DataFormatError: it can't be read, or is packed and damaged.
        """
        try:
            with self.path.open("rb") as raw:
                yield gzip.GzipFile(fileobj=raw) if self.packed else raw  # type: ignore[misc]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataFormatError(f"{self.name}: damaged gzip file ({error}); download it again") from None
        except OSError as error:
            raise DataFormatError(
                f"{self.name}: can't be read ({error.strerror or error}); give a readable file"
            ) from None

    def chunks(self) -> Iterator[bytes]:
        """The unpacked bytes in pieces of a megabyte, without a byte order mark.

        Raises:
            DataFormatError: as `open` says, or there are more bytes than the limit `file_bytes`.
        """
        size = 0
        with self.open() as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                size += len(chunk)
                FILE_BYTES.check(size, self.name)
                if size == len(chunk):
                    chunk = chunk.removeprefix(BOM)
                if chunk:
                    yield chunk

    def content(self) -> bytes:
        """All unpacked bytes; see `chunks`."""
        return b"".join(self.chunks())

    def lines(self) -> Iterator[tuple[int, str, Problem | None]]:
        """Number, text and fault of each line; one that isn't UTF-8 is shown with escapes, and as a problem.

        Lines end as they do on any system: with a line feed, a carriage return, or both.

        Raises:
            DataFormatError: as `chunks` says, or a line is longer than the limit `line_bytes`.
        """
        offset = 0
        for number, line in enumerate(self._lines(), start=1):
            try:
                yield number, line.decode().rstrip("\r\n"), None
            except UnicodeDecodeError as error:
                place = f"byte {offset + error.start} of the file (0x{line[error.start]:02x})"
                message = f"not UTF-8: {place}; save the file as UTF-8"
                yield (
                    number,
                    line.decode(errors="backslashreplace").rstrip("\r\n"),
                    Problem(number, "", message),
                )
            offset += len(line)

    def _lines(self) -> Iterator[bytes]:
        rest, number = b"", 1
        for chunk in self.chunks():
            lines = (rest + chunk).splitlines(keepends=True)
            # A last line that ends with "\r" may go on with "\n" in the next piece.
            rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
            LINE_BYTES.check(len(rest), f"{self.name}: line {number + len(lines)}")
            for line in lines:
                LINE_BYTES.check(len(line), f"{self.name}: line {number}")
                yield line
                number += 1
        if rest:
            yield rest


def open_source(name: str, path: Path) -> Source:
    """Find out what a file is.

    Args:
        name: The file as the user knows it: its name is part of every message, and its ending tells CSV from
            JSON where the content doesn't.
        path: Where it is on this machine.

    Raises:
        NoRowsError: the file is empty.
        DataFormatError: there is no such file, it is a folder, can't be read, or is of no type that is read.
    """
    if path.is_dir():
        raise DataFormatError(f"{name}: is a folder{_files_in(path)}; give a file")
    if not path.exists():
        raise DataFormatError(
            f"{name}: no such file; check the path (a hub data set is written {HUB_PREFIX}owner/name)"
        )
    head = _head(Source(name=name, path=path, packed=False, kind=""))
    if packed := head.startswith(GZIP_MAGIC):
        head = _head(Source(name=name, path=path, packed=True, kind=""))
    elif (
        PurePath(name).suffix.lower() == ".gz" and b"\0" in head
    ):  # a text is one that was unpacked on its way
        raise DataFormatError(f"{name}: damaged gzip file (it doesn't begin like one); download it again")
    return Source(name=name, path=path, packed=packed, kind=_kind(name, head))


def _head(source: Source) -> bytes:
    with source.open() as stream:
        return stream.read(_HEAD_BYTES)


def _kind(name: str, head: bytes) -> str:
    """What the content is, or else the name says."""
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise DataFormatError(f"{name}: {what}")
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    if head.count(0) * 3 > len(head):  # of letters that take two bytes or four, all but one are mostly 0
        raise DataFormatError(f"{name}: full of zero bytes, as UTF-16 has them; save the file as UTF-8")
    text = head.removeprefix(BOM).lstrip()
    path = PurePath(name)
    ending = (PurePath(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix).lower()
    if ending == ".parquet" and text:
        raise DataFormatError(
            f"{name}: not a readable Parquet file (it doesn't begin with PAR1); write it again"
        )
    if not text and len(head) < _HEAD_BYTES:
        raise NoRowsError(f"{name}: the file is empty; give a file with rows")
    if ending in FILE_TYPES:
        return {".jsonl": "json"}.get(ending, ending[1:])
    if text.startswith((b"{", b"[")):
        return "json"
    raise DataFormatError(
        f"{name}: unknown file type; give a file that ends in {', '.join(FILE_TYPES)} (also with .gz), or a "
        f"hub data set as {HUB_PREFIX}owner/name[/config][:split]"
    )


def _files_in(folder: Path) -> str:
    """The names of a folder's files, for a message."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return f" with {listed(names, 8)} in it" if names else " without files in it"
