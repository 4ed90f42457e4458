"""The chain from a model to the summary that promotes it: links by content, checked before anything is said.

    data folder -- fingerprints of its folds --> evaluation.json, calibration.json
    predictions table -- digest --> evaluation.json
    model -- base_digest, digest of the adapter's files --> evaluation.json
    evaluation.json -- SHA-256 --> summary.json (`evidence`) --> champion.json

Digests find damage and mix-ups. They are no signatures: who may write all of these files can forge the chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib_core.data.folds import FOLDS
from calib_core.errors import CalibError, EvidenceError, NotEnoughDataError
from calib_core.models.adapters import (
    copy_adapter,
    files_digest,
    is_tied_to_base,
    lineage,
)
from calib_core.models.records import FILE as CALIBRATION
from calib_core.predictions.files import read_predictions
from calib_core.predictions.table import Predictions
from calib_core.report.wording import NOT_DECIDABLE
from calib_core.steps.calibration_record import CalibrationRecord, read_calibration_record
from calib_core.steps.evaluation_record import FILE as RECORD
from calib_core.steps.evaluation_record import EvaluationRecord, read_evaluation_record
from calib_core.steps.summary_record import EvaluatedRecord, SummaryRecord
from calib_core.storage.files import sha256_file
from calib_core.storage.uris import fetch, is_remote

_MODEL = ("base_digest", "adapter")
"""What evaluation.json and each table's protocol must say alike."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation whose tables are those that it speaks of.

    Attributes:
        folder: What `evaluate` wrote.
        record: What `evaluation.json` says.
        tables: Predictions by fold.
    """

    folder: Path
    record: EvaluationRecord
    tables: dict[str, Predictions]

    def evidence(self) -> EvaluatedRecord:
        """What a summary says of it: the record's SHA-256, and the model that it is about."""
        return {"evaluation": sha256_file(self.folder / RECORD), "model": self.record["model"]}


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation folder, and hold its tables to its record.

    Raises:
        EvidenceError: a table isn't the one that the record was written with.
        DataFormatError: this is no evaluation, or a file can't be read.
    """
    record = read_evaluation_record(folder)
    if absent := sorted(set(FOLDS) - record["predictions"].keys()):
        raise EvidenceError(
            f"{folder / RECORD}: predictions of {', '.join(absent)} missing; make the folder with `evaluate`"
        )
    tables = {name: read_predictions(folder / f"{name}.parquet") for name in record["predictions"]}
    for name, table in tables.items():
        if table.digest() != record["predictions"][name]:
            raise EvidenceError(
                f"{folder / f'{name}.parquet'}: not the table that {RECORD} was written with (their digests "
                "differ); evaluate the model again"
            )
        protocol = table.protocol or {}
        if other := [key for key in _MODEL if protocol.get(key) != record["model"].get(key)]:
            raise EvidenceError(
                f"{folder / f'{name}.parquet'}: made with another model than {RECORD} names "
                f"({', '.join(other)} differ); evaluate the model again"
            )
    return Evaluation(folder=folder, record=record, tables=tables)


def require_regime(evaluation: Evaluation) -> None:
    """Refuse an evaluation that names no regime, where something is to be decided by it.

    Raises:
        NotEnoughDataError: its folds were too small.
    """
    regime = evaluation.record["regime"]
    if regime["regime"] == NOT_DECIDABLE:
        raise NotEnoughDataError(f"{evaluation.folder}: {' '.join(regime['reasons'])}")


def check_same_data(before: Evaluation, after: Evaluation) -> None:
    """Hold two evaluations to the same questions in every fold.

    Raises:
        EvidenceError: they were made on different ones; the folds are named.
    """
    one, other = before.record["data"], after.record["data"]
    if different := sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)):
        raise EvidenceError(
            f"{before.folder} and {after.folder}: made on different questions ({', '.join(different)} "
            "differ); evaluate both models on the same data folder"
        )


def check_model(evaluation: Evaluation, name: str, place: str | Path) -> Path:
    """Hold a model to the evaluation that speaks of it: an adapter by its files.

    Args:
        evaluation: Of the model.
        name: What the summary calls it.
        place: Where it can be read now.

    Returns:
        Its folder here.

    Raises:
        EvidenceError: it can't be read, or is another one than was evaluated.
    """
    measured = evaluation.record["model"].get("adapter_files")
    if not measured:
        raise EvidenceError(
            f"{evaluation.folder / RECORD}: evaluates a model without an adapter, so {name} can't be "
            "promoted by it; evaluate the adapter"
        )
    try:
        folder = _folder(place)
        found = files_digest(folder)
    except CalibError as error:
        raise EvidenceError(f"{name}: cannot be checked against its evaluation: {error}") from None
    if found != measured:
        raise EvidenceError(
            f"{name}: not the model that {evaluation.folder} was made with (SHA-256 over its files: "
            f"{found[:12]}, evaluated: {measured[:12]}); evaluate it, or name the model that was evaluated"
        )
    return folder


def check_input(evaluation: Evaluation, name: str, place: str | Path) -> None:
    """Hold the input model to its evaluation, where it can be read from here.

    A base model in a bucket or on a hub is known by its name only: it isn't fetched for this.

    Args:
        evaluation: Of the model.
        name: What the summary calls it.
        place: Where it can be read now.

    Raises:
        EvidenceError: another model than this one was evaluated.
    """
    measured = evaluation.record["model"]
    if is_remote(place) and not measured.get("adapter_files"):
        return
    try:
        folder = fetch(place)
    except CalibError:
        return
    if not folder.is_dir():
        return
    try:
        if is_tied_to_base(folder):
            same = files_digest(folder) == measured.get("adapter_files")
        else:
            from calib_core.models.files import read_checkpoint  # noqa: PLC0415 (takes seconds)

            digest = read_checkpoint(folder).digest()
            same = not measured["adapter"] and digest == measured["base_digest"]
    except CalibError as error:
        raise EvidenceError(f"{name}: cannot be checked against its evaluation: {error}") from None
    if not same:
        raise EvidenceError(
            f"{name}: not the model that {evaluation.folder} was made with (the digests of their files "
            "differ); evaluate it, or name the model that was evaluated"
        )


def check_training(before: Evaluation, after: Evaluation, name: str, folder: Path) -> CalibrationRecord:
    """Hold an adapter's training to the questions that judge it: made from the same folds, test kept out.

    Args:
        before: Evaluation of the input model.
        after: Evaluation of the adapter.
        name: What the summary calls the adapter.
        folder: The adapter.

    Returns:
        What `calibration.json` says.

    Raises:
        EvidenceError: it doesn't say what the adapter was trained on, or that was something else.
    """
    record, judged = read_calibration_record(folder / CALIBRATION), after.record["data"]
    trained = record.get("data", {})
    if missing := [fold for fold in FOLDS if fold not in trained]:
        raise EvidenceError(
            f"{name}: its calibration.json names no fingerprint of {', '.join(missing)} in field 'data', so "
            "nothing shows that its test questions weren't trained on; a program that trains adapters must "
            "write there what data.json says of the folds that it was given"
        )
    if different := [fold for fold in FOLDS if trained[fold] != judged.get(fold)]:
        raise EvidenceError(
            f"{name}: trained with another data folder than the one that it is judged by "
            f"({', '.join(different)} differ in calibration.json and evaluation.json), so that its test "
            "questions may have been trained on; train and evaluate on one data folder"
        )
    base = before.record["model"]["base_digest"]
    if record.get("base_digest", base) != base:
        raise EvidenceError(
            f"{name}: trained on another base model than {before.folder} was made with; compare it with "
            "that one"
        )
    for earlier in lineage(record)[:-1]:
        seen = {fold: earlier.get("data", {}).get(fold) for fold in ("fit", "calibration")}
        if leaked := [fold for fold, mark in seen.items() if mark and mark == judged["test"]]:
            raise EvidenceError(
                f"{name}: an earlier training of it ({earlier.get('method')}) had the questions that now "
                f"judge it as its fold {leaked[0]}; judge it by other questions"
            )
    return record


def check_summary(summary: SummaryRecord, where: Path, *, data: Mapping[str, Any], report: Path) -> None:
    """Hold a summary to its report, and to the questions that its run had read.

    Args:
        summary: What `promote` wrote.
        where: Its file, for messages.
        data: Fingerprints of the folds that the run's questions were split into.
        report: The report that belongs to it.

    Raises:
        EvidenceError: something is missing, or isn't what the summary was made with.
    """
    evidence = summary["evidence"]
    if evidence["data"] != dict(data):
        raise EvidenceError(
            f"{where}: judged by other questions than this run's snapshot was split into; give `publish` the "
            "snapshot and the summary of one run"
        )
    if not report.is_file() or sha256_file(report) != evidence["report"]:
        raise EvidenceError(
            f"{report}: not the report that {where.name} was written with; run `promote` again"
        )
    if summary["promoted"] and not (summary["gate"] and summary["gate"]["promoted"]):
        raise EvidenceError(f"{where}: field promoted is true and the gate's is not; run `promote` again")


def copy_promoted(summary: SummaryRecord, where: Path, name: str | Path, target: Path) -> str:
    """Copy the files of a model that are loaded, and hold the copy to the summary that promotes it.

    Args:
        summary: What `promote` wrote.
        where: Its file, for messages.
        name: Path or URI of the model.
        target: Folder to write.

    Returns:
        The digest of the model's files.

    Raises:
        EvidenceError: the model can't be read, or is another one than the summary is about.
    """
    judged = summary["evidence"].get("after")
    measured = judged and judged["model"].get("adapter_files")
    try:
        copy_adapter(_folder(name), target)
        found = files_digest(target)
    except CalibError as error:
        raise EvidenceError(f"{name}: can't be published: {error}") from None
    if found != measured:
        raise EvidenceError(
            f"{name}: not the model that {where} promotes (SHA-256 over its files: {found[:12]}, promoted: "
            f"{str(measured)[:12]}); give the output model of the same run"
        )
    return found


def _folder(model: str | Path) -> Path:
    """The folder of a model here: a path, a bucket's folder, or what a hub gives."""
    folder = fetch(model)
    if folder.is_dir() or is_remote(model):
        return folder
    from calib_core.models.files import resolve  # noqa: PLC0415 (takes seconds)

    return resolve(str(model))
