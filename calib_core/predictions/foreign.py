"""Predictions as other programs write them, turned row by row into the columns of a predictions table.

They are told apart by their columns:

* sample files of EleutherAI's lm-evaluation-harness (`--log_samples`; `samples_<task>_<time>.jsonl`): the
  log-likelihood of every option's continuation, with what was asked in `arguments`;
* output files of Vertex AI's batch prediction (JSON lines): `instance` (or `key`, `id`) and `prediction` of a
  custom model, or `request` (or `key`) and `response` of a Gemini model that was asked for log-probabilities.

Log-probabilities that are missing are refused: nothing is known of an option that a list of top candidates
leaves out, save that it is less probable than they are.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from calib_core.data.converters import RowError
from calib_core.data.questions import Question
from calib_core.data.rows import Problem, Rows
from calib_core.data.values import id_text, is_missing, number, whole_number
from calib_core.errors import DataFormatError, listed, short
from calib_core.storage.json_text import JsonError, parse_json

Row = Mapping[str, Any]
Questions = Mapping[str, Question]

SCORE_FIELDS = ("logits", "logprobs", "probs")
FOREIGN_FIELDS = (
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "acc"),
    *("instance", "prediction", "key", "error", "request", "response", "status"),
    *("choices", "answer"),
)
"""Fields of other programs' files that are looked at."""

UNFILTERED = "none"
"""The name of lm-eval's filter that changes nothing."""

NOT_AMONG_TOP = -9999.0
"""What some services give as the log-probability of a token that isn't among the most probable ones."""

LEADING_SPACES = "\u2581\u0120"
"""What stands for a space at the beginning of a token: SentencePiece's sign, and byte-level BPE's."""


def converter_for(rows: Rows) -> Callable[[Row, Questions], dict[str, Any]] | None:
    """The function that converts one row of a file with these columns; None for this package's own tables.

    It takes the row and the questions by id (empty if they aren't known), returns `id`, `label`,
    `subject` and one of `logits`, `logprobs` and `probs`, and raises `RowError`.
    """
    names = set(rows.columns)
    if "doc_id" in names and names & {"resps", "filtered_resps"}:
        return _from_lm_eval
    if "response" in names and names & {"request", "key"}:
        return _from_gemini
    if "prediction" in names and names & {"instance", "key", "id"}:
        return _from_vertex
    return None


def convert_rows(
    rows: Rows, convert: Callable[[Row, Questions], dict[str, Any]], questions: Questions
) -> tuple[Rows, list[Problem]]:
    """Convert all rows.

    Returns:
        The rows that could be converted, and the problems of the others.

    Raises:
        DataFormatError: an lm-eval file holds the rows of several filters, and none is the unfiltered one.
    """
    converted, problems = [], []
    for place, row in _of_one_filter(rows):
        try:
            converted.append((place, convert(row, questions)))
        except RowError as problem:
            problems.append(Problem(place, problem.field, str(problem)))
    return replace(rows, rows=converted, first_record=()), problems


def _of_one_filter(rows: Rows) -> Sequence[tuple[int, Row]]:
    """An lm-eval file's rows; every filter of a task writes its own for a document."""
    filters = {short(row["filter"], 40) for _, row in rows.rows if "filter" in row}
    if len(filters) < 2:
        return rows.rows
    if repr(UNFILTERED) not in filters:
        raise DataFormatError(
            f"{rows.source}: column filter has the values {listed(sorted(filters))}, so each document "
            f"is there {len(filters)} times; keep the rows of one filter"
        )
    return [(place, row) for place, row in rows.rows if row.get("filter") == UNFILTERED]


