"""What binds a run's folders to each other, for tests that make the folders themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calib_core.models.adapters import files_digest
from calib_core.storage.files import read_json, sha256_file


def write_adapter(folder: Path, content: bytes, **calibration: object) -> Path:
    """An adapter's folder, as far as its bytes matter; with calibration.json where it says anything."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(content)
    (folder / "adapter_config.json").write_text("{}")
    if calibration:
        (folder / "calibration.json").write_text(json.dumps(calibration))
    return folder


def write_summary(summary: Path, snapshot: Path, adapter: Path | None, result: dict[str, Any]) -> Path:
    """A summary's folder, bound to a snapshot of `fresh`, to its report and to the model that it promotes."""
    summary.mkdir(parents=True, exist_ok=True)
    (summary / "report.html").write_text("<!DOCTYPE html>")
    state = read_json(snapshot / "state.json")
    champion = state["champion"]["history"][-1]["digest"] or None
    evidence = {
        "data": state["data"],
        "before": {"model": {"adapter_files": champion}},
        "report": sha256_file(summary / "report.html"),
    }
    if adapter is not None:
        evidence["after"] = {"model": {"adapter_files": files_digest(adapter)}}
    bound = {"gate": {"promoted": result["promoted"]}, **result, "evidence": evidence}
    (summary / "summary.json").write_text(json.dumps(bound))
    return summary
