"""Inputs for the targets: files that are right, changed at random, and Parquet tables of any types."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.champion.history import SCHEMA as FIGURES
from calib_core.data.stream import SEEN_SCHEMA

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 26, 27, 10**30, -(10**400), 1.0, 1.5, -0.0, 1e308, float("nan")),
    *(
        float("inf"),
        float("-inf"),
        "",
        " ",
        "A",
        "0",
        "1.0",
        "-1",
        "9" * 30,
        "\ud800",
        "\u200b",
        "e\u0301" * 90,
    ),
    *(
        "\0",
        "nan",
        "-Infinity",
        "x" * 3000,
        [],
        {},
        [[]],
        [None],
        {"": None},
        ["a", "a"],
        ["a", "b"],
        [0.5, 0.5],
    ),
    *({"text": ["a"], "label": ["A"]}, {"stem": 1}, [["-1", "False"]], {"value": 1, "low": 0, "high": 2}),
)
ODD_BYTES = (
    *(
        b"\xff",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"\x00",
        b"\x1f\x8b",
        b"PAR1",
        b"\r",
        b"\n",
        b'"',
        b"'",
        b"[",
        b"{",
        b"}",
    ),
    *(
        b"]",
        b",",
        b";",
        b"\t",
        b":",
        b"\\",
        b"\\ud800",
        b"NaN",
        b"1e999",
        b"9" * 5000,
        b"[" * 1200,
        b'{"a":' * 80,
    ),
    *(b"\xed\xa0\x80", b"\xcc\x80" * 90, b"null", b"true", b"-", b'"id":', b'{"a":1,"a":2}', b"\xe2\x80\xa8"),
)


def changed(seed: bytes, rng: random.Random) -> bytes:
    """A file like the seed with a few changes, in its values or in its bytes."""
    data = _other_values(seed, rng) if rng.random() < 0.6 else seed
    if rng.random() < 0.5 or data == seed:
        for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
            data = _other_bytes(data, rng)
    return gzip.compress(data, 1) if rng.random() < 0.02 else data


def _other_values(seed: bytes, rng: random.Random) -> bytes:
    """JSON, one value a line or as a whole, with some values replaced, removed or doubled."""
    lines = []
    for line in seed.splitlines() if seed.count(b"\n") else [seed]:
        try:
            value = json.loads(line)
        except ValueError:
            return seed
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            value = _replaced(value, rng)
        lines.append(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass"))
    rng.shuffle(lines)
    return b"\n".join(lines * rng.choice((1, 1, 1, 2)))


def _replaced(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        changed_to = dict(value)
        if rng.random() < 0.1:
            del changed_to[name]
        elif rng.random() < 0.1:
            changed_to[rng.choice(("id", "answer", "label", "logits", "probs", "filter", "x"))] = rng.choice(
                ODD_VALUES
            )
        else:
            changed_to[name] = _replaced(value[name], rng)
        return changed_to
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], _replaced(value[place], rng), *value[place + rng.choice((0, 1, 1, 1, 2)) :]]
    return rng.choice(ODD_VALUES)


def _other_bytes(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    kind = rng.random()
    if kind < 0.3:
        return data[:place] + rng.choice(ODD_BYTES) + data[place:]
    if kind < 0.5:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if kind < 0.7:
        return data[:place] + data[place + rng.randrange(1, 20) :]
    if kind < 0.8:
        return data[:place]
    other = rng.randrange(len(data) + 1)
    return data[:place] + data[min(place, other) : max(place, other)] + data[place:]


COLUMNS = {
    "questions, Parquet": ("id", "question", "choices", "answer", "subject", "A", "B", "cop", "answerKey"),
    "predictions, Parquet": ("id", "label", "probs", "logits", "letter_mass", "subject", "group"),
    "figures.parquet": tuple(FIGURES.names),
    "seen.parquet": tuple(SEEN_SCHEMA.names),
}
SCHEMAS = {"figures.parquet": FIGURES, "seen.parquet": SEEN_SCHEMA}
LIKELY: dict[str, tuple[Any, pa.DataType]] = {
    "choices": (["x", "y"], pa.list_(pa.string())),
    "answer": (1, pa.int32()),
    "label": (0, pa.int64()),
    "cop": (4, pa.int32()),
    "probs": ([0.5, 0.5], pa.list_(pa.float32())),
    "logits": ([0.5, 0.5], pa.list_(pa.float32())),
    "letter_mass": (0.5, pa.float32()),
}
TYPES = (
    *(
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.binary(16),
        pa.bool_(),
        pa.int8(),
        pa.uint64(),
    ),
    *(pa.float16(), pa.float32(), pa.float64(), pa.decimal128(20, 3), pa.date32(), pa.date64(), pa.null()),
    *(pa.timestamp("ns"), pa.timestamp("ms", tz="Nowhere/Bad"), pa.time64("us"), pa.duration("s")),
    *(
        pa.list_(pa.string()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float64(), 2),
        pa.list_(pa.list_(pa.int8())),
    ),
    *(
        pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))]),
        pa.map_(pa.string(), pa.int8()),
    ),
    pa.dictionary(pa.int32(), pa.string()),
)


def parquet(target: str, rng: random.Random) -> bytes:
    """A table with some of a target's columns, of likely and of any types, whole or with other bytes."""
    n = rng.choice((0, 1, 2, 3, 20))
    columns = {}
    for name in COLUMNS[target]:
        if rng.random() < 0.8:
            columns[name] = _column(name, n, rng)
    if (schema := SCHEMAS.get(target)) and rng.random() < 0.8:  # to which most of a table has to be true
        kinds = [field.type if rng.random() < 0.98 else rng.choice(TYPES) for field in schema]
        gaps = rng.choice((0.0, 0.0, 0.1))
        columns = {name: _any_of(kind, n, rng, gaps) for name, kind in zip(schema.names, kinds, strict=True)}
    sink = io.BytesIO()
    try:
        table = pa.table(columns)
        if rng.random() < 0.3:
            metadata = rng.choice((b"{", b"{}", b"[1]", b'{"model": "m"}', b"\xff"))
            table = table.replace_schema_metadata(
                {rng.choice((b"calib.protocol", b"calib.answers")): metadata}
            )
        pq.write_table(
            table, sink, row_group_size=rng.choice((1, 1000)), compression=rng.choice(("none", "zstd"))
        )
    except (pa.ArrowException, ValueError):  # a type that Parquet has no word for
        return b"PAR1"
    data = sink.getvalue()
    for _ in range(rng.choice((0, 0, 1, 1, 3))):
        data = _other_bytes(data, rng)
    return data


