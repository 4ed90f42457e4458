"""Reading questions: what is accepted, what is refused and how it is said, duplicates, the file format."""

import csv
import gzip
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_core.data.questions import Question, fingerprint, read_questions, write_questions
from calib_core.data.texts import normalize_text
from calib_core.errors import ConfigError, DataFormatError

SKY = {
    "id": "a",
    "question": "What colour is the sky?",
    "choices": ["red", "blue"],
    "answer": 1,
    "subject": "sky",
}
SNOW = {"id": "b", "question": "What colour is snow?", "choices": ["white", "black", "green"], "answer": 0}


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(source, **options):
    with pytest.raises(DataFormatError) as caught:
        read_questions(source, **options)
    return str(caught.value)


def one_bad_row(tmp_path, **changes):
    """The message for a file whose second row differs from a good one by `changes`."""
    return refusal(write_lines(tmp_path / "q.jsonl", SKY, SNOW | changes))


# --- what comes out, and that every file type gives the same ------------------------------------------------


EXPECTED = [
    Question(id="a", question="What colour is the sky?", choices=("red", "blue"), answer=1, subject="sky"),
    Question(id="b", question="What colour is snow?", choices=("white", "black", "green"), answer=0),
]
CSV = (
    "id,question,choice0,choice1,choice2,answer,subject\n"
    "a,What colour is the sky?,red,blue,,1,sky\n"
    "b,What colour is snow?,white,black,green,0,\n"
)


def test_json_lines(tmp_path):
    questions, report = read_questions(write_lines(tmp_path / "q.jsonl", SKY, SNOW))
    assert questions == EXPECTED
    assert report.to_dict() == {
        "source": str(tmp_path / "q.jsonl"),
        "layout": "native",
        "unit": "line",
        "n_rows": 2,
        "n_kept": 2,
        "n_duplicates": 0,
        "n_dropped": 0,
        "problems": [],
    }


def test_every_file_type_gives_the_same_questions(tmp_path):
    lines = (json.dumps(SKY) + "\n\n" + json.dumps(SNOW)).encode()
    files = {
        "lines.json": lines,
        "list.json": json.dumps([SKY, SNOW]).encode(),
        "bom.jsonl": b"\xef\xbb\xbf" + lines,
        "crlf.jsonl": lines.replace(b"\n", b"\r\n"),
        "q.jsonl.gz": gzip.compress(lines),
        "q.csv": CSV.encode(),
        "crlf.csv": CSV.replace("\n", "\r\n").encode(),
        "q.csv.gz": gzip.compress(CSV.encode()),
        "q.tsv": CSV.replace(",", "\t").encode(),
        "q.TSV": CSV.replace(",", "\t").encode(),
    }
    table = io.StringIO()
    listed = csv.writer(table)
    listed.writerow(SKY)
    for row in (SKY, SNOW | {"subject": ""}):
        listed.writerow([json.dumps(value) if key == "choices" else value for key, value in row.items()])
    files["listed.csv"] = table.getvalue().encode()
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert read_questions(path)[0] == EXPECTED, name
    pq.write_table(pa.Table.from_pylist([SKY, SNOW]), tmp_path / "q.parquet")
    assert read_questions(str(tmp_path / "q.parquet"))[0] == EXPECTED


def test_quoted_csv_fields_may_hold_commas_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text('question,choice0,choice1,answer\n"One, ""two""\nthree?","a, b",c,1\nNext?,x,y,7\n')
    message = refusal(path)
    assert "line 4, answer: 7 is out of range; give 0 to 1" in message  # lines of the file, not records
    questions, _ = read_questions(path, on_bad_row="drop")
    assert (questions[0].question, questions[0].choices) == ('One, "two"\nthree?', ("a, b", "c"))


def test_csv_choices_that_are_no_json_list_are_named(tmp_path):
    path = tmp_path / "q.tsv"
    rows = ("question;choices;answer", "One?;['a', 'b'];0", "Two?;3;0", 'Three?;["a","b"];x')
    path.write_text("\n".join(rows).replace(";", "\t"))
    message = refusal(path)
    assert 'line 2, choices: "[\'a\', \'b\']" is not a JSON list, as in ["a", "b"]' in message
    assert "line 3, choices: not a list but int" in message
    assert "line 4, answer: 'x' is not a whole number" in message


