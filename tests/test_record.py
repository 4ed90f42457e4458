"""The record of a run's end: what it says, where it lies, and what it must not say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from calib_core.steps.record import RunEnd, record, without_secrets
from calib_core.version import __version__

END = RunEnd(
    pipeline="restore-calibration",
    run="projects/1/locations/x/pipelineJobs/restore-20260101",
    state="FAILED",
    error_code=9,
    error_message="task evaluate failed: no answer from https://me:pw@hub.example/m",
    parameters={
        "model": "gs://bucket/model",
        "questions": "",
        "hub_token": "abc",
        "note": 'two\nlines, "quoted" \\ {{$.inputs}}',
        "epochs": 3,
        "pass_tokens": 2048,
        "align": True,
        "cluster": '{"platform": "kubeflow", "memory": "64Gi"}',
    },
)


def test_record_says_how_the_run_ended(tmp_path):
    written = record(END, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == written
    assert written.pop("ended").endswith("+00:00")
    assert written == {
        "format": 1,
        "pipeline": "restore-calibration",
        "run": END.run,
        "state": "FAILED",
        "platform_state": "FAILED",
        "error_code": 9,
        "error_message": "task evaluate failed: no answer from https://***@hub.example/m",
        "parameters": {
            "model": "gs://bucket/model",
            "questions": "",
            "hub_token": "***",
            "note": 'two\nlines, "quoted" \\ {{$.inputs}}',
            "epochs": 3,
            "pass_tokens": 2048,
            "align": True,
            "cluster": '{"platform": "kubeflow", "memory": "64Gi"}',
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
    ("word", "state"),
    [
        ("SUCCEEDED", "SUCCEEDED"),  # Vertex's own words
        ("FAILED", "FAILED"),
        ("CANCELLED", "CANCELLED"),
        ("COMPLETE", "SUCCEEDED"),  # Kubeflow's
        ("CANCELED", "CANCELLED"),
        ("RUNNING", "UNKNOWN"),
        ("", "UNKNOWN"),
    ],
)
def test_state_is_told_in_the_same_words_on_every_platform(tmp_path, word, state):
    written = record(replace(END, state=word), tmp_path / "record")
    assert (written["state"], written["platform_state"]) == (state, word)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"api_key": "abc", "gpu": true}', '{"api_key": "***", "gpu": true}'),
        ('[{"token": ["abc"]}, 1]', '[{"token": "***"}, 1]'),
        ('{"token_file": "", "pass_tokens": 5}', '{"token_file": "", "pass_tokens": 5}'),
        ('{"source": "https://me:pw@host/q"}', '{"source": "https://***@host/q"}'),
        ('"https://me:pw@host/q"', '"https://***@host/q"'),
        ({"secret": {"a": 1}, "note": "é"}, {"secret": "***", "note": "é"}),
        ('{"not": json', '{"not": json'),
    ],
)
def test_secrets_are_left_out_of_json_too(tmp_path, value, expected):
    written = record(replace(END, parameters={"given": value}), tmp_path / "record")
    assert written["parameters"] == {"given": expected}


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
