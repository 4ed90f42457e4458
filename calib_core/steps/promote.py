"""Promote: the gate between a model and its recalibrated successor, the run's summary and its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from calib_core.champion.history import figures_row, read_figures
from calib_core.champion.state import now, read_champion
from calib_core.decisions.budget import History
from calib_core.decisions.gate import decide
from calib_core.decisions.result import RegimeRecord
from calib_core.decisions.temperature import apply_temperature, fit_temperature
from calib_core.errors import CalibError, ConfigError, DataFormatError
from calib_core.metrics.summary import FiguresRecord, measure
from calib_core.models.records import FILE as CALIBRATION
from calib_core.predictions.preferences import PREFERENCES_FILE, read_preference_logprobs
from calib_core.predictions.table import Predictions
from calib_core.report import ReportData, write_page
from calib_core.report.cautions import cautions
from calib_core.runtime.progress import say
from calib_core.settings.groups import Measuring
from calib_core.settings.parameters import parameter, values_of
from calib_core.steps.calibration_record import CalibrationRecord, read_calibration_record
from calib_core.steps.evaluation_record import EvaluationRecord
from calib_core.steps.evidence import (
    Evaluation,
    check_input,
    check_model,
    check_same_data,
    check_training,
    read_evaluation,
    require_regime,
)
from calib_core.steps.summary_record import (
    FORMAT,
    BaselineRecord,
    DecisionRecord,
    EvidenceRecord,
    SummaryRecord,
    write_summary,
)
from calib_core.storage.files import check_output_file, sha256_file
from calib_core.storage.uris import exists, fetch, join
from calib_core.version import versions

BRANCHES = ("none", "temperature", "cft", "rcft")

DAYS_OF_A_YEAR = 365

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(Measuring):
    """Parameters of the gate."""

    GROUP = "gate"

    accuracy_margin: float = parameter(
        0.03,
        "Largest drop in accuracy, as a share of all questions, that the gate accepts.",
        at_least=0,
        at_most=1,
    )
    total_accuracy_margin: float = parameter(
        0.05, "Largest drop in accuracy since the first champion that it accepts.", at_least=0, at_most=1
    )
    brier_margin: float = parameter(
        0.02,
        "Largest rise of the Brier score, above the input model's after one temperature, that it accepts.",
        at_least=0,
        at_most=2,
    )
    win_rate_margin: float = parameter(
        0.05,
        "Largest drop in the preference win rate, as a share of the held-out pairs, that it accepts.",
        at_least=0,
        at_most=1,
    )


def promote(  # noqa: PLR0913 - two models with an evaluation each, and where things are
    config: PromoteConfig,
    *,
    before: Path,
    after: Path,
    model_before: str,
    model_after: str,
    branch: str,
    out: Path,
    report: str = "report.html",
    champion: str = "",
    places: Mapping[str, str | Path] | None = None,
) -> SummaryRecord:
    """Decide on the test fold which model to use, and write `summary.json` and `report.html`.

    The output model is promoted where all criteria of `decisions.gate` hold. Temperature scaling, fitted on
    the calibration fold, is measured too.

    Args:
        config: parameters of the gate.
        before: evaluation folder of the input model.
        after: evaluation folder of the output model; not read where `branch` is `none`.
        model_before: path or URI of the input model.
        model_after: path or URI of the output model.
        branch: `none`, `temperature`, `cft` or `rcft`.
        out: folder for both files; other files in it stay.
        report: path or URI under which the report will be found, for the summary.
        champion: champion's folder, whose history says how often models were compared and what promotions
            may have cost, and whose figures over time the report shows; "" for none.
        places: where models lie now that the summary names by the place they are going to have.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ConfigError: `branch` is none of the four, or `out` can't be written.
        EvidenceError: the evaluations, the models and what they were trained on don't belong together; the
            message names the link that is broken.
        DataFormatError: a file can't be read, or the evaluations were made in different ways.
        NotEnoughDataError: too few test questions to decide on.
    """
    if branch not in BRANCHES:
        raise ConfigError(f"branch must be one of {', '.join(BRANCHES)}; received {branch!r}")
    for name in ("report.html", "summary.json"):
        check_output_file(out / name)
    sides, trained = _evaluations(before, after, model_before, model_after, branch, places or {})
    records = {side: evaluation.record for side, evaluation in sides.items()}
    test = {side: evaluation.tables["test"] for side, evaluation in sides.items()}
    regime = records["before"]["regime"]
    temperature = fit_temperature(sides["before"].tables["calibration"])
    gate = None
    if branch != "none":
        gate = decide(
            test["before"],
            test["after"],
            wins=_wins(before, after, records),
            temperature=temperature,
            history=_history(champion),
            **asdict(config),
        )
    promoted = gate is not None and gate.promoted
    figures = {side: _figures(config, predictions) for side, predictions in test.items()}
    decided: DecisionRecord = {
        "format": FORMAT,
        "cautions": _cautions(test, records),
        "regime": regime["regime"],
        "branch": branch,
        "before": figures["before"],
        "after": figures.get("after", figures["before"]),
        "baselines": _baselines(config, test["before"], temperature, trained["before"]),
        "promoted": promoted,
        "reasons": [*regime["reasons"], *(gate.reasons if gate else [_why_nothing(regime)])],
        "report": report,
        "model": model_after if promoted else model_before,
        "gate": gate.to_dict() if gate else None,
        "bounds": regime,
        "out_of_domain": _each_side(records, lambda side: side["figures"].get("out_of_domain")),
        "win_rate": _each_side(records, lambda side: side.get("win_rate")),
        "timing": _timing(records, trained["after"]),
    }
    write_page(_shown(config, decided, sides, trained["after"], champion), out / "report.html")
    summary: SummaryRecord = {**decided, "evidence": _evidence(sides, out / "report.html")}
    write_summary(out, summary)  # last: where it is, the report is there too
    return summary


def _evidence(sides: Mapping[str, Evaluation], report: Path) -> EvidenceRecord:
    """What the decision rests on."""
    evidence: EvidenceRecord = {
        "data": sides["before"].record["data"],
        "before": sides["before"].evidence(),
        "report": sha256_file(report),
    }
    if "after" in sides:
        evidence["after"] = sides["after"].evidence()
    return evidence


def _shown(
    config: PromoteConfig,
    decided: DecisionRecord,
    sides: Mapping[str, Evaluation],
    training: CalibrationRecord,
    champion: str,
) -> ReportData:
    """What the report shows of a run."""
    record, after = sides["before"].record, sides.get("after")
    trend = []
    if champion:
        trend = [*read_figures(champion), figures_row(decided, at=now(), run="", snapshot="")]
    return ReportData(
        title=Path(record["model"]["base"]).name,
        summary=decided if after else {**decided, "after": None},
        before=sides["before"].tables["test"],
        after=after.tables["test"] if after else None,
        regime=record["regime"],
        history=training.get("history"),
        trend=trend,
        parameters={**record.get("parameters", {}), **asdict(config), "branch": decided["branch"]},
        versions=versions(),
        fingerprints={
            "data": record["data"],
            "models": {side: evaluation.record["model"] for side, evaluation in sides.items()},
        },
    )


def _evaluations(
    before: Path, after: Path, model_before: str, model_after: str, branch: str, places: Mapping[str, Any]
) -> tuple[dict[str, Evaluation], dict[str, CalibrationRecord]]:
    """Evaluations by side, and what training wrote beside each model; all checked to belong together."""
    sides = {"before": read_evaluation(before)}
    require_regime(sides["before"])
    place = {name: places.get(name, name) for name in (model_before, model_after)}
    check_input(sides["before"], model_before, place[model_before])
    trained = {"before": _training(model_before, place[model_before])}
    if branch == "none":
        return sides, {**trained, "after": trained["before"]}
    sides["after"] = read_evaluation(after)
    check_same_data(sides["before"], sides["after"])
    folder = check_model(sides["after"], model_after, place[model_after])
    trained["after"] = check_training(sides["before"], sides["after"], model_after, folder)
    return sides, trained


def _cautions(test: Mapping[str, Predictions], records: Mapping[str, EvaluationRecord]) -> list[str]:
    """What must be said of either model's figures first."""
    names = {"before": "The input model", "after": "The output model"}
    return [
        caution
        for side, table in test.items()
        for caution in cautions(table, model=names[side], masses=records[side].get("letter_masses"))
    ]