def test_tsv_without_quoting_keeps_its_quotes(tmp_path):
    path = tmp_path / "q.tsv"
    path.write_text('question\tchoice0\tchoice1\tanswer\n"Yes" he said. Why?\ta 5" nail\t"b\t0\n')
    (question,), _ = read_questions(path)
    assert (question.question, question.choices) == ('"Yes" he said. Why?', ('a 5" nail', '"b'))


def test_line_separators_inside_json_texts_do_not_end_a_row(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(SKY | {"question": "One\u2028two?"}, ensure_ascii=False), encoding="utf-8")
    assert read_questions(path)[0][0].question == "One\u2028two?"


def test_written_questions_are_read_back(tmp_path):
    write_questions(EXPECTED, tmp_path / "q.parquet")
    assert read_questions(tmp_path / "q.parquet")[0] == EXPECTED
    schema = pq.read_schema(tmp_path / "q.parquet")
    assert schema.field("answer").type == pa.int32()
    assert schema.field("choices").type.value_type == pa.string()


def test_a_missing_id_comes_from_the_content(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "id"} for row in (SKY, SNOW)]
    one, two = read_questions(write_lines(tmp_path / "q.jsonl", *rows))[0]
    again = read_questions(write_lines(tmp_path / "r.jsonl", *reversed(rows)))[0]
    assert {one.id, two.id} == {question.id for question in again}
    assert one.id.startswith("q-")
    assert one.id != two.id


@pytest.mark.parametrize("nothing", ["", None, math.nan])
def test_numbers_as_ids_and_blanks_around_texts(nothing, tmp_path):
    row = SKY | {"id": 7, "question": " Sky? ", "choices": [" red", "blue "], "subject": nothing}
    (question,), _ = read_questions(write_lines(tmp_path / "q.jsonl", row))
    assert question == Question(id="7", question="Sky?", choices=("red", "blue"), answer=1)


def test_two_and_twenty_six_options_are_fine(tmp_path):
    many = SNOW | {"choices": [f"option {i}" for i in range(26)], "answer": 25}
    questions, _ = read_questions(write_lines(tmp_path / "q.jsonl", SKY, many))
    assert [len(question.choices) for question in questions] == [2, 26]


# --- bad rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 4}, "line 2, answer: 4 is out of range; give 0 to 2"),
        ({"answer": -1}, "line 2, answer: -1 is out of range"),
        ({"answer": 10**30}, f"line 2, answer: {10**30} is out of range"),
        ({"answer": "B"}, "line 2, answer: 'B' is not a whole number"),
        ({"answer": "white"}, "line 2, answer: 'white' is not a whole number"),
        ({"answer": 1.5}, "line 2, answer: 1.5 is not a whole number"),
        ({"answer": True}, "line 2, answer: True is not a whole number"),
        ({"answer": None}, "line 2, answer: no answer"),
        ({"choices": ["white"]}, "line 2, choices: 1 options; give 2 to 26"),
        ({"choices": [str(i) for i in range(27)]}, "line 2, choices: 27 options; give 2 to 26"),
        ({"choices": ["white", "white ", "red"]}, "line 2, choices: repeated option 'white'"),
        ({"choices": ["white", " ", "red"]}, "line 2, choices: option 1: empty"),
        ({"choices": ["white", 2]}, "line 2, choices: option 1: not a text but int"),
        ({"choices": "white"}, "line 2, choices: 'white' is not a JSON list"),
        ({"choices": None}, "line 2, choices: missing"),
        ({"question": " \n"}, "line 2, question: empty"),
        ({"question": None}, "line 2, question: missing"),
        ({"question": "half \ud83d"}, "line 2, question: holds half of a surrogate pair"),
        ({"subject": [3]}, "line 2, subject: not a text but list"),
        ({"id": [1]}, "line 2, id: not a text but list"),
        ({"id": "a"}, "line 2, id: 'a' is also the id of line 1"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, message):
    text = one_bad_row(tmp_path, **changes)
    assert message in text
    assert "1 of 2 rows are bad" in text
    assert "leave them out with `on_bad_row=drop`" in text


