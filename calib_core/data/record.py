"""`data.json`: what a data folder holds, where it came from, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from calib_core.storage.files import write_json
from calib_core.storage.records import check_format, read_record

FILE = "data.json"
FORMAT = 1


class FoldRecord(TypedDict):
    """One file of the folder."""

    n: Annotated[int, "Rows."]
    fingerprint: Annotated[str, "SHA-256 over the content of the rows, whatever their order."]
    options: NotRequired[Annotated[dict[str, int], "How many questions have 2, 3, ... options."]]


class SourceRecord(TypedDict):
    """What was found in one source."""

    source: Annotated[str, "The file or hub id."]
    layout: Annotated[str, "The column layout that it was read as."]
    unit: Annotated[str, "What a row's number counts: `line` or `row`."]
    n_rows: Annotated[int, "Rows of data in the source."]
    n_kept: Annotated[int, "Rows that came out."]
    n_duplicates: Annotated[int, "Rows left out because another one says the same."]
    n_dropped: Annotated[int, "Rows left out because something is wrong with them."]
    problems: Annotated[list[dict[str, Any]], "What is wrong with them; the first 1,000."]


class OverlapRecord(TypedDict):
    """Questions left out of one fold because another one holds them, or nearly the same ones."""

    dropped_from: Annotated[str, "The fold that gave them up."]
    held_by: Annotated[str, "The fold that kept them."]
    n: Annotated[int, "Questions left out."]
    n_same_options: Annotated[int, "Those among them that also have the same options there."]
    n_near: Annotated[int, "Those among them whose text differs a little."]
    ids: Annotated[list[str], "Their ids."]


class AlikeRecord(TypedDict):
    """Questions that are nearly the same as others; each group is in one fold."""

    n_groups: int
    n_questions: int
    groups: Annotated[list[list[str]], "Ids of the first 100 groups."]


class DecidableRecord(TypedDict):
    """What the regime test can decide on the folds."""

    target_ece: Annotated[float, "The default target."]
    needed: Annotated[int, "Questions needed in each of `fit` and `calibration` for it."]
    is_enough: bool
    smallest_target_ece: Annotated[float | None, "The smallest target that can be decided; null for none."]
    fractions: Annotated[
        dict[str, Any] | None, "Shares of fit and calibration that would do, with the `sizes` that they give."
    ]


class DataRecord(TypedDict):
    """What `prepare` writes into a data folder beside its Parquet files."""

    format: NotRequired[Annotated[int, "Version of this format: 1."]]
    library_version: NotRequired[Annotated[str, "Version of calib-core that wrote it."]]
    parameters: NotRequired[Annotated[dict[str, Any], "Parameters of `prepare`, without secrets."]]
    sources: NotRequired[Annotated[dict[str, SourceRecord], "By parameter."]]
    folds: Annotated[dict[str, FoldRecord], "`fit`, `calibration`, `test` and perhaps `out_of_domain`."]
    regime_test: NotRequired[DecidableRecord]
    overlaps: NotRequired[list[OverlapRecord]]
    alike: NotRequired[AlikeRecord]
    preferences: NotRequired[Annotated[dict[str, FoldRecord], "`preferences_fit`, `preferences_test`."]]
    fit_pairs_showing_held_out_questions: NotRequired[Annotated[list[str], "Ids of pairs."]]


def read_data_record(folder: Path) -> DataRecord:
    """Read what `data.json` says.

    Raises:
        DataFormatError: there is none, or it isn't one that this version knows.
    """
    record = read_record(folder / FILE, DataRecord, advice="make the folder with `prepare`")
    check_format(record.get("format", FORMAT), FORMAT, str(folder / FILE))
    return record


def write_data_record(folder: Path, record: DataRecord) -> None:
    """Write `data.json`."""
    write_json(folder / FILE, record)
