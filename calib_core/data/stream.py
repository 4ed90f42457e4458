"""A stream of question files: what is new in it, each question once, whatever was late or sent again.

A file is known by its name and version, and by the hash of its content; a question by a hash of its
normalized text and options. So a file that arrives late is new, one that arrives again isn't, and what a
changed file repeats counts once. A question's fold is a hash of its text alone (`calib_core.data.folds`), so
it is the same in every run.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.data.questions import Question, answer_key, content_key, normalize_text, read_questions
from calib_core.data.rows import FILE_TYPES, OnBadRow
from calib_core.errors import DataFormatError, NotEnoughDataError
from calib_core.storage.files import read_json, sha256_file, sha256_json, write_json
from calib_core.storage.uris import fetch, list_files

HASH_BYTES = 16
SEEN_SCHEMA = pa.schema(
    [
        pa.field("question", pa.binary(HASH_BYTES), nullable=False),
        pa.field("text", pa.binary(HASH_BYTES), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
STREAM, TRAINED_ON = "stream", "trained_on"
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """A file of the stream that was read.

    Attributes:
        name: Its name below the stream's folder.
        version: What the storage calls its version.
        sha256: Hash of its content.
    """

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """How far a stream was read: its files, and hashes of every question that they held.

    Attributes:
        files: Every file read so far, the newest version of each name.
        seen: Hash of a question -> hash of its text, for every question read so far.
        trained_on: Hashes of the texts that the first champion was trained on elsewhere.
    """

    files: tuple[ReadFile, ...] = ()
    seen: Mapping[bytes, bytes] = field(default_factory=dict)
    trained_on: frozenset[bytes] = frozenset()

    @property
    def id(self) -> str:
        """Name made from the content, 16 hexadecimal digits; the same for the same files in any order."""
        files = sorted((file.name, file.version, file.sha256) for file in self.files)
        seen, trained_on = hashlib.sha256(), hashlib.sha256()
        for one in sorted(self.seen):
            seen.update(one)
        for one in sorted(self.trained_on):
            trained_on.update(one)
        return sha256_json([files, seen.hexdigest(), trained_on.hexdigest()])[:16]

    def write(self, folder: Path) -> None:
        """Write `snapshot.json` (the files) and `seen.parquet` (the hashes) into a folder."""
        rows = [(question, text, STREAM) for question, text in sorted(self.seen.items())]
        rows += [(text, text, TRAINED_ON) for text in sorted(self.trained_on)]
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        table = pa.table(
            dict(zip(SEEN_SCHEMA.names, map(list, columns), strict=True)),
            schema=SEEN_SCHEMA,
        )
        pq.write_table(table, folder / "seen.parquet", compression="zstd")
        write_json(
            folder / "snapshot.json",
            {"id": self.id, "n_questions": len(self.seen), "files": [asdict(file) for file in self.files]},
        )

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Read what `write` wrote.

        Raises:
            DataFormatError: the folder is no snapshot, or isn't as it was written.
        """
        record = read_json(folder / "snapshot.json")
        try:
            table = pq.read_table(folder / "seen.parquet", schema=SEEN_SCHEMA)
            files = tuple(ReadFile(**file) for file in record["files"])
        except (pa.ArrowException, OSError, TypeError, KeyError) as error:
            raise DataFormatError(
                f"{folder}: no readable snapshot ({type(error).__name__}: {error}); restore the folder"
            ) from None
        columns = [table.column(name).to_pylist() for name in SEEN_SCHEMA.names]
        seen, trained_on = {}, set()
        for question, text, source in zip(*columns, strict=True):
            if source == TRAINED_ON:
                trained_on.add(text)
            else:
                seen[question] = text
        snapshot = cls(files=files, seen=seen, trained_on=frozenset(trained_on))
        if snapshot.id != record["id"]:
            raise DataFormatError(f"{folder}: files and hashes don't belong together; restore the folder")
        return snapshot


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """What is new in a stream.

    Attributes:
        questions: Questions that no earlier snapshot holds, each once, in an order that doesn't depend on the
            files'.
        snapshot: How far the stream is read with them.
        counts: How many files are new, repeated and ignored; how many rows were repeated, contradicted, bad
            or of a text that the first champion was trained on.
    """

    questions: tuple[Question, ...]
    snapshot: Snapshot
    counts: dict[str, int]


def question_hash(question: Question) -> bytes:
    """Stable hash of a question: normalized text, and set of normalized options."""
    text, options = content_key(question)
    return _hash("\x1f".join((text, *options)))


def text_hash(question: Question) -> bytes:
    """Stable hash of a question's normalized text, whatever its options."""
    return _hash(normalize_text(question.question))


