"""The study on a tiny model: runs that are made once, readings, and tables from JSON alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trained
from tiny import make_questions, save_tiny_model

from calib_core.data.questions import write_questions
from calib_core.decisions.temperature import apply_temperature
from calib_core.metrics.figures import nll_nats
from calib_core.predictions.table import Predictions
from calib_core.steps.prepare import PrepareConfig, prepare

STUDY = Path(__file__).resolve().parents[1] / "benchmarks" / "study"
SETTINGS = {
    "epochs": 1,
    "evaluations_per_epoch": 1,
    "lora_r": 2,
    "lora_alpha": 4,
    "dtype": "float32",
    "target_ece": 0.5,
    "n_resamples": 20,
}


@pytest.fixture
def study(monkeypatch):
    """The study's modules, whose plain names are nobody else's afterwards."""
    monkeypatch.syspath_prepend(str(STUDY))
    before = set(sys.modules)
    import methods
    import readings
    import run
    import tables

    yield SimpleNamespace(methods=methods, readings=readings, run=run, tables=tables)
    for name in set(sys.modules) - before:
        if name in ("methods", "readings", "run", "tables", "checkout"):
            del sys.modules[name]


@pytest.fixture
def settings(tmp_path, monkeypatch, study):
    """A study of a tiny model on a few questions, with two sets out of domain."""
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    far = [
        replace(question, subject=subject, id=f"{subject} {question.id}")
        for subject in ("mmlu/anatomy", "arc")
        for question in make_questions(8, seed=len(subject), options=(3, 4))
    ]
    folds = {name: trained.world(30, seed=seed) for seed, name in enumerate(("fit", "calibration", "test"))}
    for name, questions in {**folds, "out_of_domain": far}.items():
        write_questions(questions, tmp_path / f"{name}.parquet")
    paths = {name: str(tmp_path / f"{name}.parquet") for name in (*folds, "out_of_domain")}
    prepare(PrepareConfig(**paths), tmp_path / "data")
    model = save_tiny_model(tmp_path / "model", num_hidden_layers=1)
    return study.run.Study(
        models={"tiny": str(model)},
        data={"world": str(tmp_path / "data")},
        out=tmp_path / "results",
        settings=SETTINGS,
    )


@pytest.mark.slow
def test_every_run_is_made_once_and_read_in_every_way(study, settings, monkeypatch):
    methods = {
        "untouched": study.methods.METHODS["untouched"],
        "CFT": study.methods.METHODS["CFT"],
        "memorised": study.methods.Method(step="cft", settings={"epochs": 1}, passes=2, orders=("given",)),
        "memorised, RCFT": study.methods.Method(step="rcft", start="memorised", orders=("given",)),
    }
    monkeypatch.setattr(study.run, "METHODS", methods)
    study.run.run_all(settings, ["untouched", "CFT", "memorised, RCFT"], ["cyclic", "given"], [0])
    made = sorted(settings.out.glob("*.json"))
    assert [path.stem for path in made] == [
        "tiny--world--CFT--cyclic--0",
        "tiny--world--CFT--given--0",
        "tiny--world--memorised--given--0",
        "tiny--world--memorised-RCFT--given--0",
        "tiny--world--untouched--given--0",
    ]
    times = [path.stat().st_mtime_ns for path in made]
    study.run.run_all(settings, ["untouched", "CFT"], ["cyclic"], [0])
    assert [path.stat().st_mtime_ns for path in made] == times

    result = json.loads(made[2].read_text())
    assert [point["epoch"] for point in result["history"]] == [1.0, 2.0]
    assert set(result["figures"]) == set(study.readings.READINGS)
    assert set(result["figures"]["raw"]) == {"test", "out of domain: arc", "out of domain: mmlu"}
    accuracies = {result["figures"][way]["test"]["accuracy"]["value"] for way in ("raw", "temperature")}
    assert len(accuracies) == 1  # no temperature changes an answer

    groups = study.tables.read_results(settings.out)
    text = study.tables.tables(groups)
    assert "### out of domain: mmlu, temperature" in text
    assert "| untouched | given | 1 |" in text
    page = study.tables.page(groups)
    assert page.count("<svg") == 1 + 4  # the plane, and every run that was trained


def test_vector_scaling_finds_a_preference_for_a_letter(study):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 2000)
    true = 1.5 * (1.5 * np.eye(3)[labels] + rng.normal(size=(2000, 3)))
    logits = (2.0 * true + np.array([0.0, 3.0, 0.0])).astype(np.float32)
    table = Predictions.from_logits(logits, labels)
    scale, bias = study.readings.fit_vector(table)
    assert scale == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(bias - bias[0], [0.0, -1.5, 0.0], rtol=0, atol=0.2)
    mended = study.readings.apply_vector(table, scale, bias)
    assert nll_nats(mended.probs(), labels) < nll_nats(apply_temperature(table, 2.0).probs(), labels) - 0.05


def test_an_interval_over_seeds_has_the_questions_share_and_the_seeds(study):
    same = [{"value": 0.5, "low": 0.4, "high": 0.6}] * 3
    assert study.tables.mean_of_seeds(same).high == pytest.approx(0.6)
    spread = [{"value": value, "low": value - 0.1, "high": value + 0.1} for value in (0.4, 0.5, 0.6)]
    wide = study.tables.mean_of_seeds(spread)
    assert wide.value == pytest.approx(0.5)
    assert wide.high - 0.5 == pytest.approx(np.sqrt(0.1**2 + 1.96**2 * 0.01 / 3))
    assert study.tables.mean_of_seeds([0.2]).high == 0.2


def test_the_choice_is_held_against_the_best_answer(study):
    def result(method, nll, branch="cft"):
        figures = {way: {"test": {"nll_nats": {"value": nll[way]}}} for way in nll}
        spec = {"model": "m", "data": "d", "method": method, "orders": "cyclic", "seed": 0}
        return {"run": spec, "regime": {"branch": branch}, "figures": figures}

    groups = [
        study.tables.Group(
            ("m", "d"), ("untouched", "given"), (result("untouched", {"raw": 2.0, "temperature": 1.4}),)
        ),
        study.tables.Group(("m", "d"), ("CFT", "cyclic"), (result("CFT", {"default": 1.25}),)),
        study.tables.Group(("m", "d"), ("RCFT", "cyclic"), (result("RCFT", {"default": 1.2}),)),
    ]
    assert "| 0 | cft | rcft | 0.050 | none 2.000, temperature 1.400, cft 1.250, rcft 1.200 |" in (
        study.tables.choice_table(groups)
    )
