"""Promote: the gate between a model and its recalibrated successor, the run's summary and its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calib_core.champion.history import figures_row, read_figures
from calib_core.champion.state import now
from calib_core.decisions.gate import decide
from calib_core.decisions.temperature import apply_temperature, fit_temperature
from calib_core.errors import CalibError, ConfigError
from calib_core.metrics.summary import measure
from calib_core.predictions.table import Predictions
from calib_core.report import ReportData, write_page
from calib_core.runtime.progress import say
from calib_core.settings.groups import Measuring
from calib_core.settings.parameters import parameter
from calib_core.steps.evidence import (
    Evaluation,
    check_input,
    check_model,
    check_same_data,
    check_training,
    read_evaluation,
)
from calib_core.storage.files import read_json, sha256_file, write_json
from calib_core.storage.uris import exists, fetch, join
from calib_core.version import versions

BRANCHES = ("none", "cft", "rcft")


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(Measuring):
    """Parameters of the gate."""

    GROUP = "gate"

    accuracy_margin: float = parameter(
        0.01,
        "Largest drop in accuracy, as a share of all questions, that the gate accepts.",
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
) -> dict[str, Any]:
    """Decide on the test fold which model to use, and write `summary.json` and `report.html`.

    The output model is promoted where the paired interval of the ECE change lies below zero and accuracy does
    not fall by more than the margin. Temperature scaling, fitted on the calibration fold, is measured too.

    Args:
        config: parameters of the gate.
        before: evaluation folder of the input model.
        after: evaluation folder of the output model; not read where `branch` is `none`.
        model_before: path or URI of the input model.
        model_after: path or URI of the output model.
        branch: `none`, `cft` or `rcft`.
        out: folder for both files; other files in it stay.
        report: path or URI under which the report will be found, for the summary.
        champion: champion's folder, whose figures over time the report shows; "" for none.
        places: where models lie now that the summary names by the place they are going to have.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ConfigError: `branch` is none of the three.
        EvidenceError: the evaluations, the models and what they were trained on don't belong together; the
            message names the link that is broken.
        DataFormatError: a file can't be read, or the evaluations were made in different ways.
        NotEnoughDataError: too few test questions to decide on.
    """
    if branch not in BRANCHES:
        raise ConfigError(f"branch must be one of {', '.join(BRANCHES)}; received {branch!r}")
    sides, trained = _evaluations(before, after, model_before, model_after, branch, places or {})
    facts = {side: evaluation.facts for side, evaluation in sides.items()}
    test = {side: evaluation.tables["test"] for side, evaluation in sides.items()}
    regime = facts["before"]["regime"]
    promoted, reasons, gate = (
        False,
        ["The input model is calibrated, so nothing was fine-tuned and it is kept."],
        None,
    )
    if branch != "none":
        result = decide(
            test["before"],
            test["after"],
            accuracy_margin=config.accuracy_margin,
            n_bins=config.n_bins,
            n_resamples=config.n_resamples,
            seed=config.seed,
        )
        promoted, reasons, gate = result.promoted, list(result.reasons), result.to_dict()
    figures = {side: _figures(config, predictions) for side, predictions in test.items()}
    summary = {
        "regime": regime["regime"],
        "branch": branch,
        "before": figures["before"],
        "after": figures.get("after", figures["before"]),
        "baselines": _baselines(config, sides["before"], trained["before"]),
        "promoted": promoted,
        "reasons": [*regime["reasons"], *reasons],
        "report": report,
        "model": model_after if promoted else model_before,
        "gate": gate,
        "bounds": regime,
        "out_of_domain": _each_side(facts, lambda side: side["figures"].get("out_of_domain")),
        "win_rate": _each_side(facts, lambda side: side.get("win_rate")),
        "timing": _timing(facts, trained["after"]),
    }
    trend = []
    if champion:
        trend = [*read_figures(champion), figures_row(summary, at=now(), run="", snapshot="")]
    data = ReportData(
        title=Path(facts["before"]["model"]["base"]).name,
        summary=summary if branch != "none" else {**summary, "after": None},
        before=test["before"],
        after=test.get("after"),
        regime=regime,
        history=trained["after"].get("history"),
        trend=trend,
        parameters={**facts["before"].get("parameters", {}), **asdict(config), "branch": branch},
        versions=versions(),
        fingerprints={
            "data": facts["before"]["data"],
            "models": _each_side(facts, lambda side: side["model"]),
        },
    )
    write_page(data, out / "report.html")
    summary["evidence"] = {
        "data": facts["before"]["data"],
        **{side: evaluation.evidence() for side, evaluation in sides.items()},
        "report": sha256_file(out / "report.html"),
    }
    write_json(out / "summary.json", summary)  # last: where it is, the report is there too
    return summary


def _evaluations(
    before: Path, after: Path, model_before: str, model_after: str, branch: str, places: Mapping[str, Any]
) -> tuple[dict[str, Evaluation], dict[str, dict[str, Any]]]:
    """Evaluations by side, and what training wrote beside each model; all checked to belong together."""
    sides = {"before": read_evaluation(before)}
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


def _figures(config: PromoteConfig, predictions: Predictions) -> dict[str, Any]:
    options = {"n_bins": config.n_bins, "n_resamples": config.n_resamples, "seed": config.seed}
    return measure(predictions, **options).to_dict()


def _baselines(config: PromoteConfig, before: Evaluation, training: Mapping[str, Any]) -> dict[str, Any]:
    """What the output model is seen against, beside the input model: all on the test fold."""
    # One temperature, fitted on other questions than the test fold's.
    temperature = fit_temperature(before.tables["calibration"])
    figures = _figures(config, apply_temperature(before.tables["test"], temperature))
    scaled = {"temperature_scaling": {"temperature": temperature, **figures}}
    unaligned = training.get("unaligned")
    return {"unaligned": unaligned, **scaled} if unaligned else scaled


def _each_side(facts: Mapping[str, Any], pick: Callable[[Any], Any]) -> dict[str, Any]:
    """`before` and `after` -> what `pick` finds there; sides without it are left out."""
    return {side: value for side, found in facts.items() if (value := pick(found)) is not None}


def _training(model: str, place: str | Path) -> dict[str, Any]:
    """What training wrote beside the input model's adapter, where that can be read from here."""
    try:
        record = join(place, "calibration.json")
        return read_json(fetch(record)) if exists(record) else {}
    except CalibError as error:  # the decision doesn't hang on it
        say(f"the report will not show how {model} was trained: {error}")
        return {}


def _timing(facts: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of every step that said how long it took."""
    seconds = {f"evaluate_{side}": found.get("seconds") for side, found in facts.items()}
    if "after" in facts:
        seconds["finetune"] = training.get("seconds")
    return {name: value for name, value in seconds.items() if value is not None}