def read_fresh(
    stream: str | Path,
    before: Snapshot,
    *,
    preset: str = "auto",
    on_bad_row: OnBadRow = "refuse",
) -> Fresh:
    """Read the files of a stream that the last snapshot doesn't hold, and keep the questions that are new.

    A question that two new files answer differently is a bad row of both; one that an earlier snapshot holds
    is a repeat, whatever its answer says now.

    Args:
        stream: Folder or bucket prefix with files of questions, at any depth.
        before: The last snapshot; an empty one to begin with.
        preset: Column layout of the files.
        on_bad_row: "refuse" all of it if a row is bad, or "drop" bad rows and count them.

    Raises:
        DataFormatError: a file can't be read, or rows are bad.
        NotEnoughDataError: the stream holds no new question.
    """
    listed = list_files(stream)
    files = [file for file in listed if _is_data(file.uri)]
    if not files:
        raise NotEnoughDataError(
            f"{stream}: no files of questions in it; put files there that end in {', '.join(FILE_TYPES)}"
        )
    known = {(file.name, file.version) for file in before.files}
    hashes = {file.sha256 for file in before.files}
    counts: Counter[str] = Counter(files_ignored=len(listed) - len(files))
    read: dict[str, ReadFile] = {file.name: file for file in before.files}
    found: dict[bytes, list[tuple[Question, str]]] = defaultdict(list)
    for file in files:
        name = file.path or file.uri
        if (name, file.version) in known:
            continue
        local = fetch(file.uri)
        entry = ReadFile(name=name, version=file.version, sha256=sha256_file(local))
        read[name] = entry
        if entry.sha256 in hashes:
            counts["files_repeated"] += 1
            continue
        hashes.add(entry.sha256)
        counts["files_new"] += 1
        questions, report = _read(local, file.uri, preset, on_bad_row)
        counts["rows_repeated"] += report.n_duplicates
        counts["rows_bad"] += report.n_dropped
        for question in questions:
            found[question_hash(question)].append((question, file.uri))
    kept = _kept(found, before, on_bad_row, counts)
    if not kept:
        raise NotEnoughDataError(
            f"{stream}: no new questions since the last snapshot ({counts['files_new']} new files, "
            f"{counts['rows_repeated']} repeated rows); nothing was measured, run again when there are some"
        )
    seen = {**before.seen, **{key: text_hash(question) for key, question in kept.items()}}
    return Fresh(
        questions=_with_unique_ids(kept),
        snapshot=replace(before, files=tuple(read[name] for name in sorted(read)), seen=seen),
        counts={name: counts[name] for name in COUNTS},
    )


COUNTS = (
    *("files_new", "files_repeated", "files_ignored"),
    *("rows_repeated", "rows_contradicted", "rows_bad", "rows_trained_on"),
)
"""What `Fresh.counts` counts."""


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


def _is_data(uri: str) -> bool:
    path = PurePath(uri.lower())
    if path.name.startswith(("_", ".")):  # markers such as _SUCCESS, and files that are still being written
        return False
    stem = path.stem if path.suffix == ".gz" else path.name
    return PurePath(stem).suffix in FILE_TYPES and not path.name.endswith(".parquet.gz")


def _read(local: Path, uri: str, preset: str, on_bad_row: OnBadRow) -> tuple[list[Question], Any]:
    """A file's questions; errors name it as the user knows it, not by its copy on this machine."""
    try:
        return read_questions(local, preset=preset, on_bad_row=on_bad_row)
    except DataFormatError as error:
        raise DataFormatError(str(error).replace(str(local), uri)) from None


def _kept(
    found: Mapping[bytes, Sequence[tuple[Question, str]]],
    before: Snapshot,
    on_bad_row: OnBadRow,
    counts: Counter[str],
) -> dict[bytes, Question]:
    """The new questions by their hashes; what was left out is counted."""
    kept: dict[bytes, Question] = {}
    contradicted: list[Sequence[tuple[Question, str]]] = []
    for key in sorted(found):
        rows = found[key]
        question = rows[0][0]
        if key in before.seen:
            counts["rows_repeated"] += len(rows)
        elif text_hash(question) in before.trained_on:
            counts["rows_trained_on"] += len(rows)
        elif len({answer_key(row) for row, _ in rows}) > 1:
            counts["rows_contradicted"] += len(rows)
            contradicted.append(rows)
        else:
            counts["rows_repeated"] += len(rows) - 1
            kept[key] = question
    if contradicted and on_bad_row == "refuse":
        shown = [
            f"  {rows[0][0].question[:80]!r} in {' and '.join(f'{uri} (id {row.id!r})' for row, uri in rows)}"
            for rows in contradicted[:_SHOWN]
        ]
        raise DataFormatError(
            f"{len(contradicted)} questions have different answers in different files"
            + (f" (the first {len(shown)} shown)" if len(contradicted) > len(shown) else "")
            + ":\n"
            + "\n".join(shown)
            + "\nCorrect these files, or leave the questions out with on_bad_row='drop'."
        )
    return kept


def _with_unique_ids(kept: Mapping[bytes, Question]) -> tuple[Question, ...]:
    """The questions under their own ids; those that share one get a part of their hash behind it."""
    uses = Counter(question.id for question in kept.values())
    return tuple(
        question if uses[question.id] == 1 else replace(question, id=f"{question.id}-{key.hex()[:12]}")
        for key, question in kept.items()
    )


def hashes_of_texts(questions: Iterable[Question]) -> frozenset[bytes]:
    """Hashes of the texts of questions."""
    return frozenset(text_hash(question) for question in questions)
