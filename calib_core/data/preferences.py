"""Preference pairs: the record, its file format, and a reader that refuses what it can't tell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.data.reading import read_rows
from calib_core.data.rows import (
    NoRowsError,
    OnBadRow,
    Problem,
    ReadReport,
    check_on_bad_row,
    refuse,
    unique_ids,
)
from calib_core.data.texts import exact_text, normalize_text
from calib_core.data.values import id_faults, id_text, text_faults
from calib_core.errors import DataFormatError, listed
from calib_core.storage.files import whole_file

_COLUMNS = ("prompt", "chosen", "rejected")
_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", *_COLUMNS)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One preference pair: of two answers to a prompt, the one that was preferred.

    Attributes:
        id: Name of the pair, unique within a data set.
        prompt: What the model is given.
        chosen: The preferred continuation, exactly as it follows the prompt (leading space included).
        rejected: The other continuation.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str


def read_preferences(
    source: str | Path, *, on_bad_row: OnBadRow = "refuse"
) -> tuple[list[Preference], ReadReport]:
    """Read and check preference pairs with the columns prompt, chosen, rejected [, id].

    Texts are kept as they are, white space included. Pairs that say the same (white space and Unicode's NFC
    don't count) are kept once. Pairs that contradict each other are kept: annotators do disagree.

    Args:
        source: A file or hub data set, as in `calib_core.data.questions.read_questions`.
        on_bad_row: "refuse" the whole source if a row is bad, or "drop" bad rows and list them in the report.

    Returns:
        The pairs in the source's order, and what was found.

    Raises:
        DataFormatError: the source can't be read, a column is missing, or rows are bad.
        ConfigError: `on_bad_row` is unknown.
    """
    check_on_bad_row(on_bad_row)
    rows = read_rows(source, fields=_SCHEMA.names)
    if not rows.rows:
        refuse(rows, rows.problems)
    if missing := [name for name in _COLUMNS if name not in rows.columns]:
        seen = listed([name[:80] for name in rows.columns], 40)
        raise DataFormatError(
            f"{rows.source}: no column {', '.join(missing)} (columns: {seen}); "
            f"preference pairs need the text columns {', '.join(_COLUMNS)}"
        )
    problems = list(rows.problems)
    found: dict[tuple[str, ...], tuple[int, Preference]] = {}
    n_good = 0
    for number, row in rows.rows:
        trouble = [Problem(number, field, message) for field, message in _faults(row)]
        problems += trouble
        if not trouble:
            n_good += 1
            pair = _preference(row)
            key = tuple(map(exact_text, (pair.prompt, pair.chosen, pair.rejected)))
            found.setdefault(key, (number, pair))
    kept = unique_ids(list(found.values()), rows.unit, problems)
    if on_bad_row == "refuse" or not kept:
        refuse(rows, problems, can_drop=on_bad_row == "refuse")
    if not kept:
        raise NoRowsError(f"{rows.source}: no preference pairs; give a source with at least one")
    report = ReadReport(
        source=rows.source,
        layout="preferences",
        unit=rows.unit,
        n_rows=rows.n_rows,
        n_kept=len(kept),
        n_duplicates=n_good - len(found),
        problems=tuple(sorted(problems, key=lambda problem: problem.row)),
    )
    return kept, report


def write_preferences(preferences: Iterable[Preference], path: str | Path) -> None:
    """Write pairs atomically as Parquet (columns id, prompt, chosen, rejected)."""
    pairs = list(preferences)
    columns = {name: [getattr(pair, name) for pair in pairs] for name in _SCHEMA.names}
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns, schema=_SCHEMA), temporary, compression="zstd")


def preferences_fingerprint(preferences: Iterable[Preference]) -> str:
    """Hex SHA-256 over the pairs' content (ids included), whatever their order."""
    rows = sorted(json.dumps([p.id, p.prompt, p.chosen, p.rejected], ensure_ascii=False) for p in preferences)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def split_preferences(
    preferences: Sequence[Preference], *, test_fraction: float
) -> tuple[tuple[Preference, ...], tuple[Preference, ...]]:
    """Fit and test part, by a stable hash of the normalized prompt: all pairs on one prompt go to one part.

    Args:
        preferences: The pairs.
        test_fraction: Share of the prompts that goes to the test part, in [0, 1].

    Returns:
        Fit and test part, each in an order that doesn't depend on the input's.
    """
    parts: tuple[list[tuple[float, str, Preference]], ...] = ([], [])
    for pair in preferences:
        place = _place(normalize_text(pair.prompt))
        parts[place < test_fraction].append((place, pair.id, pair))
    fit, test = (tuple(pair for _, _, pair in sorted(part, key=lambda item: item[:2])) for part in parts)
    return fit, test


def pairs_showing(preferences: Iterable[Preference], questions: Iterable[str]) -> list[str]:
    """Ids of the pairs whose prompt has one of the questions as a line of its own ("Question: ..." too).

    Args:
        preferences: The pairs.
        questions: Texts of questions.
    """
    held = {normalize_text(text) for text in questions}
    shown = []
    for pair in preferences:
        lines = {normalize_text(line) for line in (pair.prompt, *pair.prompt.split("\n"))}
        lines |= {line.removeprefix("question:").strip() for line in lines}
        if not held.isdisjoint(lines):
            shown.append(pair.id)
    return shown


def _place(text: str) -> float:
    """A place in [0, 1) that a text always has."""
    return int.from_bytes(hashlib.sha256(f"pair:{text}".encode()).digest()[:8]) / 2**64


def _preference(row: Mapping[str, Any]) -> Preference:
    """The pair of a row without faults."""
    prompt, chosen, rejected = (row[name] for name in _COLUMNS)
    name = id_text(row.get("id"))
    if not name:
        content = json.dumps([prompt, chosen, rejected], ensure_ascii=False)
        name = "pair-" + hashlib.sha256(content.encode()).hexdigest()[:16]
    return Preference(id=name, prompt=prompt, chosen=chosen, rejected=rejected)


def _faults(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All that is wrong with a row, as field and message."""
    faults = [(name, fault) for name in _COLUMNS for fault in text_faults(row.get(name))]
    if not faults and row["chosen"].strip() == row["rejected"].strip():
        faults.append(("rejected", "the same text as chosen; a pair needs two different answers"))
    return faults + [("id", fault) for fault in id_faults(row.get("id"))]
