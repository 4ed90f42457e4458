"""What binds a run's folders to each other, for tests that make the folders themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calib_core.champion.history import HEADLINE_FIGURES
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


def whole_summary(**changes: Any) -> dict[str, Any]:
    """All that a summary has to say, of a run that decided nothing, but for some fields."""
    figures = {name: {"value": 0.1, "low": 0.05, "high": 0.15} for name in HEADLINE_FIGURES}
    model = {"base": "base", "base_digest": "", "adapter": None}
    return {
        "regime": "calibrated",
        "branch": "none",
        "before": {"n": 90, **figures},
        "after": {"n": 90, **figures},
        "baselines": {},
        "promoted": False,
        "reasons": [],
        "report": "report.html",
        "model": "models/first",
        "gate": None,
        "bounds": {"regime": "calibrated", "branch": "none", "reasons": [], "target_ece": 0.08},
        "out_of_domain": {},
        "win_rate": {},
        "timing": {},
        "evidence": {"data": {}, "before": {"evaluation": "", "model": model}, "report": ""},
        **changes,
    }


def write_summary(summary: Path, snapshot: Path, adapter: Path | None, result: dict[str, Any]) -> Path:
    """A summary's folder, bound to a snapshot of `fresh`, to its report and to the model that it promotes."""
    summary.mkdir(parents=True, exist_ok=True)
    (summary / "report.html").write_text("<!DOCTYPE html>")
    state = read_json(snapshot / "state.json")
    champion = state["champion"]["history"][-1]["digest"] or None
    model = {"base": "base", "base_digest": "", "adapter": None, "adapter_files": champion}
    evidence = {
        "data": state["data"],
        "before": {"evaluation": "", "model": model},
        "report": sha256_file(summary / "report.html"),
    }
    if adapter is not None:
        evidence["after"] = {"evaluation": "", "model": {**model, "adapter_files": files_digest(adapter)}}
    bound = whole_summary(**{"gate": {"promoted": result["promoted"]}, **result, "evidence": evidence})
    (summary / "summary.json").write_text(json.dumps(bound))
    return summary
