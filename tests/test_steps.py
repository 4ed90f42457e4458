"""The steps on a tiny model: evaluate, cft, rcft and align, from a data folder to what they write."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trained
from schemas import written
from tiny import make_questions, save_tiny_model

from calib_core.data.preferences import Preference, read_preferences, write_preferences
from calib_core.data.questions import Question, read_questions, write_questions
from calib_core.decisions.temperature import apply_temperature
from calib_core.errors import ConfigError, DataFormatError, EvidenceError, NotEnoughDataError
from calib_core.models.loading import load_model
from calib_core.predictions.files import read_predictions
from calib_core.predictions.protocols import check_same_protocol
from calib_core.report.text import evaluation_text
from calib_core.settings.groups import RegimeTest
from calib_core.settings.parameters import parameters_of
from calib_core.steps import finetune
from calib_core.steps.align import align
from calib_core.steps.evaluate import EvaluateConfig, evaluate, measured
from calib_core.steps.finetune import cft, rcft
from calib_core.steps.folder import read_data
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.promote import PromoteConfig, promote
from calib_core.steps.temperature import give_temperature
from calib_core.storage.files import read_json, write_json
from calib_core.training.config import AlignConfig, FinetuneConfig
from calib_core.training.stopping import evaluate_heldout

# At a target of 0.3 the regime test needs 26 questions in fit and calibration.
EVALUATE = EvaluateConfig(target_ece=0.3, shots=2, dtype="float32", n_resamples=100)
FINETUNE = FinetuneConfig(
    target_ece=0.3,
    shots=2,
    dtype="float32",
    epochs=1,
    learning_rate=5e-3,
    lora_r=4,
    lora_alpha=8,
)
ALIGN = AlignConfig(epochs=4, learning_rate=3e-2, shots=2, lora_r=4, lora_alpha=8, dtype="float32")
FOLDS = ("fit", "calibration", "test", "out_of_domain")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The cache folder, for the checkpoints of this module's runs."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CALIB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model"), num_hidden_layers=1))


def prepared(folder: Path, *, pairs: bool = True) -> Path:
    """A data folder, made by `prepare` from files."""
    sources = {
        "fit": trained.world(32, seed=1),
        "calibration": trained.world(30, seed=2),
        "test": trained.world(20, seed=3),
        "out_of_domain": make_questions(8, seed=4, options=(2, 3, 5)),
    }
    for name, questions in sources.items():
        write_questions(questions, folder / f"{name}.parquet")
    paths = {name: str(folder / f"{name}.parquet") for name in sources}
    if pairs:
        paths["preferences"] = str(folder / "pairs.parquet")
        made = [Preference(id=f"p{i}", prompt=f"{i}?", chosen=" one", rejected=" west") for i in range(24)]
        write_preferences(made, paths["preferences"])
    prepare(PrepareConfig(**paths), folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def before(model, data, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The model's evaluation: its folder, and what `evaluate` returned."""
    out = tmp_path_factory.mktemp("before") / "out"
    return out, evaluate(EVALUATE, model, data, out)