def _figures(config: PromoteConfig, predictions: Predictions) -> FiguresRecord:
    return measure(predictions, **values_of(config, Measuring)).to_dict()


def _why_nothing(regime: RegimeRecord) -> str:
    if regime["regime"] == "calibrated":
        return "The input model is calibrated, so nothing was fine-tuned and it is kept."
    return "No repair that is allowed can help, so nothing was done and the input model is kept."


def _wins(
    before: Path, after: Path, records: Mapping[str, EvaluationRecord]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Which held-out preference pairs each model gets right; None where there are none.

    Raises:
        DataFormatError: a model was measured on pairs and the other wasn't, or on other ones.
    """
    if not any(side.get("win_rate") for side in records.values()):
        return None
    one, other = (read_preference_logprobs(folder / PREFERENCES_FILE) for folder in (before, after))
    if one.ids != other.ids:
        raise DataFormatError(
            f"{before} and {after}: measured on different preference pairs; evaluate both on one data folder"
        )
    return one.wins(), other.wins()


def _history(champion: str) -> History:
    """How often models were compared within a year, and what promotions since the first may have cost."""
    if not champion:
        return History()
    begin = datetime.now(UTC) - timedelta(days=DAYS_OF_A_YEAR)
    compared = [row for row in read_figures(champion) if row["branch"] != "none" and row["time"] >= begin]
    found = read_champion(champion)
    figures = found[0].history[-1].figures if found else {}
    return History(comparisons=len(compared), accuracy_change=float(figures.get("accuracy_since_first", 0.0)))


def _baselines(
    config: PromoteConfig, test: Predictions, temperature: float, training: CalibrationRecord
) -> dict[str, BaselineRecord]:
    """What the output model is seen against, beside the input model: all on the test fold.

    The temperature is the input model's, fitted on other questions than the test fold's.
    """
    figures = _figures(config, apply_temperature(test, temperature))
    baselines: dict[str, BaselineRecord] = {"temperature_scaling": {"temperature": temperature, **figures}}
    if unaligned := training.get("unaligned"):
        return {"unaligned": cast(BaselineRecord, unaligned), **baselines}
    return baselines


def _each_side(
    records: Mapping[str, EvaluationRecord], pick: Callable[[EvaluationRecord], Found | None]
) -> dict[str, Found]:
    """`before` and `after` -> what `pick` finds there; sides without it are left out."""
    return {side: value for side, found in records.items() if (value := pick(found)) is not None}


def _training(model: str, place: str | Path) -> CalibrationRecord:
    """What training wrote beside the input model's adapter, where that can be read from here."""
    try:
        record = join(place, CALIBRATION)
        return read_calibration_record(fetch(record)) if exists(record) else {}
    except CalibError as error:  # the decision doesn't hang on it
        say(f"the report will not show how {model} was trained: {error}")
        return {}


def _timing(records: Mapping[str, EvaluationRecord], training: CalibrationRecord) -> dict[str, float]:
    """Seconds of every step that said how long it took."""
    seconds = {f"evaluate_{side}": found.get("seconds") for side, found in records.items()}
    if "after" in records:
        seconds["finetune"] = training.get("seconds")
    return {name: value for name, value in seconds.items() if value is not None}
