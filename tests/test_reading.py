"""One reading layer: questions, pairs and predictions take the same files, and have the same limits."""

from __future__ import annotations

import decimal
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calib_core.data.preferences import read_preferences
from calib_core.data.questions import read_questions
from calib_core.errors import CalibError, ConfigError, DataFormatError
from calib_core.predictions.files import read_predictions
from calib_core.storage.limits import LIMITS

QUESTIONS = [
    {"id": "a", "question": "Which is red?", "choices": ["blood", "snow"], "answer": 0},
    {"id": "b", "question": "Which is wet?", "choices": ["sand", "rain"], "answer": 1},
]
PAIRS = [
    {"id": "a", "prompt": "Red?", "chosen": "blood", "rejected": "snow"},
    {"id": "b", "prompt": "Wet?", "chosen": "rain", "rejected": "sand"},
]
PREDICTIONS = [
    {"id": "a", "label": 0, "probs": [0.7, 0.3]},
    {"id": "b", "label": 1, "probs": [0.2, 0.8]},
]
READERS: dict[str, tuple[list[dict[str, Any]], Callable[[Path], Any]]] = {
    "questions": (QUESTIONS, lambda path: read_questions(path)[0]),
    "preference pairs": (PAIRS, lambda path: read_preferences(path)[0]),
    "predictions": (PREDICTIONS, lambda path: list(read_predictions(path).ids)),
}
readers = pytest.mark.parametrize("kind", READERS)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def delimited(rows: list[dict[str, Any]], comma: str = ",", end: str = "\n") -> bytes:
    def cell(value: Any) -> str:
        text = json.dumps(value) if isinstance(value, list) else str(value)
        return '"' + text.replace('"', '""') + '"'

    table = [comma.join(rows[0]), *(comma.join(map(cell, row.values())) for row in rows)]
    return (end.join(table) + end).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FORMS: dict[str, Callable[[list[dict[str, Any]]], tuple[str, bytes]]] = {
    "lines": lambda rows: ("t.jsonl", lines(rows)),
    "byte order mark": lambda rows: ("t.jsonl", b"\xef\xbb\xbf" + lines(rows)),
    "a mark in each part": lambda rows: (
        "t.jsonl",
        b"".join(b"\xef\xbb\xbf" + lines([row]) for row in rows),
    ),
    "blank lines": lambda rows: ("t.jsonl", b"\n \n" + lines(rows).replace(b"\n", b"\n\n\t\n")),
    "no last line end": lambda rows: ("t.jsonl", lines(rows).rstrip()),
    "carriage returns and line feeds": lambda rows: ("t.jsonl", lines(rows).replace(b"\n", b"\r\n")),
    "carriage returns": lambda rows: ("t.jsonl", lines(rows).replace(b"\n", b"\r")),
    "list": lambda rows: ("t.json", json.dumps(rows, indent=1).encode()),
    "list in a file of lines": lambda rows: ("t.jsonl", b"\n" + json.dumps(rows).encode()),
    "lines without an ending": lambda rows: ("predictions.jsonl-00000-of-00001", lines(rows)),
    "packed": lambda rows: ("t.jsonl.gz", gzip.compress(lines(rows))),
    "packed under another name": lambda rows: ("t.jsonl", gzip.compress(lines(rows))),
    "packed without an ending": lambda rows: ("artifact", gzip.compress(lines(rows))),
    "packed in two pieces": lambda rows: ("t.jsonl", b"".join(gzip.compress(lines([row])) for row in rows)),
    "unpacked on its way": lambda rows: ("t.jsonl.gz", lines(rows)),
    "csv": lambda rows: ("t.csv", delimited(rows)),
    "csv with a mark": lambda rows: ("t.csv", b"\xef\xbb\xbf" + delimited(rows)),
    "csv with semicolons": lambda rows: ("t.csv", delimited(rows, ";")),
    "csv with tabs": lambda rows: ("t.csv", delimited(rows, "\t")),
    "csv from Windows": lambda rows: ("t.csv", delimited(rows, end="\r\n")),
    "csv from an old Mac": lambda rows: ("t.csv", delimited(rows, end="\r")),
    "csv, packed": lambda rows: ("t.csv", gzip.compress(delimited(rows))),
    "tsv": lambda rows: ("t.tsv", delimited(rows, "\t")),
    "Parquet": lambda rows: ("t.parquet", parquet(rows)),
    "Parquet without an ending": lambda rows: ("artifact", parquet(rows)),
    "Parquet under another name": lambda rows: ("t.jsonl", parquet(rows)),
    "Parquet, packed": lambda rows: ("t.parquet.gz", gzip.compress(parquet(rows))),
}


