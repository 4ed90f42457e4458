"""Published column layouts: each is recognised, converted rightly, and never confused with another one."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calib_core.data.folds import folds_from_files
from calib_core.data.layouts import LAYOUTS, preset_names
from calib_core.data.questions import Question, read_questions
from calib_core.errors import ConfigError, DataFormatError

LABELLED = {"text": ["iron", "wool", "ice"], "label": ["A", "B", "C"]}
NESTED = {
    "stem": "Which one melts in the hand?",
    "choices": [
        {"label": "A", "text": "iron"},
        {"label": "B", "text": "wool"},
        {"label": "C", "text": "ice"},
    ],
}
MELTS = {"id": "m", "question": "Which one melts in the hand?"}
MEDICAL = {
    "question": "Which is a bone?",
    "opa": "iris",
    "opb": "ulna",
    "opc": "skin",
    "opd": "lung",
    "id": "m",
}
TSV = (
    "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"
    "m\tWhich one melts in the hand?\t(A) iron (B) wool (C) ice\tWhich ... (A) iron (B) wool (C) ice\tC\n"
)
SCIQ = {
    "question": "Which gas do plants take in?",
    "distractor3": "argon",
    "distractor1": "helium",
    "distractor2": "neon",
    "correct_answer": "carbon dioxide",
    "support": "Plants take in carbon dioxide.",
}


def write(path, *rows):
    """Rows as JSON lines, or a text as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def refusal(path, **options):
    with pytest.raises(DataFormatError) as caught:
        read_questions(path, **options)
    return str(caught.value)