def _column(name: str, n: int, rng: random.Random) -> pa.Array:
    if rng.random() < 0.7:
        value, kind = LIKELY.get(name, (None, pa.string()))
        values = [f"{name} {i}" if value is None else value for i in range(n)]
        return pa.array([None if rng.random() < 0.05 else each for each in values], kind)
    return _any_of(rng.choice(TYPES), n, rng)


def _any_of(kind: pa.DataType, n: int, rng: random.Random, gaps: float = 0.3) -> pa.Array:
    try:
        values = [None if rng.random() < gaps else rng.choice(_examples(kind)) for _ in range(n)]
        return pa.array(values, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.nulls(n, kind)


EXAMPLES: tuple[tuple[Callable[[pa.DataType], bool], tuple[Any, ...]], ...] = (
    (pa.types.is_string, ("x", "A", "1", "", "stream")),
    (pa.types.is_large_string, ("x", "A")),
    (pa.types.is_string_view, ("x", "A")),
    (pa.types.is_dictionary, ("x", "y")),
    (pa.types.is_fixed_size_binary, (b"0123456789abcdef",)),
    (pa.types.is_binary, (b"x", b"\xff", b"1")),
    (pa.types.is_boolean, (True, False)),
    (pa.types.is_struct, ({"text": ["x", "y"], "label": ["A", "B"]},)),
    (pa.types.is_map, ([("a", 1)],)),
)


def _examples(kind: pa.DataType) -> tuple[Any, ...]:
    for is_of, examples in EXAMPLES:
        if is_of(kind):
            return examples
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _examples(kind.value_type)
        return ([inner[0], inner[-1]],)
    return (0, 1, 3)