def test_options_that_differ_in_case_only_are_different(tmp_path):
    row = SNOW | {"choices": ["BB", "Bb", "bb"]}
    (question,), _ = read_questions(write_lines(tmp_path / "q.jsonl", row))
    assert question.choices == ("BB", "Bb", "bb")


def test_all_problems_of_a_file_are_reported_together_and_the_first_twenty_shown(tmp_path):
    rows = [
        SKY | {"id": str(i), "question": f"Sky {i}?", "answer": 5 + i, "choices": ["red", f"r{i}", ""]}
        for i in range(25)
    ]
    message = refusal(write_lines(tmp_path / "q.jsonl", *rows, SNOW))
    assert "25 of 26 rows are bad, 50 problem(s) (26 different ones, the first 20 shown)" in message
    assert message.count("\n  line ") == 19
    assert "lines 1, 2, 3, 4, 5 and 20 more, choices: option 2: empty; give a text\n" in message
    assert "line 19, answer: 23 is out of range" in message
    assert "line 20," not in message


def test_dropped_rows_are_counted_and_recorded(tmp_path):
    path = tmp_path / "q.jsonl"
    bad = SNOW | {"id": "c", "choices": ["x"], "answer": 4}
    path.write_text("\n".join([json.dumps(SKY), "{broken", "[1]", json.dumps(bad), json.dumps(SNOW)]))
    questions, report = read_questions(path, on_bad_row="drop")
    assert questions == EXPECTED
    assert (report.n_rows, report.n_kept, report.n_dropped) == (5, 2, 3)
    assert [(problem.row, problem.field) for problem in report.problems] == [
        (2, ""),
        (3, ""),
        (4, "choices"),
        (4, "answer"),
    ]
    assert report.to_dict()["problems"][1]["message"] == "not an object with fields but list"


def test_a_file_of_bad_rows_only_is_refused_even_when_they_may_be_dropped(tmp_path):
    assert "1 of 1 rows are bad" in refusal(
        write_lines(tmp_path / "q.jsonl", SKY | {"answer": 9}), on_bad_row="drop"
    )
    (tmp_path / "r.jsonl").write_text("nothing\n")
    assert "line 1: not JSON" in refusal(tmp_path / "r.jsonl", on_bad_row="drop")


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv"])
def test_bytes_that_are_not_utf8_are_found(tmp_path, name):
    good = (
        CSV.encode() if name.endswith("csv") else (json.dumps(SKY) + "\n" + json.dumps(SNOW) + "\n").encode()
    )
    data = good.replace(b"black", b"bl\xe4ck")
    (tmp_path / name).write_bytes(data)
    line = data[: data.index(b"\xe4")].count(b"\n") + 1
    message = refusal(tmp_path / name)
    assert f"line {line}: not UTF-8: byte {data.index(0xE4)} of the file (0xe4)" in message
    questions, report = read_questions(tmp_path / name, on_bad_row="drop")
    assert [question.id for question in questions] == ["a"]
    assert report.n_dropped == 1


def test_parquet_bytes_that_are_not_utf8_are_found(tmp_path):
    text = pa.Array.from_buffers(  # bytes that no writer of texts would write
        pa.string(), 2, [None, *pa.array([b"Sky?", b"Sn\xf6w?"], pa.binary()).buffers()[1:]]
    )
    table = pa.table({"question": text, "choices": [["x", "y"]] * 2, "answer": [0, 1]})
    pq.write_table(table, tmp_path / "q.parquet")
    assert "row 2: not UTF-8: byte 2 of a text (0xf6)" in refusal(tmp_path / "q.parquet")
    questions, _ = read_questions(tmp_path / "q.parquet", on_bad_row="drop")
    assert [question.question for question in questions] == ["Sky?"]


