"""`summary.json`: what a run decided, and what that rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

from calib_core.decisions.result import RegimeRecord
from calib_core.decisions.verdict import GateRecord
from calib_core.metrics.summary import FiguresRecord, WinRateRecord
from calib_core.models.records import ModelRecord
from calib_core.storage.files import write_json
from calib_core.storage.records import check_format, read_record

FILE = "summary.json"
FORMAT = 1


class BaselineRecord(FiguresRecord):
    """Figures of what the output model is compared with."""

    temperature: NotRequired[Annotated[float, "Of `temperature_scaling`: the input model's."]]


class EvaluatedRecord(TypedDict):
    """The evaluation of one side."""

    evaluation: Annotated[str, "SHA-256 of its `evaluation.json`."]
    model: Annotated[ModelRecord, "The model that it is about."]


class EvidenceRecord(TypedDict):
    """What the decision rests on."""

    data: Annotated[dict[str, str], "Fingerprints of the folds."]
    before: EvaluatedRecord
    after: NotRequired[EvaluatedRecord]
    report: Annotated[str, "SHA-256 of `report.html`."]


class DecisionRecord(TypedDict):
    """What `promote` decided, and on which figures."""

    format: NotRequired[Annotated[int, "Version of this format: 1."]]
    cautions: NotRequired[Annotated[list[str], "What is to be known before the figures are believed."]]
    regime: Annotated[str, "`calibrated`, `calibratable` or `non_calibratable`."]
    branch: Annotated[str, "`none`, `temperature`, `cft` or `rcft`."]
    before: Annotated[FiguresRecord, "The input model on the test fold."]
    after: Annotated[FiguresRecord, "The output model on it; the same as `before` if nothing was done."]
    baselines: Annotated[
        dict[str, BaselineRecord], "`temperature_scaling`; `unaligned` if `calib align` made the input model."
    ]
    promoted: Annotated[bool, "Whether the output model takes the input model's place."]
    reasons: Annotated[list[str], "The decision in sentences."]
    report: Annotated[str, "Path or URI of the report."]
    model: Annotated[str, "Path or URI of the model to use from now on."]
    gate: Annotated[GateRecord | None, "What the gate found; null if there was nothing to compare."]
    bounds: Annotated[RegimeRecord, "What the regime test found of the input model."]
    out_of_domain: Annotated[dict[str, FiguresRecord], "`before` and `after` on other questions, if given."]
    win_rate: Annotated[
        dict[str, WinRateRecord], "`before` and `after` on held-out preference pairs, if given."
    ]
    timing: Annotated[dict[str, float], "Seconds by step."]


class SummaryRecord(DecisionRecord):
    """What a run decided, and what that rests on."""

    evidence: EvidenceRecord


def read_summary(folder: Path) -> SummaryRecord:
    """Read what `summary.json` says.

    Raises:
        DataFormatError: there is none, or it isn't one that this version knows.
    """
    record = read_record(folder / FILE, SummaryRecord, advice="make the folder with `promote`")
    check_format(record.get("format", FORMAT), FORMAT, str(folder / FILE))
    return record


def write_summary(folder: Path, record: SummaryRecord) -> None:
    """Write `summary.json`."""
    write_json(folder / FILE, record)
