"""Evaluate: score every fold with one model, measure it, and name the regime that its bounds put it in."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from calib_core.decisions.bounds import regime_test, required_examples, too_few
from calib_core.decisions.result import RegimeRecord
from calib_core.metrics.summary import measure
from calib_core.predictions.files import write_predictions
from calib_core.predictions.preferences import PREFERENCES_FILE, write_preference_logprobs
from calib_core.predictions.table import Predictions
from calib_core.report.cautions import LEAST_LETTER_MASS, cautions
from calib_core.report.wording import NOT_DECIDABLE
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import shown
from calib_core.settings.groups import Loading, Measuring, Prompt, RegimeTest, Scoring
from calib_core.settings.parameters import parameter, values_of
from calib_core.steps.evaluation_record import (
    FILE,
    FORMAT,
    EvaluationRecord,
    Measured,
    write_evaluation_record,
)
from calib_core.steps.folder import check_sizes, read_data, read_pairs
from calib_core.storage.files import check_output_folder, whole_folder


@dataclass(frozen=True, kw_only=True)
class Evaluating(Prompt, Loading, Scoring, RegimeTest):
    """How a model is evaluated."""

    GROUP = "scoring"

    average_orders: bool = parameter(
        False,
        "Score each question in all cyclic orders of its options and average, which cancels a preference for "
        "some letters and costs as many times as much.",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Evaluating):
    """Parameters of an evaluation."""

    GROUP = "regime"

    require_regime: bool = parameter(
        False,
        "Refuse folds too small to name the regime; otherwise the figures are given without it.",
    )


def evaluate(config: EvaluateConfig, model: str, data: Path, out: Path) -> EvaluationRecord:
    """Score all folds of a data folder with one model and decide its regime.

    Args:
        config: parameters of the evaluation.
        model: model folder, adapter folder or hub id.
        data: data folder of `prepare`.
        out: evaluation folder to write, atomically: `<fold>.parquet` (predictions) for `fit`,
            `calibration`, `test` and, where there is one, `out_of_domain`; `preferences.parquet` where there
            are held-out pairs; and `evaluation.json`.

    Returns:
        What `evaluation.json` says: cautions about the figures, regime with its bounds and reasons
        (`not_decidable` where the folds are too small), figures per fold, prompt form and, where it was
        measured on a sample, letter mass by form; with
        `average_orders` the share of questions per fold whose top option changes with the order of options,
        else None; win rate on held-out preference pairs where there are any (else None), the model,
        fingerprints of the data, digests of the tables, seconds.

    Raises:
        CalibError: the model, the data or a parameter can't be used, or the data can't support the decision,
            and it is required.
    """
    from calib_core.models.loading import load_model  # noqa: PLC0415 (torch, which commands without models do without)
    from calib_core.scoring.forms import letter_masses, resolved_form  # noqa: PLC0415
    from calib_core.scoring.orders import average_over_orders  # noqa: PLC0415
    from calib_core.scoring.pairs import sequence_logprobs, win_rate  # noqa: PLC0415
    from calib_core.scoring.prompts import PromptEncoder, PromptForm  # noqa: PLC0415
    from calib_core.scoring.questions import encode_questions, score_encoded  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_folder(out, FILE, inputs=(model, data))
    prepared = read_data(data, shots=config.shots)
    if config.require_regime:
        check_sizes(prepared, target_ece=config.target_ece, n_bins=config.n_bins)
    loaded = load_model(model, base_model=config.base_model, dtype=config.dtype)
    sample, shots = prepared.folds["fit"], prepared.shots
    form, masses = resolved_form(config.prompt_form, loaded, sample, shots, batch_tokens=config.batch_tokens)
    encoder = PromptEncoder(loaded.tokenizer, PromptForm(form=form, shots=shots))
    encode = functools.partial(encode_questions, encoder=encoder, context_tokens=loaded.context_tokens)
    # All of it before anything is computed: a bad question is found at once.
    encoded = {name: encode(fold) for name, fold in prepared.folds.items()}
    predictions, flip_rates = {}, {}
    for name, fold in encoded.items():
        score = functools.partial(
            score_encoded, loaded, batch_tokens=config.batch_tokens, description=f"scoring {name}"
        )
        if config.average_orders:
            predictions[name], flip_rates[name] = average_over_orders(fold, encode, score)
        else:
            predictions[name] = score(fold)
    pairs = read_pairs(data, "test")
    preferences = sequence_logprobs(loaded, pairs, batch_tokens=config.batch_tokens) if pairs else None
    if _mass(predictions["test"]) < LEAST_LETTER_MASS and not masses:
        masses = letter_masses(loaded, sample, shots, batch_tokens=config.batch_tokens)
    record: EvaluationRecord = {
        "format": FORMAT,
        "cautions": cautions(predictions["test"], masses=masses),
        **measured(config, predictions),
        "prompt_form": form,
        "letter_masses": masses or None,
        "flip_rates": flip_rates or None,
        "win_rate": win_rate(preferences) if preferences else None,
        "model": {**loaded.describe(), "adapter_files": loaded.adapter_files},
        "data": prepared.fingerprints(),
        "predictions": {name: table.digest() for name, table in predictions.items()},
        "parameters": shown(asdict(config)),
        "seconds": time.monotonic() - started_s,
    }
    with whole_folder(out) as folder:
        for name, table in predictions.items():
            write_predictions(table, folder / f"{name}.parquet")
        if preferences:
            write_preference_logprobs(preferences, folder / PREFERENCES_FILE)
        write_evaluation_record(folder, record)
    for caution in record["cautions"]:
        say(caution)
    regime = record["regime"]
    say(f"regime: {regime['regime']}; branch: {regime['branch']}. {' '.join(regime['reasons'])}")
    return record


def measured(config: EvaluateConfig, predictions: Mapping[str, Predictions]) -> Measured:
    """What an evaluation says of its tables: the regime, and the figures of every fold.

    Args:
        config: parameters of the evaluation.
        predictions: tables by fold, `fit` and `calibration` among them.

    Raises:
        CalibError: the tables can't support the decision, and it is required.
    """
    sizes = {name: len(predictions[name]) for name in ("fit", "calibration")}
    needed = required_examples(config.target_ece, n_bins=config.n_bins)
    fault = too_few(sizes, needed, config.target_ece)
    regime: RegimeRecord
    if fault and not config.require_regime:
        regime = {
            "regime": NOT_DECIDABLE,
            "branch": "none",
            "reasons": [f"The regime is not decidable: {fault}."],
            "target_ece": config.target_ece,
        }
    else:
        tables = (predictions["fit"], predictions["calibration"])
        regime = regime_test(*tables, **values_of(config, RegimeTest)).to_dict()
    options = values_of(config, Measuring)
    return {
        "regime": regime,
        "figures": {name: measure(table, **options).to_dict() for name, table in predictions.items()},
    }


def _mass(table: Predictions) -> float:
    return 1.0 if table.letter_mass is None else float(table.letter_mass.mean())
