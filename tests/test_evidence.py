"""The chain from model to champion: whatever link is broken, nothing is promoted, and the link is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chain import write_adapter
from test_champion import Folder, places, prepare_end, summary
from test_promote import CALIBRATED, CONFIG, DATA, OVERCONFIDENT, write_evaluation

from calib_core.champion.state import read_champion
from calib_core.errors import CalibError, EvidenceError
from calib_core.predictions.files import read_predictions, write_predictions
from calib_core.steps.promote import promote
from calib_core.steps.publish import PublishConfig, publish_champion
from calib_core.storage.files import read_json, write_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run up to the gate, with nothing broken: `before`, `after`, `adapter`."""
    root = tmp_path_factory.mktemp("whole")
    adapter = write_adapter(root / "adapter", b"weights", method="cft", data=DATA, base_digest="d")
    write_evaluation(root / "before", OVERCONFIDENT)
    write_evaluation(root / "after", CALIBRATED, adapter=adapter)
    return root


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def gate(run: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "before": run / "before",
        "after": run / "after",
        "model_before": "models/input",
        "model_after": str(run / "adapter"),
        "branch": "cft",
        "out": run / "out",
    }
    return promote(CONFIG, **{**given, **changes})


def edit(path: Path, **changes: Any) -> None:
    write_json(path, {**read_json(path), **changes})


def retable(folder: Path, fold: str, **protocol: Any) -> None:
    """Score a fold with another model, and let the record vouch for the table."""
    table = read_predictions(folder / f"{fold}.parquet")
    table = replace(table, protocol={**table.protocol, **protocol})
    write_predictions(table, folder / f"{fold}.parquet")
    digests = read_json(folder / "evaluation.json")["predictions"]
    edit(folder / "evaluation.json", predictions={**digests, fold: table.digest()})


def test_whole_chain_is_promoted_and_written_down(run):
    found = gate(run)
    assert found["promoted"] is True
    assert found["evidence"]["data"] == DATA
    assert found["evidence"]["after"]["model"]["adapter_files"]
    assert found["evidence"]["before"]["model"]["adapter_files"] is None
    assert found["evidence"].keys() == {"data", "before", "after", "report"}


