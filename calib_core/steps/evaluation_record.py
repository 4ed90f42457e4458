"""`evaluation.json`: what a model measures on a data folder, and what exactly was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from calib_core.decisions.result import RegimeRecord
from calib_core.metrics.summary import FiguresRecord, WinRateRecord
from calib_core.models.records import ModelRecord
from calib_core.storage.files import write_json
from calib_core.storage.records import check_format, read_record

FILE = "evaluation.json"
FORMAT = 1


class Measured(TypedDict):
    """What is measured on the tables alone."""

    regime: Annotated[RegimeRecord, "What the regime test found on `fit` and `calibration`."]
    figures: Annotated[dict[str, FiguresRecord], "By fold."]


class EvaluationRecord(Measured):
    """What `evaluate` writes beside its predictions."""

    format: NotRequired[Annotated[int, "Version of this format: 1."]]
    cautions: NotRequired[Annotated[list[str], "What is to be known before the figures are believed."]]
    prompt_form: NotRequired[Annotated[str, "`plain` or `chat`: how the questions were put to the model."]]
    letter_masses: NotRequired[
        Annotated[
            dict[str, float] | None,
            "By prompt form: mean letter mass of a sample of questions; null if it was not measured.",
        ]
    ]
    flip_rates: NotRequired[
        Annotated[
            dict[str, float] | None,
            "By fold: share of questions whose top option changes with the order of options; null without "
            "`average_orders`.",
        ]
    ]
    win_rate: NotRequired[Annotated[WinRateRecord | None, "On held-out preference pairs; null without any."]]
    model: Annotated[ModelRecord, "The model that was evaluated."]
    data: Annotated[dict[str, str], "Fingerprints of the folds, as in `data.json`."]
    predictions: Annotated[dict[str, str], "Digests of the tables beside it, by fold."]
    parameters: NotRequired[Annotated[dict[str, Any], "Parameters of `evaluate`, without secrets."]]
    seconds: NotRequired[Annotated[float, "How long it took."]]


def read_evaluation_record(folder: Path) -> EvaluationRecord:
    """Read what `evaluation.json` says.

    Raises:
        DataFormatError: there is none, or it isn't one that this version knows.
    """
    record = read_record(folder / FILE, EvaluationRecord, advice="make the folder with `evaluate`")
    check_format(record.get("format", FORMAT), FORMAT, str(folder / FILE))
    return record


def write_evaluation_record(folder: Path, record: EvaluationRecord) -> None:
    """Write `evaluation.json`."""
    write_json(folder / FILE, record)
