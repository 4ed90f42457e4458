"""A stream of question files: what is new in it, each question once, whatever was late or sent again.

A file is known by its name and version, and by the hash of its content; a question by a hash of its exact
text and options. So a file that arrives late is new, one that arrives again isn't, and what a changed file
repeats counts once. A question's fold is a hash of its loose text, or of that of an earlier question that is
nearly the same (`calib_core.data.folds`), so it is the same in every run.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.data.folds import anchors_of, text_hash
from calib_core.data.questions import Question, answer_key, content_key, read_questions
from calib_core.data.rows import NoRowsError, OnBadRow
from calib_core.data.source import FILE_TYPES
from calib_core.errors import DataFormatError, NotEnoughDataError, short
from calib_core.storage.files import sha256_file, sha256_json, write_json
from calib_core.storage.records import read_record
from calib_core.storage.tables import as_declared
from calib_core.storage.uris import StoredFile, fetch, list_files

HASH_BYTES = 16
SEEN_SCHEMA = pa.schema(
    [
        pa.field("question", pa.binary(HASH_BYTES), nullable=False),
        pa.field("anchor", pa.binary(HASH_BYTES), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.int32(), nullable=False),
    ]
)
STREAM, TRAINED_ON = "stream", "trained_on"
FORMAT = 2
"""Of the snapshot; the first one held hashes alone, of texts without their case."""

_SHAPE = {"id": str, "files": [{"name": str, "version": str, "sha256": str}]}
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


@dataclass(frozen=True, slots=True)
class Known:
    """A question that was read earlier.

    Attributes:
        question: The question; its id is its hash.
        anchor: Hash of the text that decides its fold.
    """

    question: Question
    anchor: bytes


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """How far a stream was read: its files, and every question that they held.

    Attributes:
        files: Every file read so far, the newest version of each name.
        seen: Every question read so far, by its hash.
        trained_on: Questions that the first champion was trained on elsewhere, by their hashes.
    """

    files: tuple[ReadFile, ...] = ()
    seen: Mapping[bytes, Known] = field(default_factory=dict)
    trained_on: Mapping[bytes, Known] = field(default_factory=dict)

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
        """Write `snapshot.json` (the files) and `seen.parquet` (the questions) into a folder."""
        rows = [
            (
                key,
                known.anchor,
                source,
                known.question.question,
                known.question.choices,
                known.question.answer,
            )
            for source, part in ((STREAM, self.seen), (TRAINED_ON, self.trained_on))
            for key, known in sorted(part.items())
        ]
        columns = zip(*rows, strict=True) if rows else ((),) * len(SEEN_SCHEMA.names)
        table = pa.table(
            dict(zip(SEEN_SCHEMA.names, map(list, columns), strict=True)),
            schema=SEEN_SCHEMA,
        )
        pq.write_table(table, folder / "seen.parquet", compression="zstd")
        write_json(
            folder / "snapshot.json",
            {
                "format": FORMAT,
                "id": self.id,
                "n_questions": len(self.seen),
                "files": [asdict(file) for file in self.files],
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Read what `write` wrote.

        Raises:
            DataFormatError: the folder is no snapshot, or isn't as it was written.
        """
        record = read_record(folder / "snapshot.json", _SHAPE, advice="restore the folder")
        if record.get("format") != FORMAT:
            raise DataFormatError(
                f"{folder / 'snapshot.json'}: not of format {FORMAT}, so another version of this "
                "package wrote it; begin with another champion's folder"
            )
        parts: dict[str, dict[bytes, Known]] = {STREAM: {}, TRAINED_ON: {}}
        try:
            table = as_declared(pq.read_table(folder / "seen.parquet"), SEEN_SCHEMA)
            files = tuple(ReadFile(**file) for file in record["files"])
            for row in table.to_pylist():
                question = _by_hash(row["text"], row["choices"], row["answer"])
                parts[row["source"]][row["question"]] = Known(question, row["anchor"])
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError, DataFormatError) as error:
            raise DataFormatError(
                f"{folder}: no readable snapshot ({type(error).__name__}: {error}); restore the folder"
            ) from None
        snapshot = cls(files=files, seen=parts[STREAM], trained_on=parts[TRAINED_ON])
        changed = any(
            key != question_hash(known.question) for part in parts.values() for key, known in part.items()
        )
        if changed or snapshot.id != record.get("id"):
            raise DataFormatError(f"{folder}: files and hashes don't belong together; restore the folder")
        return snapshot


def known_questions(questions: Iterable[Question]) -> dict[bytes, Known]:
    """Questions by their hashes, each with its own text as its anchor."""
    return {
        question_hash(question): Known(
            _by_hash(question.question, question.choices, question.answer), text_hash(question)
        )
        for question in questions
    }


def _by_hash(text: str, choices: Sequence[str], answer: int) -> Question:
    """A question whose id is its hash."""
    question = Question(id="", question=text, choices=tuple(choices), answer=answer)
    return replace(question, id=question_hash(question).hex())


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """What is new in a stream.

    Attributes:
        questions: Questions that no earlier snapshot holds, each once, in an order that doesn't depend on the
            files'.
        anchors: Id -> the text hash that decides a question's fold.
        snapshot: How far the stream is read with them.
        counts: How many files are new, empty, repeated and ignored; how many rows were repeated,
        contradicted, bad or like one that the first champion was trained on; and how many of the new
        questions are nearly the same as another one.
    """

    questions: tuple[Question, ...]
    anchors: Mapping[str, bytes]
    snapshot: Snapshot
    counts: dict[str, int]


