"""Score a large set of questions in shards: cut it up, score each part anywhere, put the table together.

The table is the one that scoring everything in one process gives, bit for bit (on hardware of one kind, with
one number of threads): see `calib_core.scoring.questions.score_encoded`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from calib_core.data.questions import Question, fingerprint, read_questions, write_questions
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.predictions.files import read_predictions, write_predictions
from calib_core.predictions.table import Predictions, concatenate
from calib_core.report.cautions import LEAST_LETTER_MASS, cautions
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import shown
from calib_core.settings.checks import ConfigCheck
from calib_core.settings.groups import Loading, PromptStyle, Scoring
from calib_core.settings.parameters import parameter
from calib_core.steps.reading import Reading
from calib_core.storage.files import check_output_file, check_output_folder, whole_folder, write_json
from calib_core.storage.records import read_record
from calib_core.version import __version__

QUESTIONS, EXAMPLES, RECORD = "questions.parquet", "examples.parquet", "shards.json"
NAMED = 20
"""How many questions an error names; all are counted."""


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Reading):
    """Parameters of cutting a set of questions into shards."""

    GROUP = "shards"

    questions: str = parameter("", "File, bucket URI or hub id of the questions to score.")
    shots: int = parameter(
        0,
        "Number of worked examples, taken from the beginning of the questions, that stand before each of the "
        "others.",
        at_least=0,
    )
    questions_per_shard: int = parameter(
        10_000, "Approximate number of questions that one task scores.", at_least=1
    )

    def rules(self, check: ConfigCheck) -> None:
        """There must be a source."""
        super().rules(check)
        check.value("questions", bool, "a file or hub id")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PromptStyle, Loading, Scoring):
    """Parameters of scoring."""


def shard_questions(config: ShardConfig, out: Path) -> dict[str, Any]:
    """Read and check questions once for all shards, and say how many shards they make.

    Args:
        config: the source, and how large a shard is.
        out: folder to write, atomically: `questions.parquet`, with worked examples
            `examples.parquet`, and `shards.json`.

    Returns:
        What `shards.json` says: counts, fingerprint, what was left out, and `n_shards`.

    Raises:
        DataFormatError: the source can't be read or has bad rows.
        NotEnoughDataError: the worked examples leave no question.
        ConfigError: `out` holds something else than an earlier result.
    """
    check_output_folder(out, RECORD, inputs=(config.questions,))
    questions, report = read_questions(config.questions, preset=config.preset, on_bad_row=config.on_bad_row)
    examples, rest = questions[: config.shots], questions[config.shots :]
    if not rest:
        raise NotEnoughDataError(
            f"{config.questions}: {config.shots} worked examples leave nothing of its {len(questions)} "
            "questions; ask for fewer shots"
        )
    record = {
        "library_version": __version__,
        "parameters": shown(asdict(config)),
        "source": report.to_dict(),
        "n_questions": len(rest),
        "n_examples": len(examples),
        "n_shards": -(-len(rest) // config.questions_per_shard),
        "fingerprint": fingerprint(rest),
    }
    with whole_folder(out) as folder:
        write_questions(rest, folder / QUESTIONS)
        if examples:
            write_questions(examples, folder / EXAMPLES)
        write_json(folder / RECORD, record)
    say(f"{len(rest)} questions in {record['n_shards']} shards")
    return record


def score_shard(
    config: ScoreConfig, model: str, data: Path, out: Path, *, shard: int | None = None
) -> dict[str, Any]:
    """Score one shard, or everything, and write its predictions table.

    Every shard tokenises the whole set (some thousand questions a second), because the batches that it takes
    its own from, and the prompt's shared beginning, are those of the whole set.

    Args:
        config: parameters of scoring.
        model: model folder, adapter folder or hub id.
        data: folder of `shard_questions`.
        out: predictions table to write (Parquet), atomically; without rows where the questions make
            fewer batches than shards.
        shard: number of the shard, from 0; None scores everything in one go.

    Returns:
        Cautions about the figures, shard, number of shards and of questions, mean confidence and letter mass
        (None without questions), prompt form, the model, seconds.

    Raises:
        CalibError: there is no such shard, or the model, the data or `out` can't be used.
    """
    from calib_core.models.loading import load_model  # noqa: PLC0415 (torch, which commands without models do without)
    from calib_core.scoring.forms import letter_masses, resolved_form  # noqa: PLC0415
    from calib_core.scoring.prompts import PromptEncoder, PromptForm  # noqa: PLC0415
    from calib_core.scoring.questions import encode_questions, score_encoded  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_file(out)
    questions, examples, n_shards = _read_shards(data)
    if shard is not None and not 0 <= shard < n_shards:
        raise ConfigError(f"shard is {shard}; {data} has the shards 0 to {n_shards - 1}")
    loaded = load_model(model, base_model=config.base_model, dtype=config.dtype)
    form, masses = resolved_form(
        config.prompt_form, loaded, questions, examples, batch_tokens=config.batch_tokens
    )
    encoder = PromptEncoder(loaded.tokenizer, PromptForm(form=form, shots=examples))
    encoded = encode_questions(questions, encoder, context_tokens=loaded.context_tokens)
    predictions = score_encoded(
        loaded,
        encoded,
        batch_tokens=config.batch_tokens,
        part=(0, 1) if shard is None else (shard, n_shards),
        description="scoring" if shard is None else f"scoring shard {shard}",
    )
    write_predictions(predictions, out)
    masses_of_rows = predictions.letter_mass
    mass = None if masses_of_rows is None or not len(masses_of_rows) else float(masses_of_rows.mean())
    if mass is not None and mass < LEAST_LETTER_MASS and not masses:
        masses = letter_masses(loaded, questions, examples, batch_tokens=config.batch_tokens)
    said = cautions(predictions, masses=masses)
    for caution in said:
        say(caution)
    return {
        "cautions": said,
        "shard": shard,
        "n_shards": n_shards,
        "n_questions": len(predictions),
        "mean_confidence": float(predictions.confidence().mean()) if len(predictions) else None,
        "letter_mass": mass,
        "prompt_form": form,
        "model": loaded.describe(),
        "seconds": time.monotonic() - started_s,
    }


def merge_predictions(data: Path, shards: Sequence[Path], out: Path) -> dict[str, Any]:
    """Put the shards' tables together, in the questions' order.

    Args:
        data: folder of `shard_questions`.
        shards: predictions tables of all shards, in any order.
        out: predictions table to write (Parquet), atomically.

    Returns:
        Number of questions and of shards, and the protocol.

    Raises:
        DataFormatError: a question is missing, is there twice or isn't of this set, or the shards were made
            in different ways.
    """
    check_output_file(out)
    questions, _, n_shards = _read_shards(data)
    # A shard may be without rows, which `read_predictions` refuses as a table that was written wrongly.
    tables = [(path, read_predictions(path)) for path in shards if pq.read_metadata(path).num_rows]
    _check_complete(questions, tables, n_shards)
    _check_one_protocol(tables)
    together = concatenate([table for _, table in tables])
    row_of = {name: row for row, name in enumerate(together.ids)}
    merged = together.subset([row_of[question.id] for question in questions])
    write_predictions(merged, out)
    say(f"{len(merged)} questions of {len(shards)} shards in one table")
    return {"n_questions": len(merged), "n_shards": len(shards), "protocol": merged.protocol}


def _read_shards(data: Path) -> tuple[tuple[Question, ...], tuple[Question, ...], int]:
    """Questions, worked examples and number of shards of a folder that `shard_questions` wrote."""
    record = read_record(data / RECORD, {"n_shards": int}, advice="make the folder with `calib shard`")
    questions = tuple(read_questions(data / QUESTIONS)[0])
    examples = tuple(read_questions(data / EXAMPLES)[0]) if (data / EXAMPLES).is_file() else ()
    return questions, examples, record["n_shards"]


def _check_complete(
    questions: Sequence[Question], tables: Sequence[tuple[Path, Predictions]], n_shards: int
) -> None:
    found = Counter(name for _, table in tables for name in table.ids)
    wanted = {question.id for question in questions}
    problems = {
        "missing": [question.id for question in questions if question.id not in found],
        "there more than once": [name for name, count in found.items() if count > 1],
        "not of this set": [name for name in found if name not in wanted],
    }
    if not any(problems.values()):
        return
    listed = "; ".join(
        f"{len(names)} {what} ({', '.join(map(repr, names[:NAMED]))})"
        for what, names in problems.items()
        if names
    )
    raise DataFormatError(
        f"the shards' tables don't make up the {len(wanted)} questions: {listed}; give the table of each of "
        f"the {n_shards} shards once, all made from this set"
    )


def _check_one_protocol(tables: Sequence[tuple[Path, Predictions]]) -> None:
    (first, reference), *others = tables
    for path, table in others:
        if table.protocol != reference.protocol:
            a, b = reference.protocol or {}, table.protocol or {}
            names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
            raise DataFormatError(
                f"{path}: made in another way than {first} ({', '.join(names)} differ); score all shards "
                "with the same model and settings"
            )
