"""A predictions table comes back as it was written, and a wrong one is refused with its row and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_core.errors import ConfigError, DataFormatError
from calib_core.predictions.files import read_predictions, write_predictions
from calib_core.predictions.protocols import check_same_protocol
from calib_core.predictions.table import Predictions

INF = np.inf


def make(**changes: Any) -> Predictions:
    """Three questions with 3, 2 and 4 options."""
    fields: dict[str, Any] = {
        "ids": ("a", "b", "c"),
        "labels": np.array([0, 1, -1]),
        "logits": np.array([[1, 0, 0, -INF], [0, 2, -INF, -INF], [0, 1, 2, 3]], np.float32),
        "n_options": np.array([3, 2, 4]),
        "letter_mass": np.array([0.5, 0.25, 1.0], np.float32),
        "subjects": ("x", None, "y"),
        "protocol": {"model": "m", "adapter": None, "shots": 0},
    }
    return Predictions(**(fields | changes))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_probabilities_are_the_softmax_of_a_rows_own_options() -> None:
    probs = make().probs()
    e = np.e
    np.testing.assert_allclose(probs[0], [e / (e + 2), 1 / (e + 2), 1 / (e + 2), 0], rtol=1e-12)
    np.testing.assert_allclose(probs[1], [1 / (1 + e**2), e**2 / (1 + e**2), 0, 0], rtol=1e-12)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-12)
    assert probs.dtype == np.float64
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(make().log_probs(), np.log(probs), rtol=1e-12)


def test_huge_logits_do_not_overflow() -> None:
    table = make(logits=np.array([[1e30, 0, 0, -INF], [0, -1e30, -INF, -INF], [0, 0, 0, 0]], np.float32))
    assert table.confidence().tolist() == [1.0, 1.0, 0.25]
    assert np.isfinite(table.log_probs()[0, 1])


def test_top_confidence_and_correct() -> None:
    table = make(labels=np.array([0, 0, 3]))
    assert table.top().tolist() == [0, 1, 3]
    assert table.correct().tolist() == [1.0, 0.0, 1.0]
    np.testing.assert_array_equal(table.confidence(), table.probs().max(axis=1))


def test_correct_refuses_unknown_labels() -> None:
    with pytest.raises(
        DataFormatError, match=r"1 of 3 rows have no label \(first: row 3, id 'c', field 'label'\)"
    ):
        make().correct()


def test_subset_picks_rows_in_order_and_drops_unused_columns() -> None:
    part = make().subset([1, 0])
    assert part.ids == ("b", "a")
    assert part.subjects == (None, "x")
    assert part.logits.shape == (2, 3)
    np.testing.assert_array_equal(part.probs(), make().probs()[[1, 0], :3])
    assert make().subset(np.array([False, False, True])).ids == ("c",)
    assert len(make().subset(np.zeros(3, bool))) == 0


def test_arrays_are_copies_that_nobody_can_change() -> None:
    labels = np.array([0, 1, 2])
    table = make(labels=labels)
    labels[0] = 2
    assert table.labels[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        table.logits[0, 0] = 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"logits": np.array([[1, np.nan, 0, -INF], [0, 2, -INF, -INF], [0, 1, 2, 3]])},
            r"row 1, field 'logits'.*NaN",
        ),
        (
            {"logits": np.array([[1, 0, 0, -INF], [0, INF, -INF, -INF], [0, 1, 2, 3]])},
            r"row 2, field 'logits'.*infinite",
        ),
        (
            {"logits": np.array([[1, 0, 0, 0.0], [0, 2, -INF, -INF], [0, 1, 2, 3]])},
            r"row 1, field 'logits'.*beyond",
        ),
        ({"labels": np.array([0, 2, 0])}, r"row 2, field 'label': not one of the row's options"),
        ({"labels": np.array([0, 1, -2])}, r"row 3, field 'label'"),
        ({"labels": np.array([0.0, 1.0, 2.0])}, "labels must be integers"),
        ({"labels": np.array([0, 1])}, r"labels \(2,\)"),
        ({"logits": np.zeros((2, 4))}, r"logits \(2, 4\)"),
        ({"logits": np.zeros((3, 4), np.int64)}, "logits must be floating-point"),
        ({"ids": ("a", "b", "a")}, r"row 3, field 'id'.*already used in row 1"),
        ({"ids": ("a", "", "c")}, r"row 2, field 'id'.*non-empty"),
        ({"subjects": ("x", 5, None)}, r"row 2, field 'subject'"),
        ({"n_options": np.array([3, 1, 4])}, r"row 2, field 'logits'.*outside 2\.\.26"),
        ({"n_options": np.array([3, 2, 5])}, r"row 3, field 'logits'.*4 columns"),
        ({"letter_mass": np.array([0.5, 1.2, 0.5])}, r"row 2, field 'letter_mass'"),
        ({"letter_mass": np.array([0.5, np.nan, 0.5])}, r"row 2, field 'letter_mass'"),
    ],
)
def test_a_wrong_record_is_refused_with_row_and_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        make(**changes)


def make_with_subjects(subjects: Any) -> Predictions:
    n = len(subjects)
    return Predictions(
        ids=tuple(str(i) for i in range(n)),
        labels=np.zeros(n, np.int64),
        logits=np.zeros((n, 2), np.float32),
        n_options=np.full(n, 2),
        subjects=tuple(subjects),
    )


def test_all_problems_are_counted_and_the_first_twenty_different_ones_shown() -> None:
    n = 30
    with pytest.raises(DataFormatError, match="30 problems") as caught:
        Predictions(
            ids=tuple(str(i) for i in range(n)),
            labels=np.full(n, 9),
            logits=np.zeros((n, 2), np.float32),
            n_options=np.full(n, 2),
            subjects=(None,) * n,
        )
    assert "rows 1, 2, 3, 4, 5 and 25 more, field 'label': not one of the row's options" in str(caught.value)
    with pytest.raises(DataFormatError, match="30 problems") as caught:
        make_with_subjects([float(i) for i in range(n)])
    assert "row 20," in str(caught.value)
    assert "row 21," not in str(caught.value)
    assert "and 10 more" in str(caught.value)


@pytest.mark.parametrize("letter_mass", [None, np.array([0.5, 0.25, 1.0], np.float32)])
@pytest.mark.parametrize("protocol", [None, {"model": "m", "prompt": {"form": "plain"}}])
def test_parquet_comes_back_bit_for_bit(tmp_path: Path, letter_mass: Any, protocol: Any) -> None:
    table = make(letter_mass=letter_mass, protocol=protocol)
    path = tmp_path / "t.parquet"
    write_predictions(table, path)
    back = read_predictions(path.as_uri())
    assert (back.ids, back.subjects, back.protocol) == (table.ids, table.subjects, table.protocol)
    np.testing.assert_array_equal(back.labels, table.labels)
    np.testing.assert_array_equal(back.logits, table.logits)
    np.testing.assert_array_equal(back.n_options, table.n_options)
    if letter_mass is None:
        assert back.letter_mass is None
    else:
        np.testing.assert_array_equal(back.letter_mass, letter_mass)


def test_the_file_has_the_published_columns(tmp_path: Path) -> None:
    write_predictions(make(), tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types.pop("logits").startswith("list<")
    assert schema.field("logits").type.value_type == pa.float32()
    assert types == {"id": "string", "label": "int32", "letter_mass": "float", "subject": "string"}
    assert json.loads(schema.metadata[b"calib.protocol"]) == make().protocol
    assert pq.read_table(tmp_path / "t.parquet")["label"].to_pylist() == [0, 1, None]


def test_probs_from_elsewhere(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "label": 0, "probs": [0.7, 0.3]},
        {"id": "b", "label": None, "probs": [0.5004, 0.25, 0.25]},
        {"id": "c", "label": 1, "probs": [1.0, 0.0]},
    ]
    table = read_predictions(write_rows(tmp_path / "t.jsonl", rows))
    probs = table.probs()
    np.testing.assert_allclose(probs[0], [0.7, 0.3, 0], atol=1e-7)
    np.testing.assert_allclose(probs[1], np.array([0.5004, 0.25, 0.25]) / 1.0004, atol=1e-7)
    assert probs[2].tolist()[0] == 1.0
    assert table.log_probs()[2, 1] == pytest.approx(-87.3365, abs=1e-3)
    assert table.labels.tolist() == [0, -1, 1]
    assert table.protocol is None
    assert table.letter_mass is None
    assert table.subjects == (None,) * 3


def test_logprobs_from_elsewhere_are_normalised_over_the_options(tmp_path: Path) -> None:
    logprobs = np.log([0.2, 0.1, 0.1]).tolist()
    table = read_predictions(
        write_rows(tmp_path / "t.jsonl", [{"id": "a", "label": 2, "logprobs": logprobs}])
    )
    np.testing.assert_allclose(table.probs(), [[0.5, 0.25, 0.25]], atol=1e-7)


GOOD = {"id": "a", "label": 0, "logits": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "logits": None}, "line 2, logits: None where a list"),
        ({**GOOD, "logits": [1.0, None]}, "line 2, logits"),
        ({**GOOD, "logits": [1.0, float("nan")]}, "line 2, logits.*NaN"),
        ({**GOOD, "logits": [1.0]}, "1 options where 2 to 26"),
        ({**GOOD, "logits": [0.0] * 27}, "27 options where 2 to 26"),
        ({**GOOD, "id": "b", "logits": [1e300, 0.0]}, "line 2, logits.*infinity"),
        ({"id": "b", "logits": [1.0, 2.0]}, "line 2, label"),
        ({**GOOD, "label": -1}, "line 2, label"),
        ({**GOOD, "id": "b", "label": 2}, "line 2, label"),
        ({**GOOD, "label": "A"}, "line 2, label: 'A' is not a whole number"),
        ({**GOOD, "label": True}, "line 2, label: True"),
        ({**GOOD, "id": 7.5}, "line 2, id: not a text but float"),
        ({**GOOD, "id": None}, "line 2, id: missing"),
        ({**GOOD, "id": "\ud800"}, "line 2, id: holds half of a surrogate pair"),
        ({**GOOD, "id": "b", "subject": ["x"]}, "line 2, subject: not a text but list"),
        ({**GOOD, "id": "b", "logits": [1, 10**400]}, "line 2, logits.*infinity"),
        ({**GOOD, "id": "b", "label": 10**30}, "line 2, label: 1000.* is out of range"),
        (GOOD, "line 2, id: 'a' is also the id of line 1"),
    ],
)
def test_a_bad_row_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_rows(tmp_path / "t.jsonl", [GOOD, row])
    with pytest.raises(DataFormatError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("probs", [0.5, 0.6], "sum to 1.1"),
        ("probs", [1.5, -0.5], "are these logits"),
        ("logprobs", [0.5, -1.0], "above 0"),
        ("logprobs", [float("-inf"), float("-inf")], "no finite log-probability"),
        ("logprobs", [float("nan"), -1.0], "NaN or an infinity"),
        ("logprobs", [float("inf"), -1.0], "NaN or an infinity"),
        ("logprobs", [-9999.0, -0.1], "not among the top candidates"),
        ("logprobs", [-0.1, None], "where a list of numbers"),
        ("probs", [float("nan"), 0.5], "NaN or an infinity"),
    ],
)
def test_scores_of_the_wrong_kind_are_refused(
    tmp_path: Path, kind: str, values: list[float], message: str
) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"id": "a", "label": 0, kind: values}])
    with pytest.raises(DataFormatError, match=f"line 1, {kind}.*{message}"):
        read_predictions(path)


@pytest.mark.parametrize("mass", [1.5, -0.1, float("nan"), 10**400, "much"])
def test_a_letter_mass_that_is_no_share_is_refused(tmp_path: Path, mass: Any) -> None:
    rows = [{**GOOD, "letter_mass": 0.5}, {**GOOD, "id": "b", "letter_mass": mass}]
    with pytest.raises(DataFormatError, match=r"line 2, letter_mass: .* where a share is expected"):
        read_predictions(write_rows(tmp_path / "t.jsonl", rows))


def test_a_letter_mass_that_some_rows_lack_is_refused(tmp_path: Path) -> None:
    rows = [{**GOOD, "letter_mass": 0.5}, {**GOOD, "id": "b"}]
    with pytest.raises(DataFormatError, match="line 2, letter_mass"):
        read_predictions(write_rows(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a", "logits": [1.0, 2.0]}], "no column label"),
        ([{"label": 0, "logits": [1.0, 2.0]}], "no column id"),
        ([{"id": "a", "label": 0}], "found none"),
        ([{**GOOD, "probs": [0.5, 0.5]}], "found logits and probs"),
        ([], "the file is empty"),
    ],
)
def test_wrong_columns_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        read_predictions(write_rows(tmp_path / "t.jsonl", rows))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    cases = {
        "t.csv": (b"id,label", "the table has no rows"),
        "t.xlsx": (b"table", "unknown file type"),
        "bad.parquet": (b"not parquet", "not a readable Parquet file"),
        "latin.jsonl": ('{"id": "é"}'.encode("latin-1"), "not UTF-8"),
        "broken.jsonl": (b'{"id": "a"}\n{"id":', "line 2: not JSON"),
        "list.jsonl": (b"[1]", "row 1: not an object with fields but int"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataFormatError, match=message):
            read_predictions(tmp_path / name)
    with pytest.raises(DataFormatError, match="no such file"):
        read_predictions(tmp_path / "missing.parquet")


@pytest.mark.parametrize("uri", ["az://b/t.parquet", "https://host/t.parquet"])
def test_unknown_uris_are_refused_with_advice(uri: str) -> None:
    with pytest.raises(ConfigError, match="give a local path, or a URI that begins with gs://"):
        read_predictions(uri)
    with pytest.raises(ConfigError, match="give a local path, or a URI that begins with gs://"):
        write_predictions(make(), uri)


def test_a_table_in_a_bucket_comes_back_equal(gcs: str) -> None:
    table = make(protocol={"model": "m"})
    write_predictions(table, f"{gcs}/run/t.parquet")
    again = read_predictions(f"{gcs}/run/t.parquet")
    assert (again.ids, again.protocol) == (table.ids, table.protocol)
    np.testing.assert_array_equal(again.logits, table.logits)
    with pytest.raises(DataFormatError, match=r"gs://.*/none\.parquet: no such object"):
        read_predictions(f"{gcs}/run/none.parquet")


def test_writing_elsewhere_than_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"end in \.parquet"):
        write_predictions(make(), tmp_path / "t.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_protocol_is_refused(tmp_path: Path) -> None:
    write_predictions(make(), tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet").replace_schema_metadata({b"calib.protocol": b"{"})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataFormatError, match=r"calib\.protocol"):
        read_predictions(tmp_path / "t.parquet")


def test_protocols_may_differ_in_the_adapter_alone() -> None:
    a = make()
    check_same_protocol(a, make(protocol={"model": "m", "adapter": "abc", "shots": 0}))
    check_same_protocol(make(protocol=None), make(protocol=None))
    with pytest.raises(DataFormatError, match="shots: 0 and 5"):
        check_same_protocol(a, make(protocol={"model": "m", "adapter": None, "shots": 5}))
    with pytest.raises(DataFormatError, match="dtype: None and 'bfloat16'"):
        check_same_protocol(
            a, make(protocol={"model": "m", "adapter": None, "shots": 0, "dtype": "bfloat16"})
        )
    with pytest.raises(DataFormatError, match="second predictions table has no protocol"):
        check_same_protocol(a, make(protocol=None))
    prompts = [{"form": "plain", "template": template} for template in ("x" * 64, "y" * 64)]
    with pytest.raises(
        DataFormatError, match=r"ways and can't be compared \(prompt\.template: 'x+' and 'y+'\)"
    ):
        check_same_protocol(*(make(protocol={"model": "m", "prompt": prompt}) for prompt in prompts))


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6), min_size=1, max_size=8))
def test_any_mix_of_option_counts_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]]
) -> None:
    n_options = np.array([len(row) for row in rows])
    logits = np.full((len(rows), int(n_options.max())), -INF, np.float32)
    for target, row in zip(logits, rows, strict=True):
        target[: len(row)] = row
    table = Predictions(
        ids=tuple(str(i) for i in range(len(rows))),
        labels=n_options - 1,
        logits=logits,
        n_options=n_options,
        subjects=(None,) * len(rows),
    )
    path = tmp_path_factory.mktemp("p") / "t.parquet"
    write_predictions(table, path)
    back = read_predictions(path)
    np.testing.assert_array_equal(back.logits, table.logits)
    np.testing.assert_array_equal(back.n_options, n_options)
    np.testing.assert_allclose(back.probs().sum(axis=1), 1, rtol=1e-12)