@pytest.fixture(scope="module")
def tuned(model, data, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The adapter that CFT makes, and what `cft` returned."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    return out, cft(FINETUNE, model, data, out)


@pytest.fixture(scope="module")
def after(tuned, data, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """That adapter's evaluation."""
    out = tmp_path_factory.mktemp("after") / "out"
    return out, evaluate(EVALUATE, str(tuned[0]), data, out)


@pytest.fixture
def no_model(monkeypatch) -> None:
    """Loading a model fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("calib_core.models.loading.load_model", refuse)


def questions(data: Path, fold: str) -> list[Question]:
    return read_questions(data / f"{fold}.parquet")[0]


def fingerprints(data: Path) -> dict[str, str]:
    return {name: fold["fingerprint"] for name, fold in read_json(data / "data.json")["folds"].items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rendered(value: Any) -> Any:
    """A record as it is after a round through JSON."""
    return json.loads(json.dumps(value, allow_nan=False))


def test_every_parameter_of_the_regime_test_and_of_figures_reaches_them(before, monkeypatch) -> None:
    calls: dict[str, dict[str, Any]] = {}

    def called(name: str):
        def record(*_: Any, **options: Any) -> SimpleNamespace:
            calls[name] = options
            return SimpleNamespace(to_dict=dict)

        return record

    for name in ("regime_test", "measure"):
        monkeypatch.setattr(f"calib_core.steps.evaluate.{name}", called(name))
    given = {
        "target_ece": 0.2,
        "tolerance": 0.4,
        "critical_accuracy": 0.6,
        "repairs": "cft",
        "on_undecided": "stop",
    }
    figures = {"n_bins": 7, "cluster_by": "none", "n_resamples": 9, "seed": 3}
    assert {*given, *figures} == {one.name for one in parameters_of(RegimeTest)}
    tables = {name: read_predictions(before[0] / f"{name}.parquet") for name in FOLDS}
    measured(EvaluateConfig(**given, **figures, require_regime=True), tables)
    assert calls == {"regime_test": given | figures, "measure": figures}


def test_evaluation_has_a_table_per_fold_and_one_record(before, model, data) -> None:
    out, record = before
    assert names(out) == {*(f"{fold}.parquet" for fold in FOLDS), "evaluation.json", "preferences.parquet"}
    assert written(out / "evaluation.json") == rendered(record)
    assert record["regime"]["regime"] in ("calibrated", "calibratable", "non_calibratable")
    assert (record["regime"]["n_fit"], record["regime"]["n_heldout"]) == (30, 30)
    assert record["regime"]["target_ece"] == 0.3
    assert record["model"]["base"] == model
    assert record["model"]["adapter"] is None
    assert record["data"] == fingerprints(data)
    assert record["win_rate"]["n"] == len(read_preferences(data / "preferences_test.parquet")[0]) > 0
    for fold in FOLDS:
        table = read_predictions(out / f"{fold}.parquet")
        expected = questions(data, fold)[EVALUATE.shots if fold == "fit" else 0 :]
        assert table.ids == tuple(q.id for q in expected)
        assert table.labels.tolist() == [q.answer for q in expected]
        assert record["figures"][fold]["accuracy"]["value"] == pytest.approx(table.correct().mean())


def test_shots_are_in_no_fold(before, data) -> None:
    out, _ = before
    shots = questions(data, "fit")[:2]
    used = {id_ for fold in FOLDS for id_ in read_predictions(out / f"{fold}.parquet").ids}
    assert not {shot.id for shot in shots} & used
    assert len(used) == 30 + 30 + 20 + 8
    assert {read_predictions(out / f"{fold}.parquet").protocol["shots"] for fold in FOLDS} == {2}


def test_only_the_adapter_differs_between_before_and_after(before, after, tuned) -> None:
    for fold in FOLDS:
        first, second = (read_predictions(one[0] / f"{fold}.parquet") for one in (before, after))
        check_same_protocol(first, second)
        assert first.protocol["adapter"] is None
        assert second.protocol["adapter"] == read_json(tuned[0] / "calibration.json")["adapter"]
        assert (first.logits != second.logits).any()


def test_another_way_of_asking_is_not_comparable(before, model, data, tmp_path) -> None:
    evaluate(replace(EVALUATE, prompt_form="chat", shots=0), model, data, tmp_path / "chat")
    first, second = (read_predictions(folder / "test.parquet") for folder in (before[0], tmp_path / "chat"))
    with pytest.raises(DataFormatError, match="prompt"):
        check_same_protocol(first, second)


def test_the_adapters_record_says_where_it_comes_from(tuned, model, data) -> None:
    out, record = tuned
    assert names(out) == {"adapter_config.json", "adapter_model.safetensors", "calibration.json"}
    found = written(out / "calibration.json", some=True)
    assert found.items() >= rendered(record).items()
    loaded = load_model(out, dtype="float32")
    assert found["base"] == model
    assert found["base_revision"] == ""
    assert found["base_digest"] == loaded.base_digest
    assert found["adapter"] == loaded.adapter_digest
    assert found["method"] == "cft"
    assert found["input_adapter"] is None
    assert found["data"] == fingerprints(data)
    assert found["parameters"]["learning_rate"] == 5e-3
    assert sum(one["chosen"] for one in found["history"]) == 1
    assert [one["objective"] for one in found["history"]] == ["cft", "cft"]
    assert found["steps"] == 4  # 30 questions, 8 at a time


def test_an_evaluation_of_the_adapter_repeats_the_chosen_figures(tuned, after) -> None:
    (chosen,) = (one for one in tuned[1]["history"] if one["chosen"])
    scored = read_predictions(after[0] / "calibration.parquet")
    if chosen["temperature"] != 1:  # by which an evaluation divides, and training doesn't
        assert scored.protocol["temperature"] == chosen["temperature"] == tuned[1]["temperature"]
        scored = apply_temperature(scored, 1 / chosen["temperature"])
    found = evaluate_heldout(
        scored,
        step=chosen["step"],
        epoch=chosen["epoch"],
        objective="cft",
        train_loss=chosen["train_loss"],
        lambda_ece=chosen["lambda_ece"],
        label_smoothing=chosen["label_smoothing"],
        n_bins=FINETUNE.n_bins,
    )
    assert found.nll_nats == pytest.approx(chosen["nll_nats"], abs=1e-6)
    assert found.accuracy == chosen["accuracy"]
    assert found.n == 30


def test_the_fold_that_is_trained_on_is_fit_without_its_shots(model, data, tmp_path, monkeypatch) -> None:
    trained_on: list[str] = []

    def noted(_model: Any, encoded: Any, rows: list[int], smoothing: float) -> torch.Tensor:
        trained_on.extend(encoded.questions[row].id for row in rows)
        return plain(_model, encoded, rows, smoothing)

    from calib_core.training.batches import cft_loss as plain

    monkeypatch.setattr("calib_core.training.loop.cft_loss", noted)
    cft(replace(FINETUNE, seed=5), model, data, tmp_path / "out")
    assert sorted(trained_on) == sorted(q.id for q in questions(data, "fit")[2:])


def test_an_interrupted_write_loses_no_training(tuned, model, data, cache, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("calib_core.models.records.write_json", broken)
        with pytest.raises(OSError, match="disk"):
            cft(FINETUNE, model, data, out)
        assert names(tmp_path) == set()
    assert len(names(cache / "training")) == 1
    monkeypatch.setattr("calib_core.training.loop.cft_loss", broken)  # all of the training was done
    record = cft(FINETUNE, model, data, out)
    assert record["history"] == tuned[1]["history"]
    assert (
        read_json(out / "calibration.json")["adapter"] == read_json(tuned[0] / "calibration.json")["adapter"]
    )
    assert names(cache / "training") == set()


def broken(*_: Any, **__: Any) -> None:
    raise OSError("no space left on disk")


def test_an_evaluation_is_written_atomically(model, data, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").write_text("old")
    monkeypatch.setattr("calib_core.steps.evaluation_record.write_json", broken)
    with pytest.raises(OSError, match="disk"):
        evaluate(EVALUATE, model, data, out)
    assert names(tmp_path) == {"out"}
    assert names(out) == {"evaluation.json"}
    assert (out / "evaluation.json").read_text() == "old"


def test_an_input_adapter_is_trained_on(tuned, model, data, tmp_path) -> None:
    config = replace(FINETUNE, lora_r=64, learning_rate=1e-5)  # its own rank stays
    untouched = {path: path.read_bytes() for path in tuned[0].iterdir()}
    record = rcft(config, str(tuned[0]), data, tmp_path / "out")
    assert {path: path.read_bytes() for path in tuned[0].iterdir()} == untouched
    found = written(tmp_path / "out" / "calibration.json", some=True)
    assert found["base"] == model
    assert found["base_digest"] == read_json(tuned[0] / "calibration.json")["base_digest"]
    assert found["input_adapter"] == read_json(tuned[0] / "calibration.json")["adapter"]
    assert found["adapter"] not in (None, found["input_adapter"])
    assert found["method"] == "rcft"
    assert {one["objective"] for one in record["history"]} == {"rcft"}
    (chosen,) = (one for one in tuned[1]["history"] if one["chosen"])
    # So little was learnt that it is still all but the input: it did not start over.
    assert record["history"][0]["nll_nats"] == pytest.approx(chosen["nll_nats"], abs=0.01)
    loaded = load_model(tmp_path / "out", dtype="float32")
    assert loaded.model.peft_config["default"].r == 4


@pytest.fixture(scope="module")
def aligned(model, data, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("aligned") / "out"
    return out, align(ALIGN, model, data, out)


def test_align_leaves_an_adapter_and_its_win_rates(aligned, before, model, data) -> None:
    out, record = aligned
    assert names(out) == {"adapter_config.json", "adapter_model.safetensors", "calibration.json"}
    found = written(out / "calibration.json", some=True)
    assert found.items() >= rendered(record).items()
    assert (found["base"], found["method"]) == (model, "dpo")
    assert found["adapter"] == load_model(out, dtype="float32").adapter_digest
    assert found["data"] == read_json(data / "data.json")["preferences"]
    assert record["win_rate"]["before"] == before[1]["win_rate"]
    assert record["win_rate"]["after"]["sum"]["value"] > record["win_rate"]["before"]["sum"]["value"]
    for name in ("accuracy", "conf_ece"):
        assert record["unaligned"][name]["value"] == pytest.approx(
            before[1]["figures"]["test"][name]["value"]
        )


def test_what_align_made_is_evaluated_with_the_win_rate_that_it_stated(aligned, data, tmp_path) -> None:
    found = evaluate(EVALUATE, str(aligned[0]), data, tmp_path / "out")
    assert found["win_rate"] == aligned[1]["win_rate"]["after"]


def test_alignment_is_written_atomically(model, data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("calib_core.models.records.write_json", broken)
    with pytest.raises(OSError, match="disk"):
        align(ALIGN, model, data, tmp_path / "out")
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("no_model")
def test_alignment_without_pairs_is_refused_before_a_model_is_loaded(tmp_path) -> None:
    data = prepared(tmp_path, pairs=False)
    with pytest.raises(ConfigError, match=r"no preference pairs; name a file of them in `preferences`"):
        align(ALIGN, "any", data, tmp_path / "out")


def test_data_without_pairs_have_no_win_rate(model, tmp_path) -> None:
    record = evaluate(replace(EVALUATE, shots=0), model, prepared(tmp_path, pairs=False), tmp_path / "out")
    assert record["win_rate"] is None
    assert record["regime"]["n_fit"] == 32


def test_a_small_set_has_figures_without_a_regime_and_nothing_is_decided_by_them(model, data, tmp_path):
    out = tmp_path / "out"
    record = evaluate(replace(EVALUATE, target_ece=0.08, shots=0), model, data, out)
    assert (record["regime"]["regime"], record["regime"]["branch"]) == ("not_decidable", "none")
    assert record["figures"]["calibration"]["n"] == 30
    text = evaluation_text(record)
    assert "regime: not decidable\n- The regime is not decidable: fit has 32 and calibration has 30" in text
    with pytest.raises(NotEnoughDataError, match="not decidable"):
        give_temperature(model, out, tmp_path / "scaled", tmp_path / "after")
    gate = {"model_before": model, "model_after": model, "branch": "none", "out": tmp_path / "gate"}
    with pytest.raises(NotEnoughDataError, match="not decidable"):
        promote(PromoteConfig(), before=out, after=out, **gate)


def test_a_low_letter_mass_is_said_first_with_the_form_that_has_more(model, data, tmp_path) -> None:
    record = evaluate(replace(EVALUATE, shots=0), model, data, tmp_path / "out")
    masses = record["letter_masses"]
    assert masses.keys() == {"plain", "chat"}
    first, mass = evaluation_text(record).splitlines()[0], record["figures"]["test"]["letter_mass"]
    assert first.startswith(
        f"caution: The model doesn't answer with letters here: its letter mass is {mass:.3f}"
    )
    assert f"the chat form has {'' if masses['chat'] > mass else 'no more ('}{masses['chat']:.3f}" in first
    assert re.search(rf"Letter mass +[\d.]+ +[\d.]+ +{mass:.3f}", evaluation_text(record))


def test_auto_takes_the_form_with_most_letter_mass_and_keeps_to_a_recorded_one(model, data, tmp_path) -> None:
    auto = replace(EVALUATE, shots=0, prompt_form="auto")
    found = evaluate(auto, model, data, tmp_path / "auto")
    masses = found["letter_masses"]
    assert found["prompt_form"] == max(masses, key=masses.get)
    assert masses == pytest.approx(evaluate(auto, model, data, tmp_path / "again")["letter_masses"])
    table = read_predictions(tmp_path / "auto" / "test.parquet")
    assert table.protocol["prompt"]["form"] == found["prompt_form"]
    other = next(form for form in masses if form != found["prompt_form"])
    tuned = cft(replace(FINETUNE, shots=0, epochs=1, prompt_form=other), model, data, tmp_path / "adapter")
    assert tuned["prompt"]["form"] == other
    after = evaluate(auto, str(tmp_path / "adapter"), data, tmp_path / "after")
    assert after["prompt_form"] == other
    assert after["letter_masses"][other] < max(after["letter_masses"].values())


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("step", "config"),
    [
        pytest.param(evaluate, replace(EVALUATE, target_ece=0.08, require_regime=True), id="evaluate"),
        pytest.param(cft, replace(FINETUNE, target_ece=0.08, aim="accuracy"), id="cft for accuracy"),
    ],
)
def test_too_few_questions_are_refused_before_a_model_is_loaded(data, tmp_path, step, config) -> None:
    with pytest.raises(
        NotEnoughDataError, match=r"fit has 30 and calibration has 30 questions.* needs 355 in"
    ):
        step(config, "any", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("step", "config"),
    [(evaluate, EVALUATE), (cft, FINETUNE), (rcft, FINETUNE)],
    ids=["evaluate", "cft", "rcft"],
)
def test_folders_that_cant_be_used_are_refused_before_a_model_is_loaded(data, tmp_path, step, config) -> None:
    with pytest.raises(NotEnoughDataError, match="32 worked examples leave nothing of the fit fold's 32"):
        step(replace(config, shots=32), "any", data, tmp_path / "out")
    with pytest.raises(DataFormatError, match=r"data\.json: no such file; make the folder with `prepare`"):
        step(config, "any", tmp_path, tmp_path / "out")
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(DataFormatError, match="field folds is missing; make the folder with `prepare`"):
        step(config, "any", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "wrong", "messages"),
    [
        (
            EvaluateConfig,
            {"prompt_form": "poem", "target_ece": 0.0, "n_bins": 0, "shots": -1, "dtype": "int8"},
            [
                "`prompt_form` is 'poem'",
                "`target_ece` is 0.0",
                "`n_bins` is 0",
                "`shots` is -1",
                "`dtype` is 'int8'",
            ],
        ),
        (
            EvaluateConfig,
            {"on_undecided": "guess", "tolerance": 1.0, "critical_accuracy": 1.5, "n_resamples": 0},
            [
                "`on_undecided` is 'guess'",
                "`tolerance` is 1.0",
                "`critical_accuracy` is 1.5",
                "`n_resamples` is 0",
            ],
        ),
        (
            FinetuneConfig,
            {"aim": "fame", "epochs": 0, "learning_rate": 0.0, "lora_dropout": 1.0, "lambda_ece": -1.0},
            [
                "`aim` is 'fame'",
                "`epochs` is 0",
                "`learning_rate` is 0.0",
                "`lora_dropout` is 1.0",
                "`lambda_ece` is -1.0",
            ],
        ),
        (
            FinetuneConfig,
            {"estimation_fold": "test", "patience": 0, "gradient_accumulation": 0, "batch_size": 2.5},
            [
                "`estimation_fold` is 'test'",
                "`patience` is 0",
                "`gradient_accumulation` is 0",
                "`batch_size` is 2.5",
            ],
        ),
        (
            AlignConfig,
            {"beta": 0.0, "epochs": 0, "warmup_fraction": -0.1, "seed": -1, "learning_rate": float("nan")},
            [
                "`beta` is 0.0",
                "`epochs` is 0",
                "`warmup_fraction` is -0.1",
                "`seed` is -1",
                "`learning_rate` is nan",
            ],
        ),
    ],
)
def test_all_faults_of_a_config_are_told_together(config, wrong, messages) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**wrong)
    for message in messages:
        assert message in str(caught.value)
    assert str(caught.value).count("; give ") == len(messages)


@pytest.mark.parametrize(
    ("variable", "out", "place"),
    [
        ("", "gs://bucket/v2/adapter", None),
        ("gs://bucket/kept", "adapter", "gs://bucket/kept/key"),
        ("/mnt/kept", "adapter", "/mnt/kept/key"),
        ("output", "adapter", None),
        (
            "output",
            "/minio/mlpipeline/v2/artifacts/p/0a1b2c3d-0000-4000-8000-0123456789ab/cft/12/adapter",
            "minio://mlpipeline/v2/artifacts/p/calib-checkpoints/key",
        ),
        (
            "output",
            "/gcs/bucket/root/123456/recalibrate-20260131093000/cft_-99/adapter",
            "gs://bucket/root/123456/calib-checkpoints/key",
        ),
        ("output", "/gcs/bucket/elsewhere/adapter", "gs://bucket/elsewhere/calib-checkpoints/key"),
    ],
)
def test_checkpoints_lie_where_they_are_asked_to(cache, monkeypatch, variable, out, place) -> None:
    monkeypatch.setenv("CALIB_CHECKPOINTS", variable)
    monkeypatch.setattr(finetune, "exists", lambda uri: False)
    assert finetune._place_of_checkpoints("key", Path(out)) == (place or str(cache / "training/key"))


def test_checkpoints_stay_here_where_the_bucket_can_not_be_reached(cache, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CALIB_CHECKPOINTS", "oci://registry/kept")
    assert finetune._place_of_checkpoints("key", Path("adapter")) == str(cache / "training/key")
    assert "checkpoints can't be kept in oci://registry/kept" in capsys.readouterr().err


def test_gate_takes_what_these_steps_leave(model, before, tuned, after, tmp_path) -> None:
    summary = promote(
        PromoteConfig(n_resamples=50),
        before=before[0],
        after=after[0],
        model_before=model,
        model_after=str(tuned[0]),
        branch="cft",
        out=tmp_path / "out",
    )
    assert summary["evidence"]["data"] == after[1]["data"]
    assert summary["evidence"]["after"]["model"] == after[1]["model"]


def test_gate_refuses_an_adapter_that_other_questions_trained(model, data, before, tmp_path) -> None:
    """The questions that judge it are those that it was trained on."""
    sources = {name: str(data / f"{name}.parquet") for name in ("fit", "calibration", "test")}
    leaking = {"fit": sources["test"], "calibration": sources["calibration"], "test": sources["fit"]}
    prepare(PrepareConfig(**leaking), tmp_path / "data")
    out = tmp_path / "adapter"
    cft(replace(FINETUNE, shots=0), model, tmp_path / "data", out)
    evaluate(EVALUATE, str(out), data, tmp_path / "after")
    with pytest.raises(EvidenceError, match="trained with another data folder"):
        promote(
            PromoteConfig(n_resamples=50),
            before=before[0],
            after=tmp_path / "after",
            model_before=model,
            model_after=str(out),
            branch="cft",
            out=tmp_path / "out",
        )


def test_adapter_that_was_trained_on_says_what_it_was_trained_with(model, data, tuned, tmp_path) -> None:
    out = tmp_path / "again"
    cft(FINETUNE, str(tuned[0]), data, out)
    record, first = read_json(out / "calibration.json"), read_json(tuned[0] / "calibration.json")
    assert record["input_adapter"] == first["adapter"]
    assert record["lineage"] == [{name: first[name] for name in ("adapter", "method", "data")}]
    assert first["lineage"] == []


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_flipped_bit_in_an_adapter_is_found_when_it_is_loaded(tuned, tmp_path, name) -> None:
    folder = Path(shutil.copytree(tuned[0], tmp_path / "adapter"))
    content = bytearray((folder / name).read_bytes())
    content[-len(content) // 3] ^= 0x10
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}: damaged"):
        load_model(folder, dtype="float32")


def test_adapter_of_another_training_than_its_record_says_is_refused(tuned, tmp_path) -> None:
    folder = Path(shutil.copytree(tuned[0], tmp_path / "adapter"))
    record = read_json(folder / "calibration.json")
    write_json(folder / "calibration.json", {**record, "adapter": "0" * 64, "files": {}})
    with pytest.raises(ConfigError, match=r"not the adapter that calibration\.json was written for"):
        load_model(folder, dtype="float32")


def test_changed_fold_is_refused(data, tmp_path) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    write_questions(questions(folder, "fit"), folder / "test.parquet")
    with pytest.raises(DataFormatError, match=r"test\.parquet: holds other questions than data\.json says"):
        read_data(folder)
