"""Other programs' predictions: read as they write them, and refused if a log-probability is missing."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib_core.data.questions import Question, write_questions
from calib_core.errors import DataFormatError
from calib_core.predictions.files import read_predictions
from calib_core.steps.convert import ConvertConfig, convert_predictions
from calib_pipelines.commands import main as cli


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lm_eval_row(
    number: int = 0, scores: tuple[float, ...] = (-2.5, -0.5, -4.0), **changes: Any
) -> dict[str, Any]:
    """A row as lm-eval 0.4 writes it: log-likelihoods as text, arguments by name, the target as text."""
    letters = "ABCDE"[: len(scores)]
    row = {
        "doc_id": number,
        "doc": {
            "question": f"What is {number}?",
            "choices": list(letters),
            "answer": 1,
            "subject": "counting",
        },
        "target": "1",
        "arguments": {
            f"gen_args_{i}": {"arg_0": f"What is {number}?\nAnswer:", "arg_1": f" {letter}"}
            for i, letter in enumerate(letters)
        },
        "resps": [[[str(score), "False"]] for score in scores],
        "filtered_resps": [[str(score), "False"] for score in scores],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": "0" * 64,
        "acc": 1.0 if max(scores) == scores[1] else 0.0,
    }
    return {**row, **changes}


def vertex_row(name: Any = "q0", prediction: Any = None, **instance: Any) -> dict[str, Any]:
    given = {"id": name, "prompt": "Answer:", "choices": ["x", "y", "z"], "answer": 2, **instance}
    return {"instance": given, "prediction": prediction or {"logprobs": [-1.0, -2.0, -0.7]}}


def gemini_row(candidates: list[tuple[str, float]], **fields: Any) -> dict[str, Any]:
    listed = [{"token": token, "tokenId": i, "logProbability": p} for i, (token, p) in enumerate(candidates)]
    response = {"candidates": [{"logprobsResult": {"topCandidates": [{"candidates": listed}]}}]}
    return {"key": "q0", "status": "", "request": {"contents": []}, "response": response, **fields}


def test_lm_eval_samples_are_read_with_ragged_options(tmp_path):
    rows = [lm_eval_row(0), lm_eval_row(1, (-1.0, -3.0)), lm_eval_row(2, (-9.0, -1.0, -2.0, -3.0, -4.0))]
    table = read_predictions(write(tmp_path / "samples_count_2026-11-24T10-00-00.000001.jsonl", rows))
    assert table.ids == ("0", "1", "2")
    assert table.labels.tolist() == [1, 1, 1]
    assert table.n_options.tolist() == [3, 2, 5]
    assert table.subjects == ("counting",) * 3
    expected = np.exp([-2.5, -0.5, -4.0]) / np.exp([-2.5, -0.5, -4.0]).sum()
    np.testing.assert_allclose(table.probs()[0, :3], expected, rtol=1e-6)
    assert table.correct().tolist() == [1, 0, 1]


def test_lm_eval_numbers_lists_and_missing_filters_are_read(tmp_path):
    row = lm_eval_row()
    row["arguments"] = [["q", " A"], ["q", " B"], ["q", " C"]]
    row["resps"] = [[[-2.5, False]], [[-0.5, True]], [[-4.0, False]]]
    del row["filtered_resps"], row["acc"]
    table = read_predictions(write(tmp_path / "samples.jsonl", [row]))
    assert table.top().tolist() == [1]


def test_unconditional_scores_of_mutual_information_are_left_out(tmp_path):
    row = lm_eval_row(scores=(-2.5, -0.5, -4.0))
    row["arguments"] |= {f"gen_args_{3 + i}": {"arg_0": "", "arg_1": f" {x}"} for i, x in enumerate("ABC")}
    row["filtered_resps"] = row["filtered_resps"] + [["-0.1", "False"]] * 3
    table = read_predictions(write(tmp_path / "samples.jsonl", [row]))
    assert table.n_options.tolist() == [3]
    np.testing.assert_allclose(table.log_probs()[0, 1] - table.log_probs()[0, 0], 2.0, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "texts", "acc", "expected"),
    [
        pytest.param("yes", ("no", "yes"), None, 1, id="text"),
        pytest.param("1", ("2", "1"), 1.0, 1, id="number and text, acc tells"),
        pytest.param("0", ("1", "0"), 0.0, 0, id="number and text, the top one is wrong"),
    ],
)
def test_lm_eval_target_is_a_number_or_a_text(tmp_path, target, texts, acc, expected):
    row = lm_eval_row(scores=(-2.0, -1.0), target=target)
    row["arguments"] = [["q", f" {text}"] for text in texts]
    row["acc"] = acc
    assert read_predictions(write(tmp_path / "s.jsonl", [row])).labels.tolist() == [expected]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"filtered_resps": ["Paris"]}, "filtered_resps.*output_type multiple_choice", id="text"),
        pytest.param({"filtered_resps": [["-inf", "False"]] * 3}, "no finite log-likelihood", id="infinite"),
        pytest.param({"filtered_resps": [["nan", "False"]] * 3}, "no finite log-likelihood", id="nan"),
        pytest.param(
            {"filtered_resps": [["-1", "False"]] * 2}, "3 requests but 2 responses", id="one missing"
        ),
        pytest.param({"filtered_resps": None}, "filtered_resps", id="null"),
        pytest.param({"target": "4"}, "names no option", id="target beyond"),
        pytest.param({"target": "[0, 2]"}, "names no option", id="several targets"),
        pytest.param({"acc": 0.0}, "doesn't agree with acc 0", id="acc against target"),
        pytest.param({"acc": 0.4}, "neither 0 nor 1", id="several right options"),
        pytest.param({"arguments": None}, "context and continuation", id="no arguments"),
        pytest.param({"doc_id": None}, "doc_id", id="no id"),
    ],
)
def test_bad_lm_eval_rows_are_refused_by_row_and_field(tmp_path, changes, message):
    path = write(tmp_path / "samples.jsonl", [lm_eval_row(0), lm_eval_row(1, **changes)])
    with pytest.raises(
        DataFormatError, match=f"(?s)samples.jsonl: 1 of 2 rows are bad, .*line 2, .*{message}"
    ):
        read_predictions(path)


def test_number_that_may_be_another_options_text_is_refused(tmp_path):
    row = lm_eval_row(scores=(-2.0, -1.0, -0.5), target="1", acc=0.0)
    row["arguments"] = [["q", " 1"], ["q", " 2"], ["q", " 3"]]
    with pytest.raises(DataFormatError, match="may be an option's number or another one's text"):
        read_predictions(write(tmp_path / "s.jsonl", [row]))


def test_repeated_documents_are_refused(tmp_path):
    rows = [lm_eval_row(0), lm_eval_row(0)]
    with pytest.raises(DataFormatError, match="line 2, id: '0' is also the id of line 1"):
        read_predictions(write(tmp_path / "samples.jsonl", rows))


def test_vertex_output_is_read_from_a_file_without_an_ending(tmp_path):
    rows = [
        vertex_row("q0"),
        vertex_row(7, {"logprobs": {" A": -0.2, " B": -2.0, "The": -3.0}}, choices=["x", "y"], answer=0),
    ]
    table = read_predictions(write(tmp_path / "prediction.results-00000-of-00002", rows))
    assert table.ids == ("q0", "7")
    assert table.labels.tolist() == [2, 0]
    assert table.n_options.tolist() == [3, 2]
    np.testing.assert_allclose(
        table.probs()[1, 0], math.exp(-0.2) / (math.exp(-0.2) + math.exp(-2)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            vertex_row(prediction={"logprobs": {"A": -0.1, "B": -3.0}}),
            "prediction.logprobs.*no value for option C",
        ),
        (
            vertex_row(prediction={"logprobs": {"A": -0.1, " A": -3.0}}),
            "no value for option B, C, only for A",
        ),
        (vertex_row(prediction={"logprobs": {"AB": -0.1, "B": -1, "C": -2}}), "no value for option A"),
        (vertex_row(prediction={"logprobs": {"A": -0.1, "B": -9999.0, "C": -2}}), "not among the top"),
        (vertex_row(prediction={"logprobs": {"A": -0.1}}, choices=None), "number of options is needed"),
        (vertex_row(prediction={"logprobs": [-0.1, -3.0]}), "2 values for 3 options"),
        (vertex_row(prediction={"logprobs": [-0.1, None, -3.0]}), "logprobs: "),
        (vertex_row(prediction={"logprobs": [0.5, 2.0, 1.0]}), "are these logits"),
        (vertex_row(prediction=[-0.1, -3.0, -4.0]), "one of logits, logprobs, probs"),
        (
            vertex_row(prediction={"logits": [1.0, 2.0], "probs": [0.5, 0.5]}),
            "one of logits, logprobs, probs",
        ),
        (vertex_row(prediction={"text": "A"}), "one of logits, logprobs, probs"),
        (vertex_row(None), "id: "),
        ({**vertex_row(), "error": {"code": 3, "message": "timeout"}}, "error: .*timeout"),
        (
            gemini_row([("A", -0.1), ("B", -2.0)], choices=["x", "y", "z"]),
            "no value for option C, only for A, B",
        ),
        (gemini_row([], choices=["x", "y"], response={"candidates": [{}]}), "responseLogprobs"),
        (gemini_row([("A", -0.1)], status="Bad Request"), "status: .*Bad Request"),
    ],
)
def test_bad_vertex_rows_are_refused_by_row_and_field(tmp_path, row, message):
    with pytest.raises(DataFormatError, match=f"(?s)line 1, .*{message}"):
        read_predictions(write(tmp_path / "predictions_0001.jsonl", [row]))


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.parquet"
    asked = [
        Question(id=f"q{i}", question=f"{i}?", choices=("x", "y", "z"), answer=i, subject="s")
        for i in range(3)
    ]
    write_questions(asked, path)
    return str(path)


def test_questions_give_answers_and_numbers_of_options(tmp_path, questions):
    rows = [{"key": f"q{i}", "prediction": {"logprobs": {"A": -1.0, "B": -1.5, "C": -2.0}}} for i in range(2)]
    source = write(tmp_path / "results.jsonl", [*rows, {**rows[0], "key": "q2"}])
    result = convert_predictions(ConvertConfig(questions=questions), source, tmp_path / "t.parquet")
    assert result == {"n": 3, "n_labelled": 3, "options": {"3": 3}}
    table = read_predictions(tmp_path / "t.parquet")
    assert table.labels.tolist() == [0, 1, 2]
    assert table.subjects == ("s",) * 3


def test_gemini_output_is_read_with_its_questions(tmp_path, questions):
    row = gemini_row([("B", -0.2), ("A", -2.0), ("The", -3.0), ("C", -4.0)])
    source = write(tmp_path / "predictions.jsonl", [row])
    convert_predictions(ConvertConfig(questions=questions), source, tmp_path / "t.parquet")
    table = read_predictions(tmp_path / "t.parquet")
    assert (table.top().tolist(), table.labels.tolist()) == ([1], [0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "other", "prediction": {"logprobs": [-1.0, -2.0]}}, "'other' is not among the questions"),
        ({"key": "q0", "prediction": {"logprobs": [-1.0, -2.0]}}, "2 values for 3 options"),
        (gemini_row([("A", -0.1), ("B", -3.0)], key="other"), "'other' is not among the questions"),
        (vertex_row("q1"), "2, but the question's answer is 1"),
    ],
)
def test_rows_that_do_not_fit_their_questions_are_refused(tmp_path, questions, row, message):
    with pytest.raises(DataFormatError, match=f"line 1, .*{message}"):
        convert_predictions(
            ConvertConfig(questions=questions), write(tmp_path / "r.jsonl", [row]), tmp_path / "t.parquet"
        )
    assert not (tmp_path / "t.parquet").exists()


def test_folder_of_lm_eval_tasks_becomes_one_table(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for task, n in (("arc_easy", 2), ("arc_challenge", 3)):
        rows = [lm_eval_row(i) for i in range(n)]
        write(folder / f"samples_{task}_2026-11-24T10-00-00.000001.jsonl", rows)
    (folder / "results_2026-11-24T10-00-00.000001.json").write_text("{}")
    convert_predictions(ConvertConfig(), folder, tmp_path / "t.parquet")
    ids = read_predictions(tmp_path / "t.parquet").ids
    assert ids == ("arc_challenge/0", "arc_challenge/1", "arc_challenge/2", "arc_easy/0", "arc_easy/1")
    write(folder / "samples_arc_easy_2026-11-25T10-00-00.000001.jsonl", [lm_eval_row(0)])
    with pytest.raises(DataFormatError, match="several sample files of one task"):
        convert_predictions(ConvertConfig(), folder, tmp_path / "t.parquet")


def test_folder_of_a_vertex_job_becomes_one_table(tmp_path):
    folder = tmp_path / "prediction-model-2026_11_24"
    folder.mkdir()
    write(folder / "prediction.results-00000-of-00002", [vertex_row("q0")])
    write(folder / "prediction.results-00001-of-00002", [vertex_row("q1")])
    (folder / "prediction.errors_stats-00000-of-00001").touch()
    convert_predictions(ConvertConfig(), folder, tmp_path / "t.parquet")
    assert read_predictions(tmp_path / "t.parquet").ids == ("q0", "q1")
    write(folder / "prediction.errors_stats-00000-of-00001", [{"error": {"code": 3}}])
    with pytest.raises(DataFormatError, match="instances failed, so their predictions are missing"):
        convert_predictions(ConvertConfig(), folder, tmp_path / "t.parquet")


DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("source", "ids", "labels"),
    [
        ("gemini", ("q0", "q1", "q2"), [0, 0, 0]),  # the prefix that was given, with the job's folder in it
        ("gemini/prediction-model-2026-02-03T04-05-06.789Z", ("q0", "q1", "q2"), [0, 0, 0]),
        ("gemini-parts", tuple(f"q{i}" for i in range(6)), [0] * 6),  # the third worker had nothing to do
        ("gemini-spaces.jsonl", ("q0",), [1]),
        ("gemini-python-names.jsonl", ("q0",), [0]),
        ("gemini-bigquery.jsonl", ("q1",), [0]),
        ("vertex", ("q0", "q1"), [2, 2]),
        ("vertex-key-field.jsonl", ("q0",), [1]),
        ("lm-eval", ("two_filters/0", "two_filters/1", "two_filters/2"), [0, 0, 0]),
        ("samples_underflow.jsonl", ("0",), [0]),
        ("logprobs-minus-infinity.jsonl", ("a",), [0]),
    ],
)
def test_forms_in_which_services_write(tmp_path, source, ids, labels):
    convert_predictions(ConvertConfig(), DATA / source, tmp_path / "t.parquet")
    table = read_predictions(tmp_path / "t.parquet")
    assert table.ids == ids
    assert table.labels.tolist() == labels
    assert np.isfinite(table.log_probs()[table.logits > -np.inf]).all()


def test_letters_with_and_without_a_space_are_one_answer():
    table = read_predictions(DATA / "gemini-spaces.jsonl")
    masses = np.array([math.exp(-1.0) + math.exp(-1.5), math.exp(-1.4) + math.exp(-3.0), math.exp(-4.0)])
    np.testing.assert_allclose(table.probs()[0], masses / masses.sum(), rtol=1e-6)
    with_probs = read_predictions(DATA / "vertex-key-field.jsonl")
    np.testing.assert_allclose(with_probs.probs()[0], [0.3, 0.7], rtol=1e-6)


@pytest.mark.parametrize("unknown", [-9999.0, -9999])
def test_a_letter_of_which_no_token_is_known_is_unknown(tmp_path, unknown):
    known = [("A", -0.2), ("B", -2.0), (" B", unknown), ("C", unknown)]
    facts = {"choices": ["x", "y", "z"], "label": 0}
    source = write(tmp_path / "p.jsonl", [gemini_row([*known, (" C", unknown)], **facts)])
    with pytest.raises(DataFormatError, match=r"-9999\.0 stands for an option that is not among"):
        read_predictions(source)
    table = read_predictions(write(source, [gemini_row([*known, (" C", -4.0)], **facts)]))
    expected = np.exp([-0.2, -2.0, -4.0])
    np.testing.assert_allclose(table.probs()[0], expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("masked", [-1e9, -3.4028235e38, "-inf"])
def test_what_masks_are_made_of_counts_as_a_probability_of_zero(tmp_path, masked):
    row = {"id": "a", "label": 1, "logprobs": [-0.1, masked]}
    table = read_predictions(write(tmp_path / "p.jsonl", [row]))
    assert table.log_probs()[0, 1] == pytest.approx(-87.34, abs=0.1)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ({"promptFeedback": {"blockReason": "SAFETY"}}, "blockReason: 'SAFETY'; leave the row out"),
        ({"candidates": [{"finishReason": "RECITATION"}]}, "finishReason: 'RECITATION'; predict it again"),
        ('{"candidates": [{"finish_reason": "SAFETY"}]}', "finishReason: 'SAFETY'"),
        ({"candidates": [{"finishReason": "STOP"}]}, "no log-probabilities; ask for them"),
    ],
)
def test_an_answer_that_the_service_keeps_back_is_no_missing_setting(tmp_path, response, message):
    source = write(tmp_path / "p.jsonl", [{"key": "q0", "response": response}])
    with pytest.raises(DataFormatError, match=message):
        read_predictions(source)


def test_parts_without_rows_are_no_fault_however_they_are_empty(tmp_path, questions, capsys):
    folder = tmp_path / "job"
    folder.mkdir()
    write(
        folder / "prediction.results-00000-of-00003",
        [vertex_row("q0", {"logprobs": [-1.0, -2.0, -0.7]}, answer=0)],
    )
    (folder / "prediction.results-00001-of-00003").write_bytes(gzip.compress(b""))
    (folder / "prediction.results-00002-of-00003").write_text("\n\n")
    convert_predictions(ConvertConfig(questions=questions), folder, tmp_path / "t.parquet")
    assert read_predictions(tmp_path / "t.parquet").ids == ("q0",)
    assert "2 of 3 questions have no prediction" in capsys.readouterr().err
    (folder / "prediction.results-00000-of-00003").write_text("")
    with pytest.raises(DataFormatError, match="all files of results are empty"):
        convert_predictions(ConvertConfig(), folder, tmp_path / "t.parquet")


def test_impossible_options_count_as_a_probability_of_zero():
    for name in ("samples_underflow.jsonl", "logprobs-minus-infinity.jsonl"):
        table = read_predictions(DATA / name)
        assert table.confidence()[0] == 1.0
        assert table.log_probs()[0, -1] == pytest.approx(-87.34, abs=0.1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("samples_filters_without_none.jsonl", "column filter has the values 'flexible', 'strict'"),
        ("gemini-failed.jsonl", "line 2, status: 'Bad Request"),
        ("logprobs-not-among-top.jsonl", r"line 1, logprobs: -9999.0 stands for an option that is not among"),
    ],
)
def test_forms_that_leave_something_out_are_refused(source, message):
    with pytest.raises(DataFormatError, match=message):
        read_predictions(DATA / source)


def test_jobs_beside_each_other_and_missing_parts_are_refused(tmp_path):
    parts = [tmp_path / "job" / f"predictions.jsonl-0000{i}-of-00003" for i in (0, 2)]
    parts[0].parent.mkdir()
    for i, part in enumerate(parts):
        write(part, [gemini_row([("A", -0.1), ("B", -3.0)], key=f"q{i}", choices=["x", "y"], label=0)])
    with pytest.raises(DataFormatError, match=r"parts of 3, of which 1 \(from 0\) are missing"):
        convert_predictions(ConvertConfig(), tmp_path / "job", tmp_path / "t.parquet")
    for name in ("prediction-model-1", "prediction-model-2"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        write(tmp_path / "jobs" / name / "predictions.jsonl", [lm_eval_row()])
    with pytest.raises(DataFormatError, match=r"several runs \(prediction-model-1, prediction-model-2\)"):
        convert_predictions(ConvertConfig(), tmp_path / "jobs", tmp_path / "t.parquet")


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(DataFormatError, match="found no files"):
        convert_predictions(ConvertConfig(), tmp_path, tmp_path / "t.parquet")


def test_commands_read_samples_and_refuse_them_without_a_traceback(tmp_path, capsys):
    good = write(tmp_path / "samples.jsonl", [lm_eval_row(i, (-1.0, -0.5 - i % 3)) for i in range(12)])
    out = tmp_path / "report.html"
    assert cli.main(["measure", str(good), "--out", str(out), "--n-resamples", "20", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["figures"]["n"] == 12
    assert result["regime"] is None
    assert "<html" in out.read_text()
    bad = write(tmp_path / "bad.jsonl", [lm_eval_row(0, filtered_resps=["Paris"])])
    assert cli.main(["convert", str(bad), "--out", str(tmp_path / "t.parquet")]) == 2
    assert "line 1, filtered_resps" in capsys.readouterr().err