SAMPLES = {
    # name of a published form: file name, rows, layout, options, answer, subject
    "MMLU, hub": (
        "q.jsonl",
        [{"question": "1 + 1?", "subject": "sums", "choices": ["0", "1", "2", "3"], "answer": 2}],
        ("native", "mmlu", ("0", "1", "2", "3"), 2, "sums"),
    ),
    "MMLU, csv without a header": (
        "easy_sums_test.csv",
        ['"1 + 1, in ""short""?",0,1,2,3,C\n', "2 + 2?,1,2,3,4,D\n"],
        ("mmlu-csv", "mmlu", ("0", "1", "2", "3"), 2, "easy_sums"),
    ),
    "MMLU, csv without a header, options that repeat the letters": (
        "q.csv",
        ["Which letter?,A,B,C,D,A\n"],
        ("mmlu-csv", "mmlu", ("A", "B", "C", "D"), 0, None),
    ),
    "MMLU, csv with a header": (
        "easy_sums_dev.csv",
        ["question,choice0,choice1,choice2,choice3,answer\n1 + 1?,0,1,2,3,2\n"],
        ("numbered", "mmlu", ("0", "1", "2", "3"), 2, "easy_sums"),
    ),
    "MMLU, csv with a header of letters": (
        "q.csv",
        ["question,A,B,C,D,answer,subject\n1 + 1?,0,1,2,3,C,sums\n"],
        ("lettered", "mmlu", ("0", "1", "2", "3"), 2, "sums"),
    ),
    "ARC, hub": (
        "q.jsonl",
        [MELTS | {"choices": LABELLED, "answerKey": "C"}],
        ("labelled", "arc", None, 2, None),
    ),
    "ARC, numeric keys": (
        "q.jsonl",
        [MELTS | {"choices": LABELLED | {"label": ["1", "2", "3"]}, "answerKey": "3"}],
        ("labelled", "arc", None, 2, None),
    ),
    "ARC, original": (
        "q.jsonl",
        [{"id": "m", "question": NESTED, "answerKey": "B"}],
        ("nested", "arc", None, 1, None),
    ),
    "CommonsenseQA, hub": (
        "q.jsonl",
        [MELTS | {"question_concept": "melting", "choices": LABELLED, "answerKey": "A"}],
        ("labelled", "commonsenseqa", None, 0, None),
    ),
    "CommonsenseQA, original": (
        "q.jsonl",
        [{"answerKey": "C", "id": "m", "question": NESTED | {"question_concept": "melting"}}],
        ("nested", "commonsenseqa", None, 2, None),
    ),
    "OpenBookQA, hub": (
        "q.jsonl",
        [{"id": "m", "question_stem": MELTS["question"], "choices": LABELLED, "answerKey": "C"}],
        ("openbookqa-hub", "openbookqa", None, 2, None),
    ),
    "OpenBookQA, original": (
        "q.jsonl",
        [{"id": "m", "question": NESTED, "answerKey": "C"}],
        ("nested", "openbookqa", None, 2, None),
    ),
    "OpenBookQA, tsv": ("q.tsv", [TSV], ("openbookqa-tsv", "openbookqa", None, 2, None)),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_published_form_is_recognised_and_converted(tmp_path, name):
    file_name, rows, (layout, preset, choices, answer, subject) = SAMPLES[name]
    path = write(tmp_path / file_name, *rows)
    for chosen in ("auto", preset, layout):
        questions, report = read_questions(path, preset=chosen)
        question = questions[0]
        assert report.layout == layout
        assert question.choices == (choices or ("iron", "wool", "ice"))
        assert question.answer == answer
        assert question.subject == subject
        assert report.n_rows == len(questions)
    if choices is None:
        assert (question.id, question.question) == ("m", "Which one melts in the hand?")


def test_the_hubs_parquet_files_have_the_same_layouts(tmp_path):
    rows = [MELTS | {"choices": LABELLED, "answerKey": "C"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "arc.parquet")
    (question,), report = read_questions(tmp_path / "arc.parquet")
    assert (report.layout, question.choices[question.answer]) == ("labelled", "ice")


def test_sciq_gets_an_order_that_does_not_give_the_answer_away(tmp_path):
    rows = [SCIQ | {"question": f"Question {i}?"} for i in range(400)]
    questions, report = read_questions(write(tmp_path / "q.jsonl", *rows))
    assert report.layout == "sciq"
    for question in questions:
        assert sorted(question.choices) == ["argon", "carbon dioxide", "helium", "neon"]
        assert question.choices[question.answer] == "carbon dioxide"
    counts = [sum(question.answer == place for question in questions) for place in range(4)]
    assert min(counts) > 70
    again = read_questions(write(tmp_path / "r.jsonl", *reversed(rows)))[0]
    assert {question.question: question.choices for question in again} == {
        question.question: question.choices for question in questions
    }


# --- MedMCQA: `cop` counts from 1 in the original files and from 0 on the hub -------------------------------


def medical(tmp_path, *cops):
    rows = [MEDICAL | {"question": f"Bone {i}?", "id": str(i), "cop": cop} for i, cop in enumerate(cops)]
    return write(tmp_path / "q.json", *rows)


@pytest.mark.parametrize(
    ("cops", "answers"),
    [((1, 2, 4), [0, 1, 3]), ((0, 1, 3), [0, 1, 3]), ((4,), [3]), ((0,), [0]), (("1", "4"), [0, 3])],
)
def test_medmcqa_is_told_by_its_numbers(tmp_path, cops, answers):
    questions, report = read_questions(medical(tmp_path, *cops))
    assert report.layout == "medmcqa"
    assert [question.answer for question in questions] == answers
    assert questions[0].choices == ("iris", "ulna", "skin", "lung")


def test_medmcqa_keeps_its_subjects(tmp_path):
    path = write(
        tmp_path / "q.jsonl", MEDICAL | {"cop": 4, "subject_name": "Anatomy", "choice_type": "multi"}
    )
    assert read_questions(path)[0][0].subject == "Anatomy"


@pytest.mark.parametrize(
    ("cops", "message"), [((1, 2, 3), "holds neither 0 nor 4"), ((2, 0, 4), "is 0 in line 2 and 4 in line 3")]
)
def test_medmcqa_that_cannot_be_told_is_refused(tmp_path, cops, message):
    text = refusal(medical(tmp_path, *cops))
    assert message in text
    assert "choose the preset medmcqa-0 or medmcqa-1" in text


@pytest.mark.parametrize(("preset", "answers"), [("medmcqa-0", [1, 2, 3]), ("medmcqa-1", [0, 1, 2])])
def test_medmcqa_with_the_count_given(tmp_path, preset, answers):
    questions, _ = read_questions(medical(tmp_path, 1, 2, 3), preset=preset)
    assert [question.answer for question in questions] == answers


def test_medmcqa_numbers_out_of_range(tmp_path):
    assert "line 2, cop: 4 is out of range; give 0 to 3" in refusal(
        medical(tmp_path, 0, 4), preset="medmcqa-0"
    )
    assert "line 2, cop: 7 is out of range; give 1 to 4" in refusal(medical(tmp_path, 4, 7))
    assert "line 2, cop: 'b' is not a whole number" in refusal(medical(tmp_path, 4, "b"))


# --- missing answers, wrong shapes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("q.jsonl", [MEDICAL | {"cop": -1}], "line 1, cop: no answer"),
        ("q.jsonl", [MELTS | {"choices": LABELLED, "answerKey": ""}], "line 1, answerKey: no answer"),
        ("q.jsonl", [MELTS | {"choices": LABELLED}], "no column 'answerKey'"),
        ("q.jsonl", [{"id": "m", "question": NESTED}], "no column 'answerKey'"),
        ("q.jsonl", [MELTS | {"choices": ["a", "b"]}], "no column 'answer'"),
        (
            "q.csv",
            ["question,choice0,choice1,answer\nWhy?,a,b,\n"],
            "line 2, answer: no answer",
        ),
        ("q.jsonl", [SCIQ | {"correct_answer": ""}], "line 1, correct_answer: no answer"),
        ("q.tsv", [TSV.replace("\tC\n", "\t\n")], "line 2, Answer Key: no answer"),
    ],
)
def test_missing_answers(tmp_path, name, rows, message):
    assert message in refusal(write(tmp_path / name, *rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (MELTS | {"choices": LABELLED, "answerKey": "3"}, "answerKey: '3' is not one of the labels A, B, C"),
        (MELTS | {"choices": LABELLED | {"label": ["A", "A", "B"]}, "answerKey": "A"}, "'A' is not one of"),
        (MELTS | {"choices": LABELLED | {"label": ["A"]}, "answerKey": "A"}, "3 texts and 1 labels"),
        (MELTS | {"choices": {"text": ["x", "y"]}, "answerKey": "A"}, "choices: not of the form"),
        ({"question": {"stem": "Why?"}, "answerKey": "A"}, "question: not of the form"),
        ({"question": NESTED | {"stem": None}, "answerKey": "A"}, "question: missing"),
    ],
)
def test_rows_that_do_not_have_the_shape_of_their_layout(tmp_path, row, message):
    assert message in refusal(write(tmp_path / "q.jsonl", row))


