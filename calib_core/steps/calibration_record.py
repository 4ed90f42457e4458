"""`calibration.json` with all that our own steps say in it: how an adapter, or a temperature, was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast, get_type_hints

from calib_core.decisions.result import TemperatureRecord
from calib_core.metrics.summary import FiguresRecord, WinRateRecord
from calib_core.models.records import FORMAT, AdapterRecord
from calib_core.storage.records import check_format, check_record, read_record

METHODS = ("dpo", "cft", "rcft", "temperature")
ADVICE = "copy the adapter again"


class HistoryRecord(TypedDict):
    """Figures of the calibration fold at one point of a training run."""

    step: int
    epoch: float
    objective: str
    train_loss: float | None
    accuracy: float
    mean_confidence: float
    conf_ece: float
    debiased_ece: float
    debiased_ece_high: float
    nll_nats: float
    gap_standard_error: float
    temperature: float
    tempered_nll_nats: float
    tempered_ece_high: float
    above_chance: bool
    letter_mass: NotRequired[float | None]
    lambda_ece: float
    label_smoothing: float
    n: int
    chosen: Annotated[bool, "Whether the adapter is that of this evaluation."]


class CalibrationRecord(AdapterRecord):
    """How an adapter, or a temperature, was made; which fields are there depends on `method`."""

    parameters: NotRequired[Annotated[dict[str, Any], "Parameters of the step, without secrets."]]
    seconds: NotRequired[Annotated[float, "How long it took."]]
    history: NotRequired[Annotated[list[HistoryRecord], "`cft`, `rcft`: every evaluation of the run."]]
    steps: NotRequired[Annotated[int, "`cft`, `rcft`: optimiser steps."]]
    processes: NotRequired[Annotated[int, "`cft`, `rcft`: processes that trained together."]]
    stopped: NotRequired[Annotated[str, "`cft`, `rcft`: why training ended."]]
    calibration: NotRequired[
        Annotated[TemperatureRecord, "`temperature`: what it does to the calibration fold."]
    ]
    training: NotRequired[Annotated[dict[str, Any], "`dpo`: figures of the training."]]
    unaligned: NotRequired[Annotated[FiguresRecord, "`dpo`: the test fold before alignment."]]
    win_rate: NotRequired[
        Annotated[dict[str, WinRateRecord], "`dpo`: on held-out pairs, `before` and `after`."]
    ]


def read_calibration_record(path: Path) -> CalibrationRecord:
    """Read what a `calibration.json` says; nothing if there is no such file.

    Of another program's record only what any adapter may say is read: its other fields are its own, whatever
    they are called.

    Raises:
        DataFormatError: it isn't one that this version knows.
    """
    if not path.is_file():
        return {}
    record = read_record(path, AdapterRecord, advice=ADVICE)
    check_format(record.get("format", FORMAT), FORMAT, str(path))
    if record.get("method") in METHODS:
        return check_record(record, CalibrationRecord, str(path), advice=ADVICE)
    known = get_type_hints(AdapterRecord)
    return cast(CalibrationRecord, {name: value for name, value in record.items() if name in known})