def _from_lm_eval(row: Row, questions: Questions) -> dict[str, Any]:
    """A row of an lm-eval sample file.

    Option scores are the summed log-probabilities of each option's continuation, those that `acc` compares,
    unchanged by its length.
    """
    responses = _responses(row)
    calls = _calls(row)
    if len(calls) != len(responses):
        raise RowError(
            "arguments", f"{len(calls)} requests but {len(responses)} responses; write the file again"
        )
    if any(context for context, _ in calls):  # `acc_mutual_info` asks for each option without a context too
        kept = [index for index, (context, _) in enumerate(calls) if context]
        responses, calls = [responses[i] for i in kept], [calls[i] for i in kept]
    doc = row.get("doc")
    subject = doc.get("subject") if isinstance(doc, Mapping) else None
    return {
        "id": _named(row.get("doc_id"), "doc_id", "the document's number is expected"),
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
    for request, pair in enumerate(given if isinstance(given, list) else [given]):
        try:
            loglikelihood, greedy = pair
            value = float(loglikelihood)
        except (TypeError, ValueError, OverflowError):
            raise RowError(
                field,
                f"{short(pair)} for request {request}, where a log-likelihood and whether it is greedy are "
                "expected; only tasks with output_type multiple_choice have log-probabilities",
            ) from None
        # Minus infinity is what a continuation has whose probability is too small to be told from 0.
        if str(greedy) not in ("True", "False") or math.isnan(value) or value == math.inf:
            raise RowError(field, f"{short(pair)} for request {request}: no finite log-likelihood")
        values.append(value)
    if values and max(values) == -math.inf:
        raise RowError(field, f"{short(given)}: no finite log-likelihood")
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
    text = target.strip() if isinstance(target, str) else short(target)
    meant = [index for index, option in enumerate(options) if option.strip() == text]
    place = whole_number(target)
    if place is not None and 0 <= place < len(options):
        meant = sorted({place, *meant})
    acc = row.get("acc")
    if isinstance(acc, int | float) and acc not in (0, 1):
        raise RowError(
            "acc", f"{short(acc)} is neither 0 nor 1: several options count as right, where one must"
        )
    if isinstance(acc, int | float) and values:
        top = max(range(len(values)), key=values.__getitem__)
        agreeing = [index for index in meant if (index == top) == bool(acc)]
        if meant and not agreeing:
            raise RowError(
                "target",
                f"{short(target)} doesn't agree with acc {int(acc)}: the top option is number {top} from 0",
            )
        meant = agreeing
    if len(meant) != 1:
        what = "names no option" if not meant else "may be an option's number or another one's text"
        raise RowError(
            "target", f"{short(target)} {what} (of {short(list(options))}); one right option is expected"
        )
    return meant[0]


def _from_vertex(row: Row, questions: Questions) -> dict[str, Any]:
    """A row of a custom model's batch prediction: `instance`, or the key field where one was set."""
    if row.get("error"):
        raise RowError("error", f"{short(row['error'])}; predict it again, or leave the row out")
    instance = row.get("instance")
    facts = {"id": row["key"]} if "key" in row else row if "id" in row else instance
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
    for name in ("status", "error"):
        if row.get(name):
            raise RowError(name, f"{short(row[name])}; predict it again, or leave the row out")
    _refuse_unanswered(row.get("response"))
    field = "response.candidates[0].logprobsResult.topCandidates[0].candidates"
    try:
        response = row["response"]
        if isinstance(response, str):  # a table in BigQuery holds it as text
            response = parse_json(response)
        result = _field(response["candidates"][0], "logprobsResult")
        candidates = _field(_field(result, "topCandidates")[0], "candidates")
        scores = [(str(each["token"]), _field(each, "logProbability")) for each in candidates]
    except (KeyError, IndexError, TypeError, JsonError):
        raise RowError(
            field, "no log-probabilities; ask for them with responseLogprobs true and logprobs 20"
        ) from None
    facts = {**row, "id": row["key"]} if "key" in row else row
    return _with_scores(facts, questions, "logprobs", scores, field)


def _refuse_unanswered(response: Any) -> None:
    """Refuse a response in which the service says why it gives no answer: there is nothing to ask for again.

    Raises:
        RowError: it is one.
    """
    with contextlib.suppress(KeyError, IndexError, TypeError, JsonError):
        response = parse_json(response) if isinstance(response, str) else response
        if not isinstance(response, dict):
            return
        if not response.get("candidates"):
            reason = _field(_field(response, "promptFeedback"), "blockReason")
            raise RowError("response.promptFeedback.blockReason", f"{short(reason)}; leave the row out")
        reason = _field(response["candidates"][0], "finishReason")
        if reason not in ("STOP", "MAX_TOKENS", 1, 2):
            raise RowError(
                "response.candidates[0].finishReason",
                f"{short(reason)}; predict it again, or leave the row out",
            )


def _field(record: Any, name: str) -> Any:
    """A field by its name in JSON, or by the name that Google's Python libraries give it."""
    return record[name] if name in record else record[re.sub(r"([A-Z])", r"_\1", name).lower()]


def _named(value: Any, field: str, expected: str) -> str:
    """An id: a text or a whole number."""
    if is_missing(value) or not (isinstance(value, str) or whole_number(value) is not None):
        raise RowError(field, f"{short(value)} where {expected}")
    return id_text(value)


def _with_scores(facts: Row, questions: Questions, kind: str, scores: Any, field: str) -> dict[str, Any]:
    """A native row from what is known of the question and the scores, as a list or by letter."""
    name = _named(facts.get("id"), "id", "a text or a number is expected; give each instance its id")
    question = questions.get(name)
    if questions and question is None:
        raise RowError("id", f"{short(name)} is not among the questions")
    choices = question.choices if question else facts.get("choices")
    if isinstance(scores, Mapping):
        scores = list(scores.items())
    if isinstance(scores, list) and scores and isinstance(scores[0], tuple):
        scores = _by_letter(scores, choices, kind, field)
    elif isinstance(scores, list) and isinstance(choices, list | tuple) and len(scores) != len(choices):
        raise RowError(field, f"{len(scores)} values for {len(choices)} options; one for each is expected")
    return {
        "id": name,
        "label": facts.get("label", facts.get("answer")),
        kind: scores,
        "subject": facts.get("subject") if isinstance(facts.get("subject"), str) else None,
    }


def _by_letter(scores: Sequence[tuple[str, Any]], choices: Any, kind: str, field: str) -> list[Any]:
    """Scores of the options A, B, ... out of scores by token; other tokens are left out.

    A letter's tokens with and without a space in front are two ways to give one answer, so their
    probabilities are added.
    """
    if not isinstance(choices, list | tuple) or not choices:
        raise RowError(
            "choices",
            "the number of options is needed to tell whether a letter is missing; let the instance hold the "
            "choices, or give the file of questions",
        )
    letters = ascii_uppercase[: len(choices)]
    found: dict[str, list[Any]] = {}
    for token, value in scores:
        letter = token.lstrip(LEADING_SPACES).strip()
        if len(letter) == 1 and letter in letters:
            found.setdefault(letter, []).append(value)
    if missing := [letter for letter in letters if letter not in found]:
        raise RowError(
            field,
            f"no value for option {', '.join(missing)}, only for "
            f"{', '.join(sorted(found)) or 'none'}; ask for more top candidates, or for the letters' "
            "own log-probabilities (nothing is ever filled in)",
        )
    return [_together(found[letter], kind, field) for letter in letters]


def _together(values: list[Any], kind: str, field: str) -> Any:
    """The score of one answer that has several tokens."""
    if len(values) == 1:
        return values[0]
    numbers = [-math.inf if value in ("-Infinity", "-inf") else number(value) for value in values]
    if any(value is None or math.isnan(value) or value == math.inf for value in numbers):
        raise RowError(field, f"{short(values)} where numbers are expected")
    known = [value for value in numbers if value not in (None, NOT_AMONG_TOP)]
    if not known:
        return NOT_AMONG_TOP  # each of its tokens is unknown, and so is the answer
    if kind == "probs":
        return math.fsum(known)
    top = max(known)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(value - top) for value in known))
