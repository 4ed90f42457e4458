"""The record of a run's end: what it says, where it lies, and what it must not say."""

from __future__ import annotations

import json

import pytest

from calib_core.steps.record import RunEnd, record, without_secrets
from calib_core.version import __version__

END = RunEnd(
    pipeline="restore-calibration",
    run="projects/1/locations/x/pipelineJobs/restore-20260101",
    state="FAILED",
    error_code=9,
    error_message="task evaluate failed: no answer from https://me:pw@hub.example/m",
    parameters="model=gs://bucket/model\nquestions=\nhub_token=abc\nnote=two\nlines\nepochs=3",
)


def test_record_says_how_the_run_ended(tmp_path):
    written = record(END, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == written
    assert written.pop("ended").endswith("+00:00")
    assert written == {
        "pipeline": "restore-calibration",
        "run": END.run,
        "state": "FAILED",
        "error_code": 9,
        "error_message": "task evaluate failed: no answer from https://***@hub.example/m",
        "parameters": {
            "model": "gs://bucket/model",
            "questions": "",
            "hub_token": "***",
            "note": "two\nlines",
            "epochs": "3",
        },
        "library_version": __version__,
    }


def test_copy_lies_in_the_folder_of_all_runs_under_the_runs_name(tmp_path):
    written = record(END, tmp_path / "record", folder=str(tmp_path / "runs"))
    (copy,) = (tmp_path / "runs").iterdir()
    assert copy.name.startswith("restore-calibration-restore-20260101-")
    assert json.loads(copy.read_text()) == written


def test_folder_can_be_in_a_bucket(tmp_path, request):
    storage = pytest.importorskip("calib_core.storage.uris")
    folder = request.getfixturevalue("gcs") + "/runs/"
    written = record(END, tmp_path / "record", folder=folder)
    (copy,) = storage.list_files(folder)
    assert copy.uri.startswith(f"{folder}restore-calibration-restore-20260101-")
    assert json.loads(storage.read_versioned(copy.uri)[0]) == written


def test_without_a_folder_there_is_no_copy(tmp_path):
    record(END, tmp_path / "out" / "record")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:secret@host/path", "https://***@host/path"),
        ("https://host/file?X-Goog-Signature=abc&x=1#part", "https://host/file?***#part"),
        ("token hf_abcdefghijklmnopqrst was refused", "token *** was refused"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("gs://bucket/model", "gs://bucket/model"),
        ("is it so?", "is it so?"),
    ],
)
def test_secrets_are_left_out(text, expected):
    assert without_secrets(text) == expected
