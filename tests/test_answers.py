"""What answers mean: told by the whole file, and refused where it can't be told or looks shifted by one."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calib_core.data.questions import read_questions
from calib_core.errors import DataFormatError
from calib_core.predictions.files import read_predictions
from calib_core.predictions.table import Predictions

FRUIT = ("apple", "pear", "plum", "fig")
RIGHT = [0, 1, 2, 3] * 6
"""The right options of a file, from 0: of 24 questions none is answered 0 by a chance of 0.001."""


def write_questions(path, answers, choices=FRUIT):
    rows = [
        {"question": f"Which fruit is number {i}?", "choices": choices, "answer": answer}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers_of(path, **options):
    return [question.answer for question in read_questions(path, **options)[0]]


def refusal(path, **options):
    with pytest.raises(DataFormatError) as caught:
        read_questions(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "form",
    [
        int,
        float,
        str,
        lambda i: f" {i}.0",
        lambda i: "ABCD"[i],
        lambda i: "abcd"[i],
        lambda i: FRUIT[i],
        lambda i: f" {FRUIT[i]} ",
    ],
    ids=["integers", "floats", "digits", "floats as text", "letters", "small letters", "texts", "blanks"],
)
def test_answers_are_read_in_every_form_that_is_unambiguous(tmp_path, form):
    path = write_questions(tmp_path / "q.jsonl", [form(i) for i in RIGHT])
    assert answers_of(path) == RIGHT


def test_a_column_of_floats_or_texts_is_read_from_csv_and_parquet_as_well(tmp_path):
    texts = [f"Which fruit is number {i}?" for i in range(len(RIGHT))]
    rows = [f"{text},{','.join(FRUIT)},{'ABCD'[right]}\n" for text, right in zip(texts, RIGHT, strict=True)]
    (tmp_path / "q.csv").write_text("question,choice0,choice1,choice2,choice3,answer\n" + "".join(rows))
    assert answers_of(tmp_path / "q.csv") == RIGHT
    columns = {"question": texts, "choices": [FRUIT] * len(RIGHT), "answer": pa.array(RIGHT, pa.float64())}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    assert answers_of(tmp_path / "q.parquet") == RIGHT


def test_a_number_that_is_also_an_options_text_is_told_by_the_other_rows(tmp_path):
    choices = ("3", "2", "1", "0")
    ambiguous = write_questions(tmp_path / "q.jsonl", [str(i) for i in RIGHT], choices)
    message = refusal(ambiguous)
    assert "it is ambiguous whether its values are the numbers of the right options or their texts" in message
    assert "and they mean different ones; choose the preset native-0 or native-1" in message
    assert answers_of(ambiguous, preset="native-0") == RIGHT
    rows = [json.loads(line) for line in ambiguous.read_text().splitlines()]
    rows += [{"question": "Which fruit?", "choices": FRUIT, "answer": "fig"}]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert answers_of(tmp_path / "told.jsonl") == [*(3 - i for i in RIGHT), 3]


@pytest.mark.parametrize("form", [int, float, str], ids=["integers", "floats", "digits"])
@pytest.mark.parametrize("on_bad_row", ["refuse", "drop"])
def test_answers_that_count_from_one_are_refused_with_that_word(tmp_path, form, on_bad_row):
    path = write_questions(tmp_path / "q.jsonl", [form(i + 1) for i in RIGHT])
    message = refusal(path, on_bad_row=on_bad_row)
    assert "column answer looks 1-based (counted from 1): no answer is 0, and 6 are the number of" in message
    assert "(first: line 4)" in message
    assert "subtract 1 from each, or choose the preset native-0 or native-1" in message
    assert "drop" not in message
    assert answers_of(path, preset="native-1") == RIGHT


def test_answers_from_one_are_seen_where_no_row_shows_the_highest_number(tmp_path):
    shown = [i for i in RIGHT if i < 3]
    path = write_questions(tmp_path / "q.jsonl", [i + 1 for i in shown])
    message = refusal(path)
    assert (
        "looks 1-based (counted from 1): no answer is 0, and counted from 0 that has a chance of" in message
    )
    assert answers_of(path, preset="native-1") == shown
    assert answers_of(path, preset="native-0") == [i + 1 for i in shown]
    few = write_questions(tmp_path / "few.jsonl", [1, 2, 2, 1])
    assert answers_of(few) == [1, 2, 2, 1]


def test_single_zeros_do_not_hide_that_the_others_count_from_one(tmp_path):
    path = write_questions(tmp_path / "q.jsonl", [0, *(i + 1 for i in RIGHT)])
    message = refusal(path, on_bad_row="drop")
    assert "looks 1-based (counted from 1): 1 of 25 answers are 0, and 6 are the number of" in message


def test_single_answers_out_of_range_are_bad_rows_and_no_pattern(tmp_path):
    path = write_questions(tmp_path / "q.jsonl", [4, 4, *RIGHT])
    message = refusal(path)
    assert "lines 1, 2, answer: 4 is out of range; give 0 to 3" in message
    assert message.count("out of range") == 1
    assert answers_of(path, on_bad_row="drop") == RIGHT


def test_labels_of_a_predictions_table_that_count_from_one_are_refused(tmp_path):
    rows = [{"id": str(i), "label": right + 1, "probs": [0.25] * 4} for i, right in enumerate(RIGHT)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataFormatError, match=r"column label looks 1-based .*; subtract 1 from each$"):
        read_predictions(tmp_path / "t.jsonl")


def test_a_complaint_that_many_rows_share_is_made_once_with_their_count(tmp_path):
    path = write_questions(tmp_path / "q.jsonl", ["B"] * 10 + [None] * 300)
    message = refusal(path)
    assert "lines 11, 12, 13, 14, 15 and 295 more, answer: no answer; leave the row out" in message
    assert "300 of 310 rows are bad" in message
    assert len(message.splitlines()) == 3


def test_a_table_made_from_arrays_says_a_shared_complaint_once_too():
    with pytest.raises(DataFormatError) as caught:
        Predictions.from_probs([[0.5, 0.5]] * 5 + [[0.5, 0.7]] * 300, [0] * 305)
    message = str(caught.value)
    assert (
        "  rows 6, 7, 8, 9, 10 and 295 more, field 'probs': the options' probabilities sum to 1.2" in message
    )
    assert "300 problems" in message
    assert len(message.splitlines()) == 2
