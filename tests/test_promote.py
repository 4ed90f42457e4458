"""The gate's step: which model it names, what it writes, what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from chain import write_adapter
from schemas import written
from synthetic import Floats, make_world, memorised, tempered

from calib_core.decisions.bounds import regime_test
from calib_core.errors import ConfigError, DataFormatError
from calib_core.metrics.summary import measure
from calib_core.models.adapters import files_digest
from calib_core.predictions.files import write_predictions
from calib_core.predictions.preferences import (
    PREFERENCES_FILE,
    PreferenceLogprobs,
    write_preference_logprobs,
)
from calib_core.steps.promote import PromoteConfig, promote
from calib_core.storage.files import write_json

N = 500
WORLDS = {fold: make_world(N, seed) for seed, fold in enumerate(("fit", "calibration", "test"))}
OVERCONFIDENT = {fold: tempered(world.q, 0.3) for fold, world in WORLDS.items()}
CALIBRATED = {fold: world.q for fold, world in WORLDS.items()}
CONFIG = PromoteConfig(n_resamples=300)
INTERVAL = {"value", "low", "high"}


DATA = {fold: f"fingerprint of {fold}" for fold in WORLDS}


def rate(value: float) -> dict[str, object]:
    """A win rate on 400 pairs."""
    interval = {"value": value, "low": value - 0.05, "high": value + 0.05}
    return {"n": 400, "sum": interval, "per_token": interval}


def write_evaluation(
    folder: Path, probs: dict[str, Floats], *, adapter: Path | None = None, **facts: object
) -> Path:
    """An evaluation folder as `evaluate` leaves it, of a base model or of an adapter."""
    folder.mkdir()
    model = {"base": "a-model", "base_digest": "d", "adapter": adapter and "tensors"}
    tables = {
        fold: replace(WORLDS[fold].predictions(p), protocol={"model": "a-model", **model})
        for fold, p in probs.items()
    }
    for fold, table in tables.items():
        write_predictions(table, folder / f"{fold}.parquet")
    if facts.get("win_rate"):
        wins = np.arange(400) < 400 * facts["win_rate"]["sum"]["value"]
        nats, one = np.where(wins, -1.0, -3.0), np.ones(400, np.int64)
        pairs = PreferenceLogprobs(
            ids=tuple(map(str, range(400))),
            chosen_nats=nats,
            rejected_nats=np.full(400, -2.0),
            chosen_tokens=one,
            rejected_tokens=one,
        )
        write_preference_logprobs(pairs, folder / PREFERENCES_FILE)
    regime = regime_test(tables["fit"], tables["calibration"], n_resamples=300)
    evaluation = {
        "regime": regime.to_dict(),
        "figures": {fold: measure(table, n_resamples=100).to_dict() for fold, table in tables.items()},
        "model": {**model, "adapter_files": adapter and files_digest(adapter)},
        "data": DATA,
        "predictions": {fold: table.digest() for fold, table in tables.items()},
        **facts,
    }
    write_json(folder / "evaluation.json", evaluation)
    return folder


def run(
    before: Path, after: Path, out: Path, branch: str, config: PromoteConfig = CONFIG
) -> dict[str, object]:
    return promote(
        config,
        before=before,
        after=after,
        model_before="models/input",
        model_after=str(after.parent / "adapter"),
        branch=branch,
        out=out,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("evaluations")
    turned = {fold: tempered(WORLDS[fold].q[:, ::-1], 0.3) for fold in WORLDS}
    adapter = write_adapter(root / "adapter", b"weights", data=DATA)
    return {
        "overconfident": write_evaluation(
            root / "overconfident", OVERCONFIDENT, adapter=adapter, win_rate=rate(0.7), seconds=2.0
        ),
        "calibrated": write_evaluation(
            root / "calibrated", CALIBRATED, adapter=adapter, win_rate=rate(0.69), seconds=3.0
        ),
        "wrong": write_evaluation(root / "wrong", turned, adapter=adapter, win_rate=rate(0.7)),
    }


def test_better_calibrated_model_is_promoted(folders, tmp_path):
    summary = run(folders["overconfident"], folders["calibrated"], tmp_path, "cft")
    assert summary["promoted"] is True
    assert summary["model"] == str(folders["calibrated"].parent / "adapter")
    assert summary["regime"] == summary["bounds"]["regime"] == "calibratable"
    assert summary["branch"] == "cft"
    assert summary["after"]["conf_ece"]["value"] < 0.1 < summary["before"]["conf_ece"]["value"]
    for side in ("before", "after"):
        for figure in ("accuracy", "mean_confidence", "conf_ece", "cw_ece"):
            assert summary[side][figure].keys() == INTERVAL
    assert summary["gate"]["ece_change"]["high"] < 0
    assert summary["win_rate"] == {"before": rate(0.7), "after": rate(0.69)}
    assert summary["timing"] == {"evaluate_before": 2.0, "evaluate_after": 3.0}
    assert summary == written(tmp_path / "summary.json")
    assert (tmp_path / summary["report"]).read_text().startswith("<!DOCTYPE html>")


def test_report_states_the_versions_that_figures_depend_on(folders, tmp_path):
    run(folders["calibrated"], folders["calibrated"], tmp_path, "none")
    page = (tmp_path / "report.html").read_text()
    for name in ("numpy", "scipy", "torch"):
        assert re.search(rf"{name}\D{{0,60}}{re.escape(metadata.version(name))}", page), name


def test_temperature_scaling_is_fitted_on_the_calibration_fold_only(folders, tmp_path):
    scaled = run(folders["overconfident"], folders["calibrated"], tmp_path / "a", "cft")["baselines"][
        "temperature_scaling"
    ]
    assert scaled["temperature"] == pytest.approx(1 / 0.3, rel=0.15)  # what undoes `tempered(q, 0.3)`
    assert scaled["conf_ece"]["value"] < 0.1
    assert scaled["accuracy"]["value"] == WORLDS["test"].predictions(OVERCONFIDENT["test"]).correct().mean()
    test_turned = {**OVERCONFIDENT, "test": memorised(OVERCONFIDENT["test"], WORLDS["test"].labels, 0.9)}
    other = write_evaluation(tmp_path / "other", test_turned, win_rate=rate(0.7))
    same = run(other, folders["calibrated"], tmp_path / "b", "cft")["baselines"]["temperature_scaling"]
    assert same["temperature"] == scaled["temperature"]


@pytest.mark.parametrize(("before", "after"), [("calibrated", "overconfident"), ("overconfident", "wrong")])
def test_worse_model_is_refused_with_reasons(folders, tmp_path, before, after):
    summary = run(folders[before], folders[after], tmp_path, "rcft")
    assert summary["promoted"] is False
    assert summary["model"] == "models/input"
    assert len(summary["reasons"]) > len(summary["bounds"]["reasons"])


def test_calibrated_model_is_kept_without_a_second_evaluation(folders, tmp_path):
    summary = run(folders["calibrated"], tmp_path / "absent", tmp_path / "out", "none")
    assert (summary["regime"], summary["branch"], summary["promoted"]) == ("calibrated", "none", False)
    assert summary["after"] == summary["before"]
    assert summary["model"] == "models/input"
    assert summary["reasons"][-1].startswith("The input model is calibrated")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "did not pass the gate" not in page


def test_other_files_in_the_folder_stay(folders, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    run(folders["overconfident"], folders["calibrated"], tmp_path, "cft")
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_unknown_branch_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="'sft'"):
        run(folders["overconfident"], folders["calibrated"], tmp_path, "sft")


def test_folder_that_is_no_evaluation_is_refused(folders, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataFormatError, match=r"evaluation\.json"):
        run(empty, folders["calibrated"], tmp_path / "out", "cft")
    write_json(empty / "evaluation.json", {"regime": {}, "figures": {}})
    with pytest.raises(DataFormatError, match=r"evaluation\.json: field regime\.regime is missing; make the"):
        run(empty, folders["calibrated"], tmp_path / "out", "cft")
    assert not (tmp_path / "out").exists()


def test_wrong_parameters_are_named_together():
    with pytest.raises(ConfigError, match=r"`accuracy_margin` is 1\.5.*`n_resamples` is 0.*`n_bins` is 0"):
        PromoteConfig(accuracy_margin=1.5, n_bins=0, n_resamples=0)