@readers
@pytest.mark.parametrize("form", FORMS)
def test_every_reader_takes_every_form(tmp_path: Path, kind: str, form: str) -> None:
    rows, read = READERS[kind]
    name, data = FORMS[form](rows)
    (tmp_path / "plain.jsonl").write_bytes(lines(rows))
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name) == read(tmp_path / "plain.jsonl")


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
]


@readers
@pytest.mark.parametrize("text", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_every_reader_takes_every_type_of_text_and_list(
    tmp_path: Path, kind: str, text: Any, lists: Any
) -> None:
    rows, read = READERS[kind]
    columns: dict[str, pa.Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], str):
            columns[name] = pa.array(values).cast(text)
        elif isinstance(values[0], list):
            inner = text if isinstance(values[0][0], str) else pa.float32()
            inner = pa.large_string() if pa.types.is_dictionary(inner) else inner
            columns[name] = pa.array(values, lists(inner))
        else:
            columns[name] = pa.array(values)
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (tmp_path / "plain.jsonl").write_bytes(lines(rows))
    assert read(tmp_path / "t.parquet") == read(tmp_path / "plain.jsonl")


WHOLE = {
    "integers": pa.int32(),
    "bytes": pa.uint8(),
    "floats": pa.float64(),
    "half floats": pa.float16(),
    "decimals": pa.decimal128(5, 2),
    "digits": pa.string(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_in_any_form_are_answers_and_labels(tmp_path: Path, name: str) -> None:
    values = [decimal.Decimal(v) if name == "decimals" else v for v in (0, 1)]
    if name == "half floats":
        values = [np.float16(v) for v in values]
    numbers = pa.array([str(v) for v in values] if name == "digits" else values, WHOLE[name])
    questions = {key: [row[key] for row in QUESTIONS] for key in ("id", "question", "choices")}
    pq.write_table(pa.table({**questions, "answer": numbers}), tmp_path / "q.parquet")
    assert [question.answer for question in read_questions(tmp_path / "q.parquet")[0]] == [0, 1]
    probs = [row["probs"] for row in PREDICTIONS]
    pq.write_table(pa.table({"id": ["a", "b"], "label": numbers, "probs": probs}), tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet").labels.tolist() == [0, 1]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_column_that_misses_a_value_keeps_the_others(tmp_path: Path, missing: Any) -> None:
    rows = [*QUESTIONS, QUESTIONS[0] | {"id": "c", "question": "Which is hot?"}]
    answers = pa.array([0.0, 1.0, missing], pa.float64(), from_pandas=False)
    columns = {key: [row[key] for row in rows] for key in ("id", "question", "choices")}
    pq.write_table(pa.table({**columns, "answer": answers}), tmp_path / "q.parquet")
    questions, report = read_questions(tmp_path / "q.parquet", on_bad_row="drop")
    assert ([question.answer for question in questions], report.n_dropped) == ([0, 1], 1)
    assert report.problems[0].message.startswith("no answer")
    table = {"id": ["a", "b", "c"], "label": answers, "probs": [[0.7, 0.3]] * 3}
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet").labels.tolist() == [0, 1, -1]


def test_numbers_as_ids_of_any_size(tmp_path: Path) -> None:
    for name, (rows, read) in READERS.items():
        changed = [row | {"id": number} for row, number in zip(rows, (7.0, 2**70), strict=True)]
        (tmp_path / "t.jsonl").write_bytes(lines(changed))
        found = read(tmp_path / "t.jsonl")
        assert [getattr(each, "id", each) for each in found] == ["7", str(2**70)], name


@readers
@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_every_reader_takes_texts_written_as_differences(tmp_path: Path, kind: str, encoding: str) -> None:
    rows, read = READERS[kind]
    texts = {name: encoding for name, value in rows[0].items() if isinstance(value, str)}
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, column_encoding=texts)
    (tmp_path / "plain.jsonl").write_bytes(lines(rows))
    assert read(tmp_path / "t.parquet") == read(tmp_path / "plain.jsonl")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_lists_and_numbers_may_be_texts_as_in_csv(tmp_path: Path, ending: str) -> None:
    made_of_csv = {"csv": delimited, "jsonl": lines, "parquet": parquet}[ending]
    questions = [row | {"choices": json.dumps(row["choices"])} for row in QUESTIONS]
    (tmp_path / f"q.{ending}").write_bytes(made_of_csv(questions))
    (tmp_path / "plain.jsonl").write_bytes(lines(QUESTIONS))
    assert read_questions(tmp_path / f"q.{ending}")[0] == read_questions(tmp_path / "plain.jsonl")[0]
    predictions = [
        {"id": "a", "label": "0", "logprobs": "[-0.1, -inf]", "letter_mass": "0.5"},
        {"id": "b", "label": "1", "logprobs": "[-Infinity, -0.2]", "letter_mass": "1"},
    ]
    (tmp_path / f"p.{ending}").write_bytes(made_of_csv(predictions))
    table = read_predictions(tmp_path / f"p.{ending}")
    assert table.letter_mass is not None
    assert (table.labels.tolist(), table.letter_mass.tolist()) == ([0, 1], [0.5, 1.0])
    assert table.top().tolist() == [0, 1]


def test_numbers_are_subjects_in_every_reader(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(lines([row | {"subject": 7} for row in QUESTIONS]))
    (tmp_path / "p.jsonl").write_bytes(lines([row | {"subject": 7} for row in PREDICTIONS]))
    assert [question.subject for question in read_questions(tmp_path / "q.jsonl")[0]] == ["7", "7"]
    assert read_predictions(tmp_path / "p.jsonl").subjects == ("7", "7")


@readers
def test_where_no_row_can_be_read_the_rows_are_blamed_and_not_the_columns(tmp_path: Path, kind: str) -> None:
    rows, read = READERS[kind]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    raw = pa.array([b"\xff" * 16] * 2, pa.binary(16))
    pq.write_table(pa.table(columns | {"id": raw}), tmp_path / "t.parquet")
    with pytest.raises(DataFormatError, match=r"2 of 2 rows are bad.*\n.*rows 1, 2: not UTF-8"):
        read(tmp_path / "t.parquet")


@readers
def test_long_fields_are_read(tmp_path: Path, kind: str) -> None:
    rows, read = READERS[kind]
    text = (
        next(name for name, value in rows[1].items() if isinstance(value, str) and name != "id")
        if (kind != "predictions")
        else "id"
    )
    changed = [rows[0], rows[1] | {text: "The minutes of the meeting go on. " * 6000 + "Who spoke?"}]
    for name, data in (
        ("t.csv", delimited(changed)),
        ("t.tsv", delimited(changed, "\t")),
        ("t.jsonl", lines(changed)),
    ):
        (tmp_path / name).write_bytes(data)
        assert len(read(tmp_path / name)) == 2


@readers
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"PK\x03\x04....", "a zip archive"),
        ("t.parquet", b"ARROW1", "an Arrow file"),
        ("t.jsonl.zst", b"\x28\xb5\x2f\xfd", "packed with zstd"),
        ("t.jsonl", b"BZh9", "packed with bzip2"),
        ("t.jsonl", "{}".encode("utf-16"), "this is UTF-16"),
        ("t.jsonl", "{}".encode("utf-32"), "this is UTF-32"),
        ("t.jsonl", lines(QUESTIONS).decode().encode("utf-16-le"), "full of zero bytes, as UTF-16"),
        ("t.csv", lines(QUESTIONS).decode().encode("utf-16-be"), "full of zero bytes, as UTF-16"),
        ("t.jsonl.gz", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "packed with gzip twice"),
        (
            "t.json",
            json.dumps(QUESTIONS[0], indent=1).encode(),
            "not JSON: the object goes on in the next line",
        ),
        ("t.json", json.dumps({"data": PAIRS}, indent=1).encode(), "write each row as one line"),
        ("t.jsonl", b"", "the file is empty"),
        ("t.jsonl", gzip.compress(b"", mtime=0), "the file is empty"),
        ("t.jsonl", b"\xef\xbb\xbf \n", "the file is empty"),
        ("t.json", b"[]", "no rows"),
        ("t.csv", b"question,choices,answer\n", "no "),
        ("t.jsonl", b'{"a": 1, "a": 2}', "line 1: not JSON: the key 'a' is given twice"),
        ("t.json", b'[{"a": 1, "a": 2}]', "the key 'a' is given twice"),
        ("t.jsonl", b"[" * 100_000, "levels of nesting"),
        ("t.jsonl", b'{"a":' * 500 + b"1" + b"}" * 500, r"more than 64 levels .*CALIB_MAX_JSON_DEPTH"),
        ("t.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "an integer of more than 4,300 digits"),
        ("t.json", b'[{"a": 1}, 2', "not valid JSON"),
        ("t.json", b'[{"a": 1}] 2', "not valid JSON"),
        ("t.json", b'[{"a": 1},]', "not valid JSON"),
        ("t.jsonl", gzip.compress(b"{}" * 99, mtime=0)[:-4], "damaged gzip file"),
    ],
)
def test_every_reader_refuses_the_same_files_in_the_same_words(
    tmp_path: Path, kind: str, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataFormatError, match=message) as caught:
        READERS[kind][1](tmp_path / name)
    assert len(str(caught.value)) < 3000


# --- limits -------------------------------------------------------------------------------------------------


def test_a_limit_is_set_by_its_variable_and_named_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "q.jsonl").write_bytes(lines(QUESTIONS))
    monkeypatch.setenv("CALIB_MAX_ROWS", "1")
    with pytest.raises(DataFormatError, match=r"more than 1 rows in one file \(limit rows\).*CALIB_MAX_ROWS"):
        read_questions(tmp_path / "q.jsonl")
    monkeypatch.setenv("CALIB_MAX_ROWS", "2")
    assert len(read_questions(tmp_path / "q.jsonl")[0]) == 2
    for wrong in ("0", "-1", "many", "1e9", "9" * 50):
        monkeypatch.setenv("CALIB_MAX_ROWS", wrong)
        with pytest.raises(ConfigError, match=r"CALIB_MAX_ROWS is .*; give a whole number above 0"):
            read_questions(tmp_path / "q.jsonl")