def test_a_csv_row_with_too_many_fields(tmp_path):
    (tmp_path / "q.csv").write_text(CSV + "c,What?,x,y,z,0,s,extra\n")
    assert "line 4: 8 fields; the first line has 7" in refusal(tmp_path / "q.csv")


# --- bad files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("q.xlsx", b"PK", "unknown file type"),
        ("q", b"no rows", "unknown file type"),
        ("q.parquet.gz", b"", "the file is empty"),
        ("q.jsonl", b"", "the file is empty"),
        ("q.csv", b" \n", "the file is empty"),
        ("q.parquet", b"", "the file is empty"),
        ("q.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("q.csv", CSV.partition("\n")[0].encode(), "no questions"),
        ("q.json", b"[]", "no rows"),
        ("q.json", b"[1", "not valid JSON"),
        ("q.json", b'["\xff"]', "byte 2: not UTF-8 (0xff)"),
        ("q.jsonl", "ab".encode("utf-16"), "byte 0: this is UTF-16"),
        ("q.jsonl.gz", b"\0no gzip", "damaged gzip file"),
        ("q.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "damaged gzip file"),
        ("q.csv", (CSV + 'c,"What?,x,y,z,0,s\n').encode(), "line 4: not valid CSV"),
        ("q.csv", b"question,caf\xe9\n", "line 1: not UTF-8"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    text = refusal(tmp_path / name)
    assert message in text
    assert str(tmp_path / name) in text


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder without files in it; give a file" in refusal(tmp_path / "folder.csv")
    write_questions(EXPECTED, tmp_path / "folder.csv" / "fit.parquet")
    assert "is a folder with fit.parquet in it; give a file" in refusal(tmp_path / "folder.csv")


def test_folder_names_are_not_taken_for_columns(tmp_path):
    (tmp_path / "subject=wrong").mkdir()
    write_questions(EXPECTED, tmp_path / "subject=wrong" / "q.parquet")
    assert read_questions(tmp_path / "subject=wrong" / "q.parquet")[0] == EXPECTED


def test_unknown_ways_to_treat_bad_rows(tmp_path):
    with pytest.raises(ConfigError, match="on_bad_row is 'ignore'; give one of 'refuse', 'drop'"):
        read_questions(write_lines(tmp_path / "q.jsonl", SKY), on_bad_row="ignore")


def test_a_question_checks_itself():
    with pytest.raises(DataFormatError, match="1 options; give 2 to 26"):
        Question(id="x", question="?", choices=("a",), answer=0)
    with pytest.raises(DataFormatError, match="answer 2 is not an option's index; give 0 to 1"):
        Question(id="x", question="?", choices=("a", "b"), answer=2)


# --- duplicates and contradictions --------------------------------------------------------------------------


def test_duplicates_are_kept_once_and_counted(tmp_path):
    spaced = SKY | {
        "id": "c",
        "question": "  What  colour is\u00a0the sky? ",
        "choices": ["blue ", "red"],
        "answer": 0,
    }
    questions, report = read_questions(write_lines(tmp_path / "q.jsonl", SKY, SNOW, SKY, spaced))
    assert questions == EXPECTED
    assert (report.n_rows, report.n_kept, report.n_duplicates, report.n_dropped) == (4, 2, 2, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many mW is that?", "How many MW is that?"),
        ("How much is 2\u00b3?", "How much is 23?"),
        ("Is Bb the genotype?", "Is BB the genotype?"),
        ("What is \u2460?", "What is 1?"),
        ("What does \u00b5 mean?", "What does \u03bc mean?"),
        ("Is it so?", "Is it so"),
    ],
)
@pytest.mark.parametrize("answers", [(0, 0), (0, 1)])
def test_texts_that_differ_in_case_or_compatibility_forms_are_different_questions(
    tmp_path, one, other, answers
):
    rows = [
        SKY | {"id": str(i), "question": text, "answer": answer}
        for i, (text, answer) in enumerate(zip((one, other), answers, strict=True))
    ]
    questions, report = read_questions(write_lines(tmp_path / "q.jsonl", *rows))
    assert ([question.question for question in questions], report.n_duplicates) == ([one, other], 0)


def test_composed_and_decomposed_letters_are_the_same(tmp_path):
    rows = [SKY | {"id": str(i), "question": text} for i, text in enumerate(("caf\u00e9?", "cafe\u0301?"))]
    assert read_questions(write_lines(tmp_path / "q.jsonl", *rows))[1].n_duplicates == 1


def test_the_same_text_with_other_options_is_another_question(tmp_path):
    other = SKY | {"id": "c", "choices": ["green", "blue"]}
    questions, report = read_questions(write_lines(tmp_path / "q.jsonl", SKY, other))
    assert (len(questions), report.n_duplicates) == (2, 0)


def test_contradictory_keys_make_every_row_of_the_group_bad(tmp_path):
    contrary = SKY | {"id": "c", "choices": ["blue", "red"], "answer": 1}
    path = write_lines(tmp_path / "q.jsonl", SKY, SNOW, contrary, SKY | {"id": "d"})
    message = refusal(path)
    assert "3 of 4 rows are bad" in message
    assert "lines 1, 3, 4, answer: the same question and options as line 1, and 3 rows" in message
    questions, report = read_questions(path, on_bad_row="drop")
    assert [question.id for question in questions] == ["b"]
    assert (report.n_dropped, report.n_duplicates) == (3, 0)


@given(st.text())
def test_normalizing_twice_changes_nothing(text):
    once = normalize_text(text)
    assert normalize_text(once) == once
    assert once == once.strip()


def test_normalized_texts():
    assert normalize_text(" Straße\t№ ½ ") == normalize_text("STRASSE No 1⁄2")
    assert normalize_text("x²") != normalize_text("x3")


# --- fingerprint --------------------------------------------------------------------------------------------


def test_the_fingerprint_sees_content_and_not_order():
    original = fingerprint(EXPECTED)
    assert fingerprint(reversed(EXPECTED)) == original
    changed = Question(id="b", question="What colour is snow?", choices=("white", "black", "green"), answer=1)
    assert fingerprint([EXPECTED[0], changed]) != original
    assert fingerprint(EXPECTED[:1]) != original


# --- hub data sets ------------------------------------------------------------------------------------------


def hub(monkeypatch, answer):
    """Put a stand-in for the hub in place; returns the list of calls that it gets."""
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(*names, split):
        calls.append((names, split))
        return answer(datasets)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_data_set(monkeypatch):
    calls = hub(monkeypatch, lambda datasets: datasets.Dataset.from_list([SKY, SNOW]))
    questions, report = read_questions("hf://owner/name/config:test")
    assert questions == EXPECTED
    assert calls == [(("owner/name", "config"), "test")]
    assert (report.source, report.unit) == ("hf://owner/name/config:test", "row")


def test_a_hub_data_set_with_several_splits_needs_one_named(monkeypatch):
    def both(datasets):
        part = datasets.Dataset.from_list([SKY, SNOW])
        return datasets.DatasetDict({"train": part, "test": part})

    calls = hub(monkeypatch, both)
    assert "has the splits train, test; add one, as in hf://owner/name:train" in refusal("hf://owner/name")
    assert calls == [(("owner/name",), None)]


def test_the_only_split_of_a_hub_data_set_needs_no_name(monkeypatch):
    hub(monkeypatch, lambda d: d.DatasetDict({"test": d.Dataset.from_list([SKY, SNOW])}))
    assert read_questions("hf://owner/name")[0] == EXPECTED


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch):
    def offline(_):
        raise ConnectionError("no route to host")

    hub(monkeypatch, offline)
    message = refusal("hf://owner/name:test")
    assert "hf://owner/name:test: can't be loaded (ConnectionError: no route to host)" in message
    assert "give its path" in message


@pytest.mark.parametrize("name", ["hf://name", "hf://", "hf://owner//config", "hf://a/b/c/d"])
def test_malformed_hub_names(name):
    assert "write hf://owner/name[/config][:split]" in refusal(name)
