"""Predictions as other programs write them, turned row by row into the columns of a predictions table.

Two are told apart by their columns:

* sample files of EleutherAI's lm-evaluation-harness (`--log_samples`; `samples_<task>_<time>.jsonl`): the
  log-likelihood of every option's continuation, with what was asked in `arguments`;
* output files of Vertex AI's batch prediction (JSON lines): `instance` (or `key`) and `prediction` of a
  custom model, or `request` and `response` of a Gemini model that was asked for log-probabilities.

Log-probabilities that are missing are refused: nothing is known of an option that a list of top candidates
leaves out, save that it is less probable than they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from calib_core.data.converters import RowError
from calib_core.data.questions import Question
from calib_core.errors import DataFormatError, short

Row = Mapping[str, Any]
Questions = Mapping[str, Question]

SCORE_FIELDS = ("logits", "logprobs", "probs")
LM_EVAL_FILES, VERTEX_FILES, VERTEX_ERRORS = (
    re.compile(r"samples_(?P<part>.+?)(_\d{4}-\d\d-\d\dT[\d\-.:]+)?\.jsonl"),
    re.compile(r"predictions?[._](results-\d+-of-\d+|\d+)(\.jsonl)?"),
    re.compile(r"(prediction\.)?errors(_stats)?[-_]\d+.*"),
)


def converter_for(columns: Iterable[str]) -> Callable[[Row, Questions], dict[str, Any]] | None:
    """The function that converts one row of a file with these columns; None for this package's own tables.

    It takes the row and the questions by id (empty where they aren't known), returns `id`, `label`,
    `subject` and one of `logits`, `logprobs` and `probs`, and raises `RowError`.
    """
    names = set(columns)
    if "doc_id" in names and names & {"resps", "filtered_resps"}:
        return _from_lm_eval
    if {"request", "response"} <= names:
        return _from_gemini
    if "prediction" in names and names & {"instance", "key"}:
        return _from_vertex
    return None


def convert_rows(
    rows: Sequence[Row], convert: Callable[[Row, Questions], dict[str, Any]], questions: Questions
) -> tuple[list[dict[str, Any]], list[tuple[int, str, str]]]:
    """Convert all rows.

    Returns:
        The rows that could be converted, and the problems of the others: row from 0, field, message.
    """
    converted, problems = [], []
    for index, row in enumerate(rows):
        try:
            converted.append(convert(row, questions))
        except RowError as problem:
            problems.append((index, problem.field, str(problem)))
    return converted, problems


def result_files(folder: Path) -> dict[str, Path]:
    """The files of predictions in a folder that another program wrote.

    Returns:
        Name of the part that a file holds (an lm-eval task; empty for Vertex) with the file, or, where there
        are several of Vertex, its name.

    Raises:
        DataFormatError: there are none, some are of one task, or instances failed.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    failed = [path.name for path in paths if VERTEX_ERRORS.fullmatch(path.name) and path.stat().st_size]
    if failed:
        raise DataFormatError(
            f"{folder / failed[0]}: instances failed, so their predictions are missing; predict them again, "
            "or remove this file to go on without them"
        )
    samples = [(match["part"], path) for path in paths if (match := LM_EVAL_FILES.fullmatch(path.name))]
    results = [(path.name, path) for path in paths if VERTEX_FILES.fullmatch(path.name)]
    if not (samples or results) or (samples and results):
        raise DataFormatError(
            f"{folder}: expected lm-eval's samples_*.jsonl or Vertex's prediction.results-*, found "
            f"{', '.join(path.name for path in paths[:6]) or 'no files'}; give the folder that holds them"
        )
    parts = dict(samples or results)
    if len(parts) < len(samples):
        raise DataFormatError(
            f"{folder}: several sample files of one task, so of several runs; give the file, or a folder "
            "with one run"
        )
    return parts


def _from_lm_eval(row: Row, questions: Questions) -> dict[str, Any]:
    """A row of an lm-eval sample file.

    Option scores are the summed log-probabilities of each option's continuation, those that `acc` compares,
    unchanged by its length.
    """
    responses = _responses(row)
    calls = _calls(row)
    if len(calls) != len(responses):
        raise RowError(
            "arguments", f"{len(calls)} requests but {len(responses)} responses; write the file anew"
        )
    if any(context for context, _ in calls):  # `acc_mutual_info` asks for each option without a context too
        kept = [index for index, (context, _) in enumerate(calls) if context]
        responses, calls = [responses[i] for i in kept], [calls[i] for i in kept]
    doc = row.get("doc")
    subject = doc.get("subject") if isinstance(doc, Mapping) else None
    name = row.get("doc_id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise RowError("doc_id", f"{short(name)} where the document's number is expected")
    return {
        "id": str(name),
        "label": _lm_eval_label(row, [text for _, text in calls], responses),
        "logprobs": responses,
        "subject": subject if isinstance(subject, str) else None,
    }


def _responses(row: Row) -> list[float]:
    """Each request's log-likelihood; lm-eval writes it as text, beside whether it is the greedy choice."""
    field = "filtered_resps" if "filtered_resps" in row else "resps"
    given = row.get(field)
    if field == "resps" and isinstance(given, list):
        given = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in given]
    values = []
    for number, pair in enumerate(given if isinstance(given, list) else [given]):
        try:
            loglikelihood, greedy = pair
            value = float(loglikelihood)
        except (TypeError, ValueError):
            raise RowError(
                field,
                f"{short(pair)} for request {number}, where a log-likelihood and whether it is greedy are "
                "expected; only tasks with output_type multiple_choice have log-probabilities",
            ) from None
        if str(greedy) not in ("True", "False") or not math.isfinite(value):
            raise RowError(field, f"{short(pair)} for request {number}: no finite log-likelihood")
        values.append(value)
    return values


def _calls(row: Row) -> list[tuple[str, str]]:
    """Context and continuation of each request."""
    given = row.get("arguments")
    if isinstance(given, Mapping):  # as written to files: gen_args_0: {arg_0: ..., arg_1: ...}
        numbers = range(len(given))
        given = [given.get(f"gen_args_{i}") for i in numbers]
        given = [
            [call.get("arg_0"), call.get("arg_1")] if isinstance(call, Mapping) else call for call in given
        ]
    if not isinstance(given, list) or not all(
        isinstance(call, list) and len(call) == 2 and all(isinstance(text, str) for text in call)
        for call in given
    ):
        raise RowError(
            "arguments", f"{short(given)} where each option's context and continuation are expected"
        )
    return [(call[0], call[1]) for call in given]


def _lm_eval_label(row: Row, options: Sequence[str], values: Sequence[float]) -> int:
    """The right option: `target` is its number or its text, and `acc`, where it is there, must agree."""
    target = row.get("target")
    text = str(target).strip()
    meant = [index for index, option in enumerate(options) if option.strip() == text]
    if re.fullmatch(r"\d+", text, re.ASCII) and int(text) < len(options):
        meant = sorted({int(text), *meant})
    acc = row.get("acc")
    if isinstance(acc, int | float) and acc not in (0, 1):
        raise RowError("acc", f"{acc:g} is neither 0 nor 1: several options count as right, where one must")
    if isinstance(acc, int | float) and values:
        top = max(range(len(values)), key=values.__getitem__)
        agreeing = [index for index in meant if (index == top) == bool(acc)]
        if meant and not agreeing:
            raise RowError(
                "target",
                f"{short(target)} doesn't agree with acc {acc:g}: the top option is number {top} from 0",
            )
        meant = agreeing
    if len(meant) != 1:
        what = "names no option" if not meant else "may be an option's number or another one's text"
        raise RowError(
            "target", f"{short(target)} {what} (of {short(list(options))}); one right option is expected"
        )
    return meant[0]


def _from_vertex(row: Row, questions: Questions) -> dict[str, Any]:
    """A row of a custom model's batch prediction: `instance`, or `key` where a key field was set."""
    if row.get("error"):
        raise RowError("error", f"{short(row['error'])}; predict it again, or leave the row out")
    instance = row.get("instance")
    facts = {"id": row["key"]} if "key" in row else instance
    if not isinstance(facts, Mapping):
        raise RowError("instance", f"{short(instance)} where an object with an id is expected")
    prediction = row.get("prediction")
    present = [name for name in SCORE_FIELDS if isinstance(prediction, Mapping) and name in prediction]
    if not isinstance(prediction, Mapping) or len(present) != 1:
        raise RowError(
            "prediction",
            f"{short(prediction)} where an object with one of {', '.join(SCORE_FIELDS)} is expected; let the "
            "serving container return it",
        )
    kind = present[0]
    return _with_scores(facts, questions, kind, prediction[kind], f"prediction.{kind}")


def _from_gemini(row: Row, questions: Questions) -> dict[str, Any]:
    """A row of a Gemini model's batch prediction: the top candidates for the answer's first token."""
    if row.get("status"):
        raise RowError("status", f"{short(row['status'])}; predict it again, or leave the row out")
    field = "response.candidates[0].logprobsResult.topCandidates[0].candidates"
    try:
        candidates = row["response"]["candidates"][0]["logprobsResult"]["topCandidates"][0]["candidates"]
        scores = [(str(each["token"]), each["logProbability"]) for each in candidates]
    except (KeyError, IndexError, TypeError):
        raise RowError(
            field, "no log-probabilities; ask for them with responseLogprobs true and logprobs 20"
        ) from None
    facts = {"id": row["key"], **row} if "key" in row else row
    return _with_scores(facts, questions, "logprobs", scores, field)


def _with_scores(facts: Row, questions: Questions, kind: str, scores: Any, field: str) -> dict[str, Any]:
    """A native row from what is known of the question and the scores, as a list or by letter."""
    name = facts.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise RowError("id", f"{short(name)} where a text or a number is expected; give each instance its id")
    question = questions.get(str(name))
    choices = question.choices if question else facts.get("choices")
    if isinstance(scores, Mapping):
        scores = list(scores.items())
    if isinstance(scores, list) and scores and isinstance(scores[0], tuple):
        scores = _by_letter(scores, choices, field)
    elif isinstance(scores, list) and isinstance(choices, list | tuple) and len(scores) != len(choices):
        raise RowError(field, f"{len(scores)} values for {len(choices)} options; one for each is expected")
    return {
        "id": str(name),
        "label": facts.get("label", facts.get("answer")),
        kind: scores,
        "subject": facts.get("subject") if isinstance(facts.get("subject"), str) else None,
    }


def _by_letter(scores: Sequence[tuple[str, Any]], choices: Any, field: str) -> list[Any]:
    """Scores of the options A, B, ... out of scores by token; other tokens are left out."""
    if not isinstance(choices, list | tuple) or not choices:
        raise RowError(
            "choices",
            "the number of options is needed to tell whether a letter is missing; let the instance hold the "
            "choices, or give the file of questions",
        )
    letters = ascii_uppercase[: len(choices)]
    found: dict[str, Any] = {}
    for token, value in scores:
        letter = token.strip()
        if letter in letters and letter in found:
            raise RowError(field, f"two values for {letter!r} (with and without white space); give one")
        if letter and letter in letters:
            found[letter] = value
    if missing := [letter for letter in letters if letter not in found]:
        raise RowError(
            field,
            f"no value for option {', '.join(missing)}, only for {', '.join(found) or 'none'}; ask for more "
            "top candidates, or for the letters' own log-probabilities (nothing is ever filled in)",
        )
    return [found[letter] for letter in letters]
