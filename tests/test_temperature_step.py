"""The answer `temperature`: a model folder without weights, and the evaluation that goes with it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from schemas import written
from synthetic import make_world, tempered

from calib_core.decisions.bounds import regime_test
from calib_core.errors import ConfigError, DataFormatError
from calib_core.predictions.files import read_predictions, write_predictions
from calib_core.steps.evaluate import EvaluateConfig, measured
from calib_core.steps.promote import PromoteConfig, promote
from calib_core.steps.temperature import give_temperature
from calib_core.storage.files import read_json, write_json

CONFIG = EvaluateConfig(n_resamples=200)
WORLDS = {fold: make_world(600, seed) for seed, fold in enumerate(("fit", "calibration", "test"))}


def evaluated(folder: Path, model: Path, *, temperature: float = 1.0) -> Path:
    """What `evaluate` leaves of a model that is too sure, by a temperature of 0.4."""
    folder.mkdir()
    protocol = {"model": str(model), "base_digest": "", "adapter": None}
    tables = {fold: world.predictions(tempered(world.q, 0.4), protocol) for fold, world in WORLDS.items()}
    for fold, table in tables.items():
        write_predictions(table, folder / f"{fold}.parquet")
    record = {
        **measured(CONFIG, tables),
        "flip_rates": None,
        "win_rate": None,
        "model": {
            "base": str(model),
            "base_revision": "",
            "base_digest": "",
            "adapter": None,
            "temperature": temperature,
        },
        "data": {fold: f"fingerprint of {fold}" for fold in tables},
        "predictions": {fold: table.digest() for fold, table in tables.items()},
        "parameters": asdict(CONFIG),
    }
    write_json(folder / "evaluation.json", record)
    return folder


@pytest.mark.slow
def test_a_temperature_is_given_measured_and_promoted(tmp_path: Path) -> None:
    before = evaluated(tmp_path / "before", tmp_path / "model")
    assert read_json(before / "evaluation.json")["regime"]["branch"] == "temperature"
    out, after = tmp_path / "out", tmp_path / "after"
    record = give_temperature(str(tmp_path / "model"), before, out, after)
    assert record["temperature"] == pytest.approx(2.5, rel=0.15)
    assert [path.name for path in out.iterdir()] == ["calibration.json"]
    assert written(out / "calibration.json", some=True) == record
    found = written(after / "evaluation.json", some=True)
    assert found["model"]["temperature"] == record["temperature"]
    for fold in WORLDS:
        one, other = (read_predictions(folder / f"{fold}.parquet") for folder in (before, after))
        np.testing.assert_array_equal(one.top(), other.top())
        np.testing.assert_allclose(
            other.logits, one.logits / np.float32(record["temperature"]), rtol=1e-6, atol=1e-6
        )
        assert other.protocol == {**one.protocol, "temperature": record["temperature"]}
    summary = promote(
        PromoteConfig(n_resamples=200),
        before=before,
        after=after,
        model_before=str(tmp_path / "model"),
        model_after=str(out),
        branch="temperature",
        out=tmp_path / "result",
    )
    assert (summary["regime"], summary["branch"], summary["promoted"]) == (
        "calibratable",
        "temperature",
        True,
    )
    assert summary["model"] == str(out)
    assert summary["gate"]["accuracy_change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    page = (tmp_path / "result" / "report.html").read_text()
    assert "A temperature of 2." in page
    assert "changes no answer" in page


def test_a_second_temperature_multiplies_the_first(tmp_path: Path) -> None:
    before = evaluated(tmp_path / "before", tmp_path / "model", temperature=3.0)
    record = give_temperature(str(tmp_path / "model"), before, tmp_path / "out", tmp_path / "after")
    assert record["temperature"] == pytest.approx(3 * record["calibration"]["value"])


def test_the_folder_is_loaded_like_a_model_and_scores_with_its_temperature(tmp_path: Path) -> None:
    import tiny

    from calib_core.data.questions import Question
    from calib_core.models.loading import load_model
    from calib_core.scoring.prompts import PromptEncoder, PromptForm
    from calib_core.scoring.questions import score

    base = tiny.save_tiny_model(tmp_path / "base")
    loaded = load_model(base, dtype="float32")
    write_json(
        tmp_path / "scaled" / "calibration.json",
        {"method": "temperature", "base": str(base), "base_digest": loaded.base_digest, "temperature": 2.0},
    )
    scaled = load_model(tmp_path / "scaled", dtype="float32")
    assert (scaled.temperature, scaled.base, scaled.adapter_digest) == (2.0, str(base), None)
    encoder = PromptEncoder(loaded.tokenizer, PromptForm())
    questions = [
        Question(id=str(i), question=f"what is {i}?", choices=("one", "two", "three"), answer=i % 3)
        for i in range(6)
    ]
    one, other = (score(model, questions, encoder) for model in (loaded, scaled))
    np.testing.assert_allclose(other.logits, one.logits / 2, rtol=1e-6)
    assert other.protocol["temperature"] == 2.0
    write_json(
        tmp_path / "other" / "calibration.json",
        {"base": str(base), "base_digest": "0" * 64, "temperature": 2.0},
    )
    with pytest.raises(ConfigError, match="for another base model"):
        load_model(tmp_path / "other")


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "empty" / "evaluation.json", {"regime": {"regime": "calibratable"}})
    with pytest.raises(DataFormatError, match=r"field regime\.branch is missing; make the folder with"):
        give_temperature("model", tmp_path / "empty", tmp_path / "out", tmp_path / "after")
    assert not (tmp_path / "out").exists()


def test_the_regime_test_and_the_step_agree_on_the_temperature() -> None:
    tables = {fold: world.predictions(tempered(world.q, 0.4)) for fold, world in WORLDS.items()}
    result = regime_test(tables["fit"], tables["calibration"], n_resamples=200)
    assert result.to_dict() == measured(CONFIG, tables)["regime"]