def test_openbookqa_options_marked_twice(tmp_path):
    text = TSV + "n\tWhat?\t(A) x (B) y (D) z (D) w\t\tA\n"
    assert "line 3, Choices: marked with A, B, D, D" in refusal(write(tmp_path / "q.tsv", text))


def test_an_empty_option_in_the_middle_is_no_shorter_list(tmp_path):
    text = "question,choice0,choice1,choice2,answer\nWhy?,a,,c,0\n"
    assert "line 2, choice0: option 1: empty" in refusal(write(tmp_path / "q.csv", text))


# --- unknown and ambiguous ----------------------------------------------------------------------------------


def test_unknown_columns_are_shown_beside_what_is_expected(tmp_path):
    message = refusal(write(tmp_path / "q.jsonl", {"prompt": "?", "options": ["a"], "label": 0}))
    assert "the columns (prompt, options, label) match no known layout" in message
    for layout in LAYOUTS:
        assert (f"  {layout.name}: {layout.expects}" in message) == bool(layout.presets), layout.name


def test_a_wrong_preset_shows_what_it_expects(tmp_path):
    message = refusal(
        write(tmp_path / "q.jsonl", MELTS | {"choices": LABELLED, "answerKey": "A"}), preset="mmlu"
    )
    assert "the columns (id, question, choices, answerKey) match no known layout" in message
    assert "  lettered:" in message
    assert "medmcqa" not in message


def test_ambiguous_columns_are_refused_until_a_layout_is_named(tmp_path):
    row = {"question": "Why?", "A": "x", "B": "y", "choices": ["y", "x"], "answer": 0}
    path = write(tmp_path / "q.jsonl", row)
    message = refusal(path)
    assert "match several layouts; choose one with `preset`" in message
    assert "  native:" in message
    assert "  lettered:" in message
    assert read_questions(path, preset="native")[0][0].choices == ("y", "x")


def test_unknown_presets(tmp_path):
    with pytest.raises(ConfigError, match=r"preset is 'mmlo'; give one of auto, arc, "):
        read_questions(write(tmp_path / "q.jsonl", MELTS), preset="mmlo")
    assert {"mmlu", "medmcqa", "openbookqa", "arc", "commonsenseqa", "sciq", "native"} < set(preset_names())


# --- real files, where they are at hand ---------------------------------------------------------------------


def real_file(name):
    folder = os.environ.get("CALIB_TEST_DATA")
    if not folder:
        pytest.skip("CALIB_TEST_DATA names no folder with published question sets")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize(
    ("name", "layout", "n_kept", "n_dropped"),
    [
        ("raw/medmcqa_dev.json", "medmcqa", 49, 1),
        ("raw/openbookqa_main_test.tsv", "openbookqa-tsv", 50, 0),
        ("raw/arc_challenge_hf_schema.jsonl", "labelled", 35, 0),
        ("raw/arc_easy_numeric_key_one_row.jsonl", "labelled", 1, 0),
        ("raw/commonsenseqa_dev_rand_split.jsonl", "nested", 47, 3),
        ("raw/mmlu_csv/professional_law_test.csv", "mmlu-csv", 12, 0),
        ("raw/mmlu_header_csv/abstract_algebra_test.csv", "numbered", 19, 0),
        ("mmlu.test.jsonl.gz", "native", 13927, 9),
    ],
)
def test_real_files(name, layout, n_kept, n_dropped):
    _, report = read_questions(real_file(name), on_bad_row="drop")
    assert (report.layout, report.n_kept, report.n_dropped) == (layout, n_kept, n_dropped)


def test_openbookqas_official_train_and_test_share_fourteen_questions():
    parts = [
        read_questions(real_file(f"openbookqa.{name}.jsonl.gz"), on_bad_row="drop")[0]
        for name in ("train", "validation", "test")
    ]
    from_test = folds_from_files(*parts).overlaps[0]
    assert (from_test.dropped_from, from_test.held_by, from_test.n_same_options) == ("fit", "test", 14)


def test_headerless_and_headed_csv_of_one_real_file_agree():
    one, _ = read_questions(real_file("raw/mmlu_csv/abstract_algebra_test.csv"))
    other, _ = read_questions(real_file("raw/mmlu_header_csv/abstract_algebra_test.csv"))
    keyed: dict[str, Question] = {question.question: question for question in other}
    shared = [question for question in one if question.question in keyed]
    assert shared
    assert all(keyed[question.question] == question for question in shared)
