"""What records say of a model: that it was evaluated, and the `calibration.json` of an adapter's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast

from calib_core.storage.files import write_json
from calib_core.storage.records import check_format, read_record

FILE = "calibration.json"
FORMAT = 1


class ModelRecord(TypedDict):
    """A model: a base, with or without an adapter on it."""

    base: Annotated[str, "Folder, URI or hub id of the base model."]
    base_revision: NotRequired[Annotated[str, "Commit of a hub id; empty for others."]]
    base_digest: Annotated[str, "SHA-256 over the base's config, index and safetensors files."]
    adapter: Annotated[str | None, "SHA-256 over the adapter's tensors; null for a model without one."]
    dtype: NotRequired[Annotated[str, "`float32`, `bfloat16` or `nf4`: of the base's weights."]]
    context_tokens: NotRequired[Annotated[int, "The longest sequence that the model takes."]]
    temperature: NotRequired[Annotated[float, "What option logits are divided by; 1 if nothing was fitted."]]
    adapter_files: NotRequired[
        Annotated[str | None, "SHA-256 over the adapter's files; null for a model without one."]
    ]


class LineageRecord(TypedDict):
    """A training that an adapter had."""

    adapter: NotRequired[Annotated[str | None, "SHA-256 over the adapter's tensors after it."]]
    method: NotRequired[str]
    data: NotRequired[Annotated[dict[str, Any], "Fingerprints of the folds that it was given."]]


class AdapterRecord(TypedDict):
    """What loading reads of `calibration.json`; other programs may leave out any of it."""

    format: NotRequired[Annotated[int, "Version of this format: 1."]]
    method: NotRequired[Annotated[str, "`dpo`, `cft`, `rcft`, `temperature`, or another program's."]]
    base: NotRequired[Annotated[str, "Folder, URI or hub id of the base model."]]
    base_revision: NotRequired[Annotated[str, "Commit of a hub id; empty for others."]]
    base_digest: NotRequired[Annotated[str, "SHA-256 over the base's config, index and safetensors files."]]
    adapter: NotRequired[Annotated[str | None, "SHA-256 over the adapter's tensors."]]
    dtype: NotRequired[Annotated[str, "`float32`, `bfloat16` or `nf4`: of the base's weights in training."]]
    context_tokens: NotRequired[Annotated[int, "The longest sequence that the model takes."]]
    temperature: NotRequired[Annotated[float, "What option logits are divided by; 1 if it is missing."]]
    lineage: NotRequired[Annotated[list[LineageRecord], "Earlier trainings, the first one first."]]
    files: NotRequired[Annotated[dict[str, str], "SHA-256 of the two files beside it, by name."]]
    prompt: NotRequired[Annotated[dict[str, Any], "How questions were put to the model."]]
    input_adapter: NotRequired[Annotated[str | None, "SHA-256 over the input adapter's tensors."]]
    data: NotRequired[
        Annotated[
            dict[str, Any],
            "Fingerprints of all folds by name, the test fold's too, though it isn't trained on; for `dpo` "
            "what `data.json` says of the preference pairs.",
        ]
    ]
    library_version: NotRequired[Annotated[str, "Version of calib-core that wrote it."]]


def read_adapter_record(folder: Path) -> AdapterRecord:
    """Read what `calibration.json` says; nothing if the adapter was made by another program without it.

    Raises:
        DataFormatError: it isn't one that this version knows.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    record = read_record(path, AdapterRecord, advice="copy the adapter again")
    check_format(record.get("format", FORMAT), FORMAT, str(path))
    return record


def write_adapter_record(folder: Path, record: AdapterRecord) -> AdapterRecord:
    """Write `calibration.json`, and return what it says."""
    written = cast(AdapterRecord, {"format": FORMAT, **record})
    write_json(folder / FILE, written)
    return written