def test_limits_have_names_of_their_own() -> None:
    assert len({limit.variable for limit in LIMITS}) == len(LIMITS)


def refused(path: Path, message: str, read: Callable[[Path], Any] = READERS["questions"][1]) -> None:
    with pytest.raises(DataFormatError, match=message) as caught:
        read(path)
    assert len(str(caught.value)) < 3000


def test_a_text_that_stands_for_a_hundred_thousand_rows_is_not_unfolded(tmp_path: Path) -> None:
    n = 100_000
    text = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array(["A" * 2**20]))
    for name, column in (("question", text), ("id", text)):
        table = {"question": ["q"] * n, "choices": [["a", "b"]] * n, "answer": [0] * n, name: column}
        pq.write_table(pa.table(table), tmp_path / "q.parquet", compression="zstd")
        assert (tmp_path / "q.parquet").stat().st_size < 20_000
        refused(
            tmp_path / "q.parquet", r"bytes in one file, unpacked \(limit file_bytes\).*CALIB_MAX_FILE_BYTES"
        )


def test_options_that_stand_for_many_and_endless_lists_are_not_unfolded(
    tmp_path: Path, monkeypatch: Any
) -> None:
    n = 500
    inner = pa.DictionaryArray.from_arrays(pa.array([0, 1] * n, pa.int32()), pa.array(["a", "B" * 2**16]))
    choices = pa.ListArray.from_arrays(pa.array(range(0, 2 * n + 1, 2), pa.int32()), inner)
    table = {"question": [f"q{i}" for i in range(n)], "choices": choices, "answer": [0] * n}
    pq.write_table(pa.table(table), tmp_path / "q.parquet")
    monkeypatch.setenv("CALIB_MAX_FILE_BYTES", str(2**24))
    refused(tmp_path / "q.parquet", "limit file_bytes")
    monkeypatch.setenv("CALIB_MAX_FILE_BYTES", str(2**26))
    assert len(read_questions(tmp_path / "q.parquet")[0]) == n
    endless = {"id": ["a"], "label": [0], "logits": pa.array([[None] * 5_000_000], pa.list_(pa.float32()))}
    pq.write_table(pa.table(endless), tmp_path / "p.parquet")
    refused(tmp_path / "p.parquet", "limit file_bytes", READERS["predictions"][1])


