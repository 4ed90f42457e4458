"""The data folder that `prepare` writes, as the later steps read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calib_core.data.folds import FOLDS
from calib_core.data.preferences import Preference, read_preferences
from calib_core.data.questions import Question, fingerprint, read_questions
from calib_core.data.record import DataRecord, read_data_record
from calib_core.decisions.bounds import required_examples
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError

OPTIONAL_FOLD = "out_of_domain"


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Questions by fold, and the worked examples that were taken out of the fit fold.

    Attributes:
        folds: `fit`, `calibration`, `test`, and `out_of_domain` where there is one.
        shots: worked examples; they stand in prompts, so no fold holds them.
        record: what `data.json` says.
    """

    folds: dict[str, tuple[Question, ...]]
    shots: tuple[Question, ...]
    record: DataRecord

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each fold, by its name."""
        return {name: fold["fingerprint"] for name, fold in self.record["folds"].items()}


def read_data(folder: Path, *, shots: int = 0) -> PreparedData:
    """Read the folds of a data folder.

    Args:
        folder: what `prepare` wrote.
        shots: worked examples to take from the beginning of the fit fold (its order is a hash's).

    Raises:
        DataFormatError: this is no data folder, or a fold isn't as it was written.
        NotEnoughDataError: the fit fold has not more questions than `shots`.
    """
    record = read_data_record(folder)
    names = [*FOLDS, *([OPTIONAL_FOLD] if (folder / f"{OPTIONAL_FOLD}.parquet").is_file() else [])]
    folds = {name: tuple(read_questions(folder / f"{name}.parquet")[0]) for name in names}
    for name, questions in folds.items():
        if name not in record["folds"] or fingerprint(questions) != record["folds"][name]["fingerprint"]:
            raise DataFormatError(
                f"{folder / f'{name}.parquet'}: holds other questions than data.json says (their fingerprint "
                "differs); make the folder again with `prepare`"
            )
    if shots >= len(folds["fit"]):
        raise NotEnoughDataError(
            f"{folder}: {shots} worked examples leave nothing of the fit fold's {len(folds['fit'])} "
            "questions; ask for fewer shots"
        )
    taken, folds["fit"] = folds["fit"][:shots], folds["fit"][shots:]
    return PreparedData(folds=folds, shots=taken, record=record)


def check_sizes(prepared: PreparedData, *, target_ece: float, n_bins: int) -> None:
    """The regime test's own refusal, before any forward pass is paid for.

    Args:
        prepared: the folds.
        target_ece: ECE at or below which a model counts as calibrated.
        n_bins: equal-width confidence bins.

    Raises:
        NotEnoughDataError: fit or calibration has fewer questions than the regime test needs.
    """
    sizes = {name: len(fold) for name, fold in prepared.folds.items()}
    if fault := sizes_fault(sizes, target_ece=target_ece, n_bins=n_bins):
        raise NotEnoughDataError(fault)


def sizes_fault(sizes: Mapping[str, int], *, target_ece: float, n_bins: int) -> str:
    """Why the regime can't be named on folds of these sizes; empty where it can.

    Args:
        sizes: questions by fold, `fit` and `calibration` among them.
        target_ece: ECE at or below which a model counts as calibrated.
        n_bins: equal-width confidence bins.
    """
    needed = required_examples(target_ece, n_bins=n_bins)
    few = [f"{name} has {sizes[name]}" for name in ("fit", "calibration") if sizes[name] < needed]
    if not few:
        return ""
    return (
        f"{' and '.join(few)} questions, but at target_ece {target_ece:g} the regime test needs {needed} in "
        "each of fit and calibration: with fewer, chance would decide; bring more, or raise target_ece"
    )


def read_pairs(folder: Path, part: str) -> list[Preference]:
    """Preference pairs of a data folder; none if it was prepared without.

    Args:
        folder: what `prepare` wrote.
        part: `fit` or `test`.
    """
    path = folder / f"preferences_{part}.parquet"
    return read_preferences(path)[0] if path.is_file() else []


def required_pairs(folder: Path) -> list[Preference]:
    """Preference pairs to train on.

    Raises:
        ConfigError: the data were prepared without preference pairs.
    """
    pairs = read_pairs(folder, "fit")
    if not pairs:
        raise ConfigError(
            f"{folder}: no preference pairs; name a file of them in `preferences` when preparing data"
        )
    return pairs
