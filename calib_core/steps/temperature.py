"""Temperature: a model whose option logits are divided by one number; it isn't loaded for that."""

from __future__ import annotations

import shutil
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

from calib_core.decisions.temperature import apply_temperature
from calib_core.errors import DataFormatError, EvidenceError
from calib_core.models.adapters import (
    copy_adapter,
    file_hashes,
    files_digest,
    has_temperature_alone,
    lineage,
)
from calib_core.models.records import FILE as RECORD
from calib_core.models.records import ModelRecord, read_adapter_record, write_adapter_record
from calib_core.predictions.files import write_predictions
from calib_core.predictions.preferences import PREFERENCES_FILE
from calib_core.predictions.table import Predictions
from calib_core.runtime.progress import say
from calib_core.steps.calibration_record import CalibrationRecord
from calib_core.steps.evaluate import EvaluateConfig, measured
from calib_core.steps.evaluation_record import FILE as EVALUATION
from calib_core.steps.evaluation_record import EvaluationRecord, write_evaluation_record
from calib_core.steps.evidence import Evaluation, read_evaluation, require_regime
from calib_core.storage.files import check_output_folder, whole_folder
from calib_core.version import __version__


def give_temperature(model: str, evaluation: Path, out: Path, after: Path) -> CalibrationRecord:
    """Give a model the temperature that its evaluation found on the calibration fold.

    Args:
        model: the model that was evaluated: model folder, adapter folder or hub id.
        evaluation: its evaluation folder.
        out: model folder to write, atomically: the adapter with its new temperature; of a model
            without an adapter a folder that holds `calibration.json` alone, which names the base and is
            loaded like an adapter.
        after: evaluation folder to write, atomically: that of the model with its temperature.

    Returns:
        What `calibration.json` says: the method, the base, the temperature, what it does to the calibration
        fold, fingerprints of the data, seconds.

    Raises:
        DataFormatError: `evaluation` names no temperature, or a file can't be read.
        EvidenceError: it isn't whole, or another adapter than `model` was evaluated.
        ConfigError: the model's adapter can't be read, or a folder to write holds other files.
    """
    started_s = time.monotonic()
    check_output_folder(out, RECORD, inputs=(model, evaluation))
    check_output_folder(after, EVALUATION, inputs=(model, evaluation))
    before = read_evaluation(evaluation)
    require_regime(before)
    origin, found = before.record["model"], before.record["regime"].get("temperature")
    if not found:
        raise DataFormatError(
            f"{evaluation / EVALUATION}: field regime.temperature is missing; make the folder with `evaluate`"
        )
    whole = found["value"] * origin.get("temperature", 1.0)
    record: CalibrationRecord = {
        "method": "temperature",
        "input_adapter": origin["adapter"],
        "adapter": origin["adapter"],
        "base": origin["base"],
        "base_revision": origin.get("base_revision", ""),
        "base_digest": origin["base_digest"],
        "temperature": whole,
        "calibration": found,
        "prompt": (before.tables["calibration"].protocol or {}).get("prompt") or {},
        "data": before.record["data"],
        "library_version": __version__,
        "seconds": time.monotonic() - started_s,
    }
    with whole_folder(out) as folder:
        if evaluated := origin.get("adapter_files"):
            record |= _take_over(model, folder, evaluated)
        record = cast(CalibrationRecord, write_adapter_record(folder, record))
    scaled: ModelRecord = {**origin, "temperature": whole, "adapter_files": files_digest(out)}
    _write_evaluation(before, after, scaled, found["value"], started_s)
    say(f"temperature: {found['value']:.3g} on top of {origin.get('temperature', 1.0):.3g}")
    return record


def _take_over(model: str, folder: Path, evaluated: str) -> CalibrationRecord:
    """Copy the adapter that was evaluated; what its new record says of it.

    Raises:
        EvidenceError: `model` is another one.
    """
    from calib_core.models.files import resolve  # noqa: PLC0415 (transformers, which a base does without)

    source = resolve(model)
    if files_digest(source) != evaluated:
        raise EvidenceError(
            f"{model}: not the model that was evaluated; give `evaluate` and this step one model"
        )
    copy_adapter(source, folder)
    before = lineage(read_adapter_record(source))
    (folder / RECORD).unlink(missing_ok=True)
    files = {} if has_temperature_alone(source) else file_hashes(folder)
    return {"lineage": list(before), "files": files}


def _write_evaluation(
    before: Evaluation, after: Path, model: ModelRecord, temperature: float, started_s: float
) -> None:
    known = {field.name for field in fields(EvaluateConfig)}
    given = before.record.get("parameters", {})
    config = EvaluateConfig(**{name: value for name, value in given.items() if name in known})
    tables = {name: _scaled(table, temperature, model) for name, table in before.tables.items()}
    record: EvaluationRecord = {
        **before.record,
        **measured(config, tables),
        "predictions": {name: table.digest() for name, table in tables.items()},
        "model": model,
        "seconds": time.monotonic() - started_s,
    }
    pairs = before.folder / PREFERENCES_FILE
    with whole_folder(after) as folder:
        for name, table in tables.items():
            write_predictions(table, folder / f"{name}.parquet")
        if pairs.is_file():  # whole answers are no options: nothing changes
            shutil.copyfile(pairs, folder / PREFERENCES_FILE)
        write_evaluation_record(folder, record)


def _scaled(table: Predictions, temperature: float, model: ModelRecord) -> Predictions:
    scaled = apply_temperature(table, temperature)
    return replace(scaled, protocol={**(table.protocol or {}), "temperature": model.get("temperature", 1.0)})