def test_model_may_be_named_by_the_place_that_it_is_going_to_have(run):
    found = gate(run, model_after="gs://bucket/later", places={"gs://bucket/later": run / "adapter"})
    assert found["model"] == "gs://bucket/later"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "tables of another run": (
        lambda run: shutil.copy(run / "before/test.parquet", run / "after/test.parquet"),
        r"after/test\.parquet: not the table that evaluation\.json was written with",
    ),
    "fit table too": (
        lambda run: shutil.copy(run / "after/fit.parquet", run / "before/fit.parquet"),
        r"before/fit\.parquet: not the table",
    ),
    "table of another adapter": (
        lambda run: retable(run / "after", "test", adapter="other"),
        r"after/test\.parquet: made with another model .*adapter differ",
    ),
    "table of another base": (
        lambda run: retable(run / "before", "calibration", base_digest="e"),
        r"before/calibration\.parquet: made with another model .*base_digest differ",
    ),
    "no digests": (
        lambda run: edit(run / "after/evaluation.json", predictions={}),
        r"after/evaluation\.json: predictions of fit, calibration, test missing|"
        r"after/evaluation\.json: predictions of calibration, fit, test missing",
    ),
    "other questions": (
        lambda run: edit(run / "after/evaluation.json", data={**DATA, "test": "others"}),
        "before and .*after: made on different questions \\(test differ\\)",
    ),
    "weights changed": (
        lambda run: flip(run / "adapter/adapter_model.safetensors"),
        "adapter: not the model that .*after was made with",
    ),
    "configuration changed": (
        lambda run: (run / "adapter/adapter_config.json").write_text('{"lora_alpha": 9}'),
        "adapter: not the model that .*after was made with",
    ),
    "temperature changed": (
        lambda run: edit(run / "adapter/calibration.json", temperature=3.0),
        "adapter: not the model that .*after was made with",
    ),
    "no weights": (
        lambda run: (run / "adapter/adapter_model.safetensors").unlink(),
        "adapter: cannot be checked against its evaluation: .*no adapter_model.safetensors",
    ),
    "no adapter at all": (
        lambda run: shutil.rmtree(run / "adapter"),
        "adapter: cannot be checked against its evaluation: .*no such folder",
    ),
    "evaluation of a base": (
        lambda run: shutil.copytree(run / "before", run / "after", dirs_exist_ok=True),
        "evaluates a model without an adapter",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_link_is_named_and_nothing_is_written(run, name):
    damage, message = BROKEN[name]
    damage(run)
    with pytest.raises(EvidenceError, match=message):
        gate(run)
    assert not (run / "out").exists()


TRAININGS: dict[str, tuple[dict[str, Any], str]] = {
    "on other data": ({"data": {**DATA, "fit": "others"}}, r"another data folder .*\(fit differ"),
    "on the test questions": (
        {"data": {**DATA, "fit": DATA["test"], "test": DATA["fit"]}},
        r"another data folder .*\(fit, test differ",
    ),
    "on data that it doesn't name": ({"method": "sft"}, "names no fingerprint of fit, calibration, test"),
    "of another base": ({"data": DATA, "base_digest": "e"}, "trained on another base model"),
    "on the test questions, two trainings ago": (
        {
            "data": DATA,
            "method": "rcft",
            "lineage": [
                {"adapter": "a", "method": "cft", "data": {**DATA, "fit": DATA["test"]}},
                {"adapter": "b", "method": "dpo", "data": {"preferences_fit": {"n": 1}}},
            ],
        },
        r"an earlier training of it \(cft\) had the questions that now judge it as its fold fit",
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_adapter_is_refused_where_its_training_may_have_seen_the_test(whole, tmp_path, name):
    record, message = TRAININGS[name]
    adapter = write_adapter(tmp_path / "adapter", b"weights", **record)
    after = write_evaluation(tmp_path / "after", CALIBRATED, adapter=adapter)
    with pytest.raises(EvidenceError, match=message):
        gate(whole, after=after, model_after=str(adapter), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapter_of_an_adapter_that_saw_other_questions_is_promoted(whole, tmp_path):
    earlier = {"adapter": "a", "method": "cft", "data": {fold: f"last week's {fold}" for fold in DATA}}
    adapter = write_adapter(tmp_path / "adapter", b"weights", data=DATA, lineage=[earlier])
    after = write_evaluation(tmp_path / "after", CALIBRATED, adapter=adapter)
    assert gate(whole, after=after, model_after=str(adapter), out=tmp_path / "out")["promoted"]


def test_another_input_model_than_was_measured_is_refused(run, tmp_path, tiny_llama):
    other = write_adapter(tmp_path / "other", b"other weights")
    for name in (other, tiny_llama):
        with pytest.raises(EvidenceError, match=r"not the model that .*before was made with"):
            gate(run, model_before=str(name))


UNTRAINED = {"base": "base", "base_digest": "", "adapter": None}
PUBLISHED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (
        lambda work: (work / "adapter/adapter_model.safetensors").unlink(),
        "can't be published: .*no adapter_model.safetensors",
    ),
    "empty folder": (
        lambda work: [path.unlink() for path in (work / "adapter").iterdir()],
        "can't be published",
    ),
    "other weights": (
        lambda work: flip(work / "adapter/adapter_model.safetensors"),
        r"not the model that .*summary\.json promotes",
    ),
    "evidence of no model": (
        lambda work: edit_evidence(work, after={"evaluation": "", "model": UNTRAINED}),
        r"not the model that .*summary\.json promotes",
    ),
    "no evidence": (
        lambda work: edit(work / "summary/summary.json", evidence=None),
        "field evidence is None where an object is expected; make the folder with `promote`",
    ),
    "other questions": (
        lambda work: edit_evidence(work, data={"fit": "x", "calibration": "y", "test": "z"}),
        "judged by other questions than this run's snapshot",
    ),
    "other report": (
        lambda work: (work / "summary/report.html").write_text("<html>"),
        r"report\.html: not the report",
    ),
    "no report": (lambda work: (work / "summary/report.html").unlink(), r"report\.html: not the report"),
    "promoted against its gate": (
        lambda work: edit(work / "summary/summary.json", gate={"promoted": False}),
        "field promoted is true and the gate's is not",
    ),
    "figures missing": (
        lambda work: edit(work / "summary/summary.json", after={"n": 90}),
        "field after.accuracy is missing; make the folder with `promote`",
    ),
    "no figures of the champion": (
        lambda work: edit(work / "summary/summary.json", before={}),
        "field before.n is missing; make the folder with `promote`",
    ),
    "snapshot of another run": (
        lambda work: edit(work / "snapshot/state.json", snapshot="0" * 16),
        r"state\.json is of another snapshot",
    ),
    "snapshot cut short": (
        lambda work: (work / "snapshot/seen.parquet").unlink(),
        "snapshot: no readable snapshot",
    ),
}


def edit_evidence(work: Path, **changes: Any) -> None:
    path = work / "summary/summary.json"
    edit(path, evidence={**read_json(path)["evidence"], **changes})


@pytest.mark.parametrize("name", PUBLISHED)
def test_publish_refuses_a_broken_link_before_anything_is_in_force(tmp_path, name):
    folder = Folder(tmp_path)
    work = folder.begin()
    prepare_end(work, summary())
    damage, message = PUBLISHED[name]
    damage(work)
    with pytest.raises(CalibError, match=message) as raised:
        folder.publish(work)
    assert raised.value.exit_code == 2
    assert read_champion(folder.champion) is None
    assert not (Path(folder.champion) / "runs").exists()


def test_publish_refuses_a_summary_about_another_model_than_the_champion(tmp_path):
    folder = Folder(tmp_path)
    folder.finish(folder.begin(), summary())
    state = (Path(folder.champion) / "champion.json").read_bytes()
    work = folder.begin()
    prepare_end(work, summary(promoted=False))
    edit_evidence(work, before={"evaluation": "", "model": {**UNTRAINED, "adapter_files": "another"}})
    with pytest.raises(EvidenceError, match="judged another model than the champion"):
        folder.publish(work)
    assert (Path(folder.champion) / "champion.json").read_bytes() == state


def test_only_files_that_were_measured_are_published(tmp_path):
    folder = Folder(tmp_path)
    work = folder.begin()
    prepare_end(work, summary())
    (work / "adapter/optimizer.pt").write_bytes(b"a pickle")
    result = publish_champion(PublishConfig(), champion=folder.champion, **places(work))
    assert {path.name for path in Path(result["model"]).iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    champion, _ = read_champion(folder.champion)
    assert (
        champion.history[-1].digest
        == json.loads((work / "summary/summary.json").read_text())["evidence"]["after"]["model"][
            "adapter_files"
        ]
    )