def test_texts_of_a_fixed_size_and_texts_told_by_the_one_before_are_not_unfolded(
    tmp_path: Path, monkeypatch: Any
) -> None:
    n = 500
    table = {"question": [f"q{i}" for i in range(n)], "choices": [["a", "b"]] * n, "answer": [0] * n}
    fixed = table | {"id": pa.array([b"i" * 2**17] * n, pa.binary(2**17))}
    pq.write_table(pa.table(fixed), tmp_path / "fixed.parquet", compression="zstd")
    told = table | {"question": ["q" * 2**17] * n}
    encoding = {"question": "DELTA_BYTE_ARRAY"}
    pq.write_table(pa.table(told), tmp_path / "told.parquet", use_dictionary=False, column_encoding=encoding)
    monkeypatch.setenv("CALIB_MAX_FILE_BYTES", str(2**24))
    for name in ("fixed.parquet", "told.parquet"):
        assert (tmp_path / name).stat().st_size < 300_000
        refused(tmp_path / name, "limit file_bytes")


def test_a_text_in_quotes_over_many_lines_is_held_to_the_limit_of_a_field(
    tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "t.csv").write_text('question,A,B,answer\n"' + "line\n" * 1000 + '?",x,y,A\n')
    monkeypatch.setenv("CALIB_MAX_LINE_BYTES", "2000")
    refused(tmp_path / "t.csv", r"line 2: more than 2,000 bytes in one line or field \(limit line_bytes\)")


