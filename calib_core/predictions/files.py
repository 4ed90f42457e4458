"""Predictions tables in files: this package's own, other programs', and rows that were written by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calib_core.data.questions import Question
from calib_core.errors import DataFormatError
from calib_core.predictions.digests import DIGEST_KEY, check_digest
from calib_core.predictions.reading import PROTOCOL_KEY, read_prediction_rows, to_logits
from calib_core.predictions.table import Predictions
from calib_core.storage.files import whole_file
from calib_core.storage.uris import fetch, published


def read_predictions(
    uri: str | os.PathLike[str], *, questions: Mapping[str, Question] | None = None
) -> Predictions:
    """Read a predictions table: Parquet, JSON lines, a JSON list or CSV, told by its content and its name.

    Columns: `id` string, `label` (the right option's number, from 0, or null), and exactly one of `logits`,
    `logprobs` and `probs` (a list with one number per option); optional: `letter_mass` in [0, 1], `subject`
    and `group`, strings or null. Other columns are ignored. `logprobs` (natural logs, at most 0) are
    normalised by the softmax over the row's options; minus infinity counts as a probability of 0, and
    -9999.0, a service's sign for an option that it doesn't know, is refused.
    `probs` lie in [0, 1] and sum to 1 within 1e-3; they are normalised and their logs taken, a 0 counting as
    the smallest normal float32 (1.2e-38), so that the answer's NLL is at most 87.3 nats. Logits are kept as
    float32, so that probabilities come back to about 1e-7.

    Sample files of lm-eval and output files of Vertex AI's batch prediction are read too, told by their
    columns (`calib_core.predictions.foreign`).

    Args:
        uri: a path, or a `file://` or `gs://` URI.
        questions: the questions by id, where the table leaves out their answers; each row must be one of
            them.

    Raises:
        ConfigError: the URI can't be reached; see `calib_core.storage.uris.fetch`.
        DataFormatError: the file can't be read, or rows are wrong (the first 20 are named, all counted; rows,
            or lines, count from 1).

    Example:
        >>> import pathlib, tempfile
        >>> row = '{"id": "a", "label": 1, "probs": [0.2, 0.8]}'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "table.jsonl").write_text(row)
        ...     read_predictions(f"{folder}/table.jsonl")
        Predictions(n=1, options=2, labelled=1, model=None)
    """
    rows, kind, has_letter_mass, protocol = read_prediction_rows(uri, questions or {})
    lists = [to_logits(row[kind], kind) for row in rows]
    n_options = np.array([len(values) for values in lists], dtype=np.int64)
    logits = np.full((len(rows), int(n_options.max())), -np.inf)
    for target, values in zip(logits, lists, strict=True):
        target[: len(values)] = values
    labels = [-1 if row["label"] is None else row["label"] for row in rows]
    try:
        predictions = Predictions(
            ids=tuple(row["id"] for row in rows),
            labels=np.array(labels, dtype=np.int64),
            logits=logits,
            n_options=n_options,
            letter_mass=np.array([row["letter_mass"] for row in rows], np.float32)
            if has_letter_mass
            else None,
            subjects=tuple(row.get("subject") for row in rows),
            groups=tuple(row.get("group") for row in rows) if any("group" in row for row in rows) else None,
            protocol=protocol,
        )
    except DataFormatError as error:
        raise DataFormatError(f"{os.fspath(uri)}: {error}") from None
    if not questions:  # with them the table holds more than its file
        path = fetch(os.fspath(uri))
        if path.is_file():
            check_digest(path, predictions.digest())
    return predictions


def write_predictions(predictions: Predictions, uri: str | os.PathLike[str]) -> None:
    """Write a predictions table as Parquet, atomically, to a path or a `file://` or `gs://` URI.

    Raises:
        ConfigError: the URI can't be written to; see `calib_core.storage.uris.publish`.
        DataFormatError: `uri` neither ends in `.parquet` nor has no ending (an artifact's).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_predictions(Predictions.from_probs([[0.2, 0.8]], [1]), f"{folder}/table.parquet")
        ...     read_predictions(f"{folder}/table.parquet")
        Predictions(n=1, options=2, labelled=1, model=None)
    """
    if PurePath(uri).suffix not in (".parquet", ""):
        raise DataFormatError(f"{uri}: predictions are written as Parquet; let the name end in .parquet")
    own = np.arange(predictions.logits.shape[1]) < predictions.n_options[:, None]
    offsets = np.concatenate([[0], np.cumsum(predictions.n_options)]).astype(np.int32)
    columns: dict[str, pa.Array] = {
        "id": pa.array(predictions.ids, pa.string()),
        "label": pa.array(predictions.labels.astype(np.int32), mask=predictions.labels < 0),
        "logits": pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(predictions.logits[own], pa.float32())
        ),
    }
    if predictions.letter_mass is not None:
        columns["letter_mass"] = pa.array(predictions.letter_mass, pa.float32())
    columns["subject"] = pa.array(predictions.subjects, pa.string())
    if predictions.groups is not None:
        columns["group"] = pa.array(predictions.groups, pa.string())
    metadata = {DIGEST_KEY: predictions.digest().encode()}
    if predictions.protocol is not None:
        metadata[PROTOCOL_KEY] = json.dumps(predictions.protocol, sort_keys=True, allow_nan=False).encode()
    table = pa.table(columns).replace_schema_metadata(metadata)
    with published(uri) as path, whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