def question_hash(question: Question) -> bytes:
    """Stable hash of a question: exact text, and set of exact options."""
    text, options = content_key(question)
    return _hash("\x1f".join((text, *options)))


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
    counts: Counter[str] = Counter(files_ignored=len(listed) - len(files))
    read, found = _read_new(files, stream, before, counts, preset=preset, on_bad_row=on_bad_row)
    kept = _kept(found, before, on_bad_row, counts)
    anchors = _anchors(kept, before, counts)
    kept = {key: question for key, question in kept.items() if key in anchors}
    if not kept:
        raise NotEnoughDataError(
            f"{stream}: no new questions since the last snapshot ({counts['files_new']} new files, "
            f"{counts['rows_repeated']} repeated rows); nothing was measured, run again when there are some"
        )
    seen = dict(before.seen)
    for key, question in kept.items():
        seen[key] = Known(_by_hash(question.question, question.choices, question.answer), anchors[key])
    named = _with_unique_ids(kept)
    return Fresh(
        questions=tuple(named.values()),
        anchors={question.id: anchors[key] for key, question in named.items()},
        snapshot=replace(before, files=tuple(read[name] for name in sorted(read)), seen=seen),
        counts={name: counts[name] for name in COUNTS},
    )


COUNTS = (
    *("files_new", "files_empty", "files_repeated", "files_ignored"),
    *("rows_repeated", "rows_contradicted", "rows_bad", "rows_trained_on", "rows_alike"),
)
"""What `Fresh.counts` counts."""


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


def _read_new(
    files: Iterable[StoredFile],
    stream: str | Path,
    before: Snapshot,
    counts: Counter[str],
    *,
    preset: str,
    on_bad_row: OnBadRow,
) -> tuple[dict[str, ReadFile], dict[bytes, list[tuple[Question, str]]]]:
    """All files with those that are new, and the questions of these by their hashes, each with its file."""
    known = {(file.name, file.version) for file in before.files}
    hashes = {file.sha256 for file in before.files}
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
        try:
            questions, report = read_questions(local, preset=preset, on_bad_row=on_bad_row, name=file.uri)
        except NoRowsError:  # its writer had nothing to write: one shard of many, or an hour of a day
            counts["files_empty"] += 1
            continue
        counts["files_new"] += 1
        counts["rows_repeated"] += report.n_duplicates
        counts["rows_bad"] += report.n_dropped
        for question in questions:
            found[question_hash(question)].append((question, file.uri))
    return read, found


def _anchors(kept: Mapping[bytes, Question], before: Snapshot, counts: Counter[str]) -> dict[bytes, bytes]:
    """The anchors of new questions, by their hashes, without those like what the first champion learned."""
    trained = {known.question.id: known for known in before.trained_on.values()}
    earlier = trained | {known.question.id: known for known in before.seen.values()}
    new = {key: replace(question, id=key.hex()) for key, question in kept.items()}
    questions = [*(known.question for known in earlier.values()), *new.values()]
    anchors = anchors_of(questions, known={name: known.anchor for name, known in earlier.items()})
    learned = {known.anchor for known in trained.values()}
    uses = Counter(anchors.values())
    found = {}
    for key in kept:
        anchor = anchors[key.hex()]
        if anchor in learned:
            counts["rows_trained_on"] += 1
        else:
            counts["rows_alike"] += uses[anchor] > 1
            found[key] = anchor
    return found


def _is_data(uri: str) -> bool:
    path = PurePath(uri.lower())
    if path.name.startswith(("_", ".")):  # markers such as _SUCCESS, and files that are still being written
        return False
    return PurePath(path.stem if path.suffix == ".gz" else path.name).suffix in FILE_TYPES


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
        elif len({answer_key(row) for row, _ in rows}) > 1:
            counts["rows_contradicted"] += len(rows)
            contradicted.append(rows)
        else:
            counts["rows_repeated"] += len(rows) - 1
            kept[key] = question
    if contradicted and on_bad_row == "refuse":
        shown = [
            f"  {short(rows[0][0].question)} in "
            + " and ".join(f"{uri} (id {short(row.id)})" for row, uri in rows[:_SHOWN])
            for rows in contradicted[:_SHOWN]
        ]
        raise DataFormatError(
            f"{len(contradicted)} questions have different answers in different files"
            + (f" (the first {len(shown)} shown)" if len(contradicted) > len(shown) else "")
            + ":\n"
            + "\n".join(shown)
            + "\nCorrect these files, or leave the questions out with `on_bad_row=drop`."
        )
    return kept


def _with_unique_ids(kept: Mapping[bytes, Question]) -> dict[bytes, Question]:
    """The questions under their own ids; those that share one get a part of their hash behind it."""
    uses = Counter(question.id for question in kept.values())
    return {
        key: question if uses[question.id] == 1 else replace(question, id=f"{question.id}-{key.hex()[:12]}")
        for key, question in kept.items()
    }