def test_packed_files_are_unpacked_up_to_the_limit(tmp_path: Path, monkeypatch: Any) -> None:
    row = lines(QUESTIONS)
    (tmp_path / "spaces.jsonl.gz").write_bytes(gzip.compress(row + b" " * 2**25))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(row * 10_000))
    monkeypatch.setenv("CALIB_MAX_FILE_BYTES", str(2**20))
    for name in ("spaces.jsonl.gz", "rows.jsonl.gz"):
        refused(tmp_path / name, "more than 1,048,576 bytes in one file")
    monkeypatch.delenv("CALIB_MAX_FILE_BYTES")
    monkeypatch.setenv("CALIB_MAX_LINE_BYTES", str(2**20))
    refused(tmp_path / "spaces.jsonl.gz", r"line 3: more than .*\(limit line_bytes\)")


def test_rows_and_columns_have_limits(tmp_path: Path, monkeypatch: Any) -> None:
    wide = ",".join(f"c{i}" for i in range(30_000))
    (tmp_path / "wide.csv").write_text(f"{wide}\n{wide}\n")
    refused(tmp_path / "wide.csv", r"more than 1,000 columns \(limit columns\)")
    (tmp_path / "wide.jsonl").write_text("".join(f'{{"k{i}": 1}}\n' for i in range(3000)))
    refused(tmp_path / "wide.jsonl", r"limit columns")
    nothing = pa.table({"question": pa.nulls(20_000, pa.string()), "answer": pa.nulls(20_000, pa.int32())})
    pq.write_table(nothing, tmp_path / "rows.parquet")
    monkeypatch.setenv("CALIB_MAX_ROWS", "10000")
    refused(tmp_path / "rows.parquet", "limit rows")


HEAVY = {
    "contradictions": [QUESTIONS[0] | {"answer": i % 2, "id": str(i)} for i in range(5_000)],
    "twenty thousand options": [QUESTIONS[0], QUESTIONS[1] | {"choices": [str(i) for i in range(20_000)]}],
    "combining marks": [QUESTIONS[0], QUESTIONS[1] | {"question": "a" + "\u0300\u0316" * 100_000}],
    "marks in an option": [QUESTIONS[0], QUESTIONS[1] | {"choices": ["a", "b" + "\u0300\u0316" * 100_000]}],
    "ligatures": [QUESTIONS[0], QUESTIONS[1] | {"question": "\ufdfa" * 20_000, "answer": 2}],
    "marked options": [{"Question Stem": "q", "Choices": "(A)" * 50_000, "Answer Key": "A"}],
    "one id": [QUESTIONS[0] | {"question": f"q{i}"} for i in range(3_000)],
    "endless values": [
        QUESTIONS[0] | {"question": f"q{i}", "id": str(i), "answer": "x" * 1000 + str(i)} for i in range(2000)
    ],
}


@pytest.mark.parametrize("name", HEAVY)
def test_what_is_quadratic_elsewhere_takes_a_moment_and_a_short_message(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(lines(HEAVY[name]))
    refused(tmp_path / "t.jsonl", "rows are bad")


def test_columns_that_no_row_needs_are_not_read(tmp_path: Path) -> None:
    columns = {key: [row[key] for row in QUESTIONS] for key in QUESTIONS[0]}
    twice = pa.StructArray.from_arrays([pa.array([1, 1]), pa.array([2, 2])], names=["a", "a"])
    stray = {
        "date": pa.array([2**31 - 1] * 2, pa.int32()).view(pa.date32()),
        "zone": pa.array([0, 0], pa.timestamp("ms", tz="Nowhere/Bad")),
        "twice": twice,
    }
    pq.write_table(pa.table({**columns, **stray}), tmp_path / "q.parquet")
    assert len(read_questions(tmp_path / "q.parquet")[0]) == 2
    for name, column in stray.items():
        pq.write_table(pa.table({**columns, "subject": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(CalibError, match="column 'subject'"):
            read_questions(tmp_path / f"{name}.parquet")
