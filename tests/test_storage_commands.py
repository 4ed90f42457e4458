"""Commands, steps and models with URIs of buckets: fetched before, published after, refused first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chain import write_adapter
from synthetic import make_world, tempered
from test_promote import CONFIG, DATA, OVERCONFIDENT, write_evaluation

from calib_core.data.questions import Question, read_questions, write_questions
from calib_core.predictions.files import write_predictions
from calib_core.steps.promote import promote
from calib_core.storage import uris as storage
from calib_pipelines.commands import main as cli


@pytest.fixture
def questions(bucket: str) -> str:
    """URI of 300 questions."""
    rows = [
        Question(id=f"q{i}", question=f"Question {i}?", choices=("a", "b", "c"), answer=i % 3)
        for i in range(300)
    ]
    with storage.published(f"{bucket}/in/questions.parquet") as path:
        write_questions(rows, path)
    return f"{bucket}/in/questions.parquet"


@pytest.fixture
def tables(bucket: str) -> dict[str, str]:
    """URIs of two models' predictions for the same questions, and of one's for others."""
    world, other = make_world(400, 1), make_world(400, 2)
    made = {
        "sure": world.predictions(tempered(world.q, 0.3)),
        "right": world.predictions(world.q),
        "sure_elsewhere": other.predictions(tempered(other.q, 0.3)),
    }
    uris = {name: f"{bucket}/tables/{name}.parquet" for name in made}
    for name, uri in uris.items():
        write_predictions(made[name], uri)
    return uris


def run(*arguments: str) -> int:
    return cli.main([*arguments])


def test_questions_are_read_from_a_bucket(questions: str) -> None:
    rows, report = read_questions(questions)
    assert len(rows) == 300
    assert report.source == questions


def test_prepare_reads_and_writes_buckets(questions: str, bucket: str, tmp_path: Path) -> None:
    assert run("prepare", "--questions", questions, "--out", f"{bucket}/data") == 0
    local = tmp_path / "questions.parquet"
    local.write_bytes(storage.fetch(questions).read_bytes())
    assert run("prepare", "--questions", str(local), "--out", str(tmp_path / "data")) == 0
    folds = {"fit.parquet", "calibration.parquet", "test.parquet"}
    remote = storage.fetch(f"{bucket}/data")
    assert {path.name for path in remote.iterdir()} == {*folds, "data.json"}
    for name in folds:
        assert (remote / name).read_bytes() == (tmp_path / "data" / name).read_bytes()


def test_metrics_and_regime_read_buckets(tables: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("metrics", tables["right"], "--n-resamples", "50", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n"] == 400
    names = ("--fit", tables["sure"], "--heldout", tables["sure_elsewhere"])
    assert run("regime", *names, "--n-resamples", "50", "--json") == 0
    assert json.loads(capsys.readouterr().out)["regime"] == "calibratable"


def test_report_is_written_to_a_bucket(
    tables: dict[str, str], bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{bucket}/reports/report.html"
    given = (tables["sure"], "--after", tables["right"], "--out", out)
    assert run("report", *given, "--n-resamples", "50", "--json") == 0
    assert json.loads(capsys.readouterr().out)["report"] == out
    assert "<html" in storage.fetch(out).read_text(encoding="utf-8")


def test_promote_reads_and_writes_buckets(bucket: str, tmp_path: Path) -> None:
    """The summary names URIs, and what training wrote beside the adapter is found in the bucket."""
    adapter = write_adapter(tmp_path / "adapter", b"weights", method="cft", data=DATA, seconds=12.5)
    storage.publish(adapter, f"{bucket}/adapter")
    for name, model in (("before", None), ("after", adapter)):
        folder = write_evaluation(tmp_path / name, OVERCONFIDENT, adapter=model)
        storage.publish(folder, f"{bucket}/{name}")
    given = {name: f"{bucket}/{name}" for name in ("before", "after", "out")} | {"branch": "cft"}
    given |= {"model-before": f"{bucket}/input", "model-after": f"{bucket}/adapter", "n-resamples": "100"}
    assert run("promote", *(word for name, value in given.items() for word in (f"--{name}", value))) == 0
    out = storage.fetch(f"{bucket}/out")
    assert {path.name for path in out.iterdir()} == {"summary.json", "report.html"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["report"] == f"{bucket}/out/report.html"
    assert summary["model"] == f"{bucket}/input"
    assert summary["timing"]["finetune"] == 12.5


def test_an_input_model_that_can_not_be_read_does_not_stop_the_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_evaluation(tmp_path / "before", OVERCONFIDENT)
    name = "oci://registry/input"
    given = {"before": folder, "after": folder, "model_before": name, "model_after": name}
    summary = promote(CONFIG, **given, branch="none", out=tmp_path / "out")
    assert summary["model"] == name
    assert f"the report will not show how {name} was trained" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("metrics", "gs://calib-no-such-bucket/t.parquet"),
        ("metrics", "s3://calib-no-such-bucket/t.parquet"),
        ("prepare", "--questions", "q.jsonl", "--out", "minio://calib-no-such-bucket/data"),
        ("report", "t.parquet", "--out", "s3://bucket/report.html"),
        ("prepare", "--questions", "gs://calib-no-such-bucket/q.jsonl", "--out", "data"),
        ("evaluate", "--model", "m", "--data", "gs://calib-no-such-bucket/data", "--out", "out"),
        ("prepare", "--questions", "q.jsonl", "--out", "gs://BAD"),
        ("prepare", "--questions", "q.jsonl", "--out", "gs://calib-no-such-bucket/data"),
    ],
)
@pytest.mark.usefixtures("gcs", "s3")
def test_what_can_not_be_reached_ends_with_a_message(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    world = make_world(100, 1)
    write_predictions(world.predictions(world.q), "t.parquet")
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert {path.name for path in tmp_path.iterdir()} <= {"t.parquet", "cache"}


@pytest.mark.parametrize("mounted", [False, True])
def test_a_model_in_a_bucket_is_loaded_under_its_uri(mounted: bool, bucket: str, tiny_llama: Path) -> None:
    """`/gcs/...` and `/s3/...` are how KFP names what lies in a bucket that nothing has mounted here."""
    from calib_core.models.loading import load_model

    uri = f"{bucket}/models/tiny"
    storage.publish(tiny_llama, uri)
    scheme, _, rest = uri.partition("://")
    loaded = load_model(f"/{'gcs' if scheme == 'gs' else scheme}/{rest}" if mounted else uri)
    assert loaded.base == uri
    assert loaded.base_digest == load_model(tiny_llama).base_digest


def test_a_mounted_base_is_known_by_its_uri(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task of KFP has at `/minio/...` other machines find at `minio://...` only."""
    from calib_core.models import loading

    monkeypatch.setattr(loading.Path, "absolute", lambda path: Path("/minio/mlpipeline/models/tiny"))
    assert loading.load_model(str(tiny_llama)).base == "minio://mlpipeline/models/tiny"


def test_an_adapter_in_a_bucket_finds_its_base_there(bucket: str, tiny_llama: Path, tmp_path: Path) -> None:
    from test_models import save_adapter

    from calib_core.models.loading import load_model

    storage.publish(tiny_llama, f"{bucket}/models/tiny")
    save_adapter(tiny_llama, tmp_path / "adapter", base=f"{bucket}/models/tiny")
    storage.publish(tmp_path / "adapter", f"{bucket}/adapter")
    loaded = load_model(f"{bucket}/adapter")
    assert loaded.base == f"{bucket}/models/tiny"
    assert loaded.adapter_digest is not None


def test_a_single_object_is_no_model(questions: str) -> None:
    from calib_core.errors import ConfigError
    from calib_core.models.files import resolve

    with pytest.raises(ConfigError, match="is a single object; give the folder"):
        resolve(questions)
