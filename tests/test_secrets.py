"""Nothing that may be a credential is printed or recorded, and nothing else is hidden."""

from __future__ import annotations

import json
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_core.errors import ConfigError, DataFormatError
from calib_core.report.html import ReportData
from calib_core.runtime import secrets
from calib_core.runtime.messages import MESSAGE_CHARACTERS, quiet_data, shown_message
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import HIDDEN, is_secret_name, shown, without_secrets
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.record import RunEnd, record
from calib_core.steps.task import reported_errors
from calib_core.storage.files import read_json
from calib_pipelines.commands import main as cli

# Made up, in the forms that the services give them.
SECRETS = {
    "GitHub, classic": "ghp_" + "a1B2" * 9,
    "GitHub, fine-grained": "github_pat_11ABCDEFG0" + "aB3_" * 18,
    "GitLab": "glpat-" + "x7Y8" * 5,
    "AWS": "AKIA" + "Q2W3E4R5T6Y7U8I9",
    "OpenAI": "sk-proj-" + "aB1c" * 5 + "T3BlbkFJ" + "dE2f" * 5,
    "OpenAI, older": "sk-" + "aB1c" * 12,
    "Slack": "xoxb-123456789012-123456789012-" + "aBcD" * 6,
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "Hugging Face": "hf_" + "aBcD" * 8,
    "Google": "AIza" + "aB1_" * 9,
    "Google, OAuth": "ya29." + "aB1_" * 9,
    "Stripe": "sk_live_" + "aB1c" * 6,
    "npm, PyPI": "pypi-AgEIcHlwaS5vcmc" + "aB1c" * 20,
    "npm": "npm_" + "aBcD" * 9,
    "Anthropic": "sk-ant-api03-" + "aB1c" * 12 + "-" + "dE2f" * 10 + "_AA",
    "Google, client": "GOCSPX-" + "aBcD" * 7,
    "Google, refreshing": "1//0g" + "aB1_" * 12,
    "GitLab, runner": "glrt-" + "aBcD" * 5,
    "Hugging Face, organisation": "api_org_" + "aBcD" * 8,
    "AWS, session": "FwoGZXIvYXdz" + "aB1/" * 20,
    "Azure": "abc8Q~" + "aB1_" * 8 + "ab",
    "Docker": "dckr_pat_" + "aBcD" * 7,
    "DigitalOcean": "dop_v1_" + "0a1b" * 16,
    "Vault": "hvs.CAESI" + "aB1c" * 10,
    "Databricks": "dapi" + "0a1b" * 8,
    "Groq": "gsk_" + "aB1c" * 13,
    "NVIDIA": "nvapi-" + "aB1c" * 16,
    "Slack, app": "xapp-1-A0123456789-1234567890123-" + "0a1b" * 16,
}
PHRASES = {
    "user and password in a URL": ("https://me:{}@host/path", "hunter2"),
    "a token as user": ("https://{}@github.example/repo", "abc123"),
    "query of a URL": ("http://host/m?sig={}", "abc123"),
    "basic authorization": ("Authorization: Basic {}", "bWU6aHVudGVyMg=="),
    "a slash in a URL's password": ("https://me:{}@host/path", "hun/ter#2"),
    "an option as it is typed": ("calib pipeline submit --hub-token {} --wait", "hunter2"),
    "JSON in JSON": ('"{{\\"password\\": \\"{}\\"}}"', "hunter2"),
    "a query, encoded": ("next=%2Fa%3Fpassword%3D{}", "hunter2"),
    "XML": ("<Password>{}</Password>", "hunter2"),
    "a session": ("authservice_session={}", "MTY3NTc4"),
    "a name in one word": ("//registry.example/:_authToken={}", "abcdef"),
    "a connection": ("connection_string={}", "Server=db"),
    "a cluster's file": ("client-key-data: {}", "LS0tLS1CRUdJTiBS"),
    "bearer": ("got 401 for Bearer {}", "abcdef123456"),
    "cookie": ("Cookie: session={}", "abc123"),
    "set-cookie": ("< Set-Cookie: sid={}; HttpOnly", "abc123"),
    "password=": ("psql password={} host=x", "hunter2"),
    "password in quotes": ("PASSWORD = '{}'", "two words"),
    "PGPASSWORD": ("PGPASSWORD={} psql", "hunter2"),
    "secret access key": ("aws_secret_access_key={}", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    "access_key": ("access_key: {}", "abc"),
    "private_key": ('"private_key": "{}"', "abc"),
    "auth": ("{{'auth': '{}'}}", "me:hunter2"),
    "x-api-key": ("x-api-key: {}", "abc123"),
    "client secret": ("client_secret={}&a=b", "abc123"),
    "value of a parameter": ("`hub_token` is '{}'; give another", "abc 123"),
    "private key block": ("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", "MIIEowIB"),
    "signed URL of a bucket": ("https://storage.example/b/o?X-Goog-Signature={}", "0a1b2c"),
}
HARMLESS = [
    "epoch 1.00: held-out accuracy 0.512, NLL 1.203 nats, 1.190 at temperature 1.31",
    "kept step 120 of 240: the calibration fold's NLL has not improved for 2 evaluations",
    "gs://bucket/models/m-1.7B/adapter_model.safetensors: 3 objects, 1200 MB",
    "s3://bucket/key=1/day=2026-01-31/part-00000.parquet",
    "minio://mlpipeline/v2/artifacts/p/0a1b2c3d-0000-4000-8000-0123456789ab/cft/12/adapter",
    "/home/me/.cache/calib/training/0123456789abcdef0123456789abcdef/state.json",
    "tokenizer: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "batch_tokens: 4096, pass_tokens=2048, token: 12",
    "the author: someone; keys: 3; the secret of good calibration",
    "basic figures, and basically nothing else",
    "http://127.0.0.1:8080/pipeline: 3 runs of me@example.com",
    "--batch-tokens 4096 --hub-token-file /run/token --seed 3",
    "npm_and_pip_and_conda and sk-learn-contrib-of-today, r8_quantized_checkpoint",
    "runs/399935339afda8f2/model (change 3); owner/name@v1.0; me@example.com",
]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("around", ["{}", "using {} for it", "x={}", '{{"v": "{}"}}', "a,{},b"])
def test_key_of_a_service_is_hidden_wherever_it_stands(name, around) -> None:
    text = without_secrets(around.format(SECRETS[name]))
    assert SECRETS[name][8:24] not in text
    assert HIDDEN in text


@pytest.mark.parametrize("name", PHRASES)
def test_what_words_around_it_tell_to_be_a_secret_is_hidden(name) -> None:
    form, secret = PHRASES[name]
    text = without_secrets(form.format(secret))
    assert secret not in text
    assert HIDDEN in text
    assert without_secrets(text) == text  # again changes nothing


@pytest.mark.parametrize("text", HARMLESS)
def test_nothing_else_is_hidden(text) -> None:
    assert without_secrets(text) == text


@given(st.binary(min_size=20, max_size=32).map(bytes.hex), st.integers(), st.floats(allow_nan=False))
def test_digests_and_numbers_are_shown(digest, whole, real) -> None:
    text = f"digest {digest[:12]}, {digest}: {whole}, {real}"
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "name",
    [
        *("token", "HF_TOKEN", "hub-token", "accessToken", "access_key", "AWS_ACCESS_KEY_ID", "private_key"),
        *("auth", "x-auth", "Authorization", "password", "db_password", "passwd", "pwd", "api_key", "apikey"),
        *("client_secret", "credentials", "cookie", "Set-Cookie", "jwt", "signature", "secretAccessKey"),
    ],
)
def test_names_of_secrets_are_known(name) -> None:
    assert is_secret_name(name)
    assert shown({name: "x", "a": [{name: {"deep": "x"}}]}) == {name: HIDDEN, "a": [{name: HIDDEN}]}


@pytest.mark.parametrize(
    "name", ["tokenizer", "pass_tokens", "author", "key", "keys", "primary_key", "model", "seed", "path"]
)
def test_other_names_are_not(name) -> None:
    assert shown({name: "x"}) == {name: "x"}


def test_numbers_under_such_names_stay() -> None:
    assert shown({"token": 4, "auth": True, "password": None, "secret": ""}) == {
        "token": 4,
        "auth": True,
        "password": None,
        "secret": "",
    }


def test_json_in_a_text_is_looked_through() -> None:
    cluster = json.dumps({"platform": "kubeflow", "auth": {"key": "abc"}, "n": [1]})
    found = json.loads(shown({"cluster": cluster})["cluster"])
    assert found == {"platform": "kubeflow", "auth": HIDDEN, "n": [1]}
    assert shown({"cluster": '{"a":1}'}) == {"cluster": '{"a":1}'}
    assert shown("[" * 100_000) == "[" * 100_000


@pytest.mark.parametrize(
    "text", ["a1" * 50_000, "://" * 20_000, "token" * 20_000, "x=1," * 20_000, "a" * 100_000]
)
def test_long_texts_are_looked_through_in_time(text) -> None:
    started_s = time.process_time()
    without_secrets(text)
    assert time.process_time() - started_s < 5


def test_missing_detector_is_told_once_and_messages_go_on(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "detect_secrets.plugins.artifactory", None)
    secrets._service_patterns.cache_clear()
    try:
        for _ in range(2):
            assert without_secrets("AKIA" + "Q2W3E4R5T6Y7U8I9") == "AKIA" + "Q2W3E4R5T6Y7U8I9"
    finally:
        secrets._service_patterns.cache_clear()
    assert capsys.readouterr().err.count("install detect-secrets") == 1


# Where it is used


def test_progress_errors_and_records_hide_them(tmp_path, capsys) -> None:
    secret = SECRETS["GitHub, classic"]
    say(f"fetching https://{secret}@host/x")
    with pytest.raises(SystemExit), reported_errors():
        raise ConfigError(f"no answer with token={secret}")
    record(
        RunEnd(
            pipeline="p", run="r", state="FAILED", parameters={"host": f"http://me:{secret}@h", "auth": "z"}
        ),
        tmp_path / "record.json",
    )
    written = (tmp_path / "record.json").read_text()
    assert secret not in capsys.readouterr().err + written
    assert read_json(tmp_path / "record.json")["parameters"] == {"host": "http://***@h", "auth": HIDDEN}


def test_commands_hide_them_in_errors_and_results(capsys, monkeypatch) -> None:
    secret = SECRETS["AWS"]
    assert cli.main(["metrics", f"https://me:{secret}@host/t.parquet"]) == 2
    with pytest.raises(SystemExit):
        cli.main(["metrics", "t.parquet", f"--hf-tokn={secret}"])
    monkeypatch.setattr("calib_core.commands.champion._show", lambda folder: {"model": f"s3://{secret}@b/m"})
    assert cli.main(["champion", "show", "folder", "--json"]) == 0
    out, err = capsys.readouterr()
    assert secret not in out + err
    assert json.loads(out) == {"model": "s3://***@b/m"}


def test_report_and_data_record_hide_them_in_parameters(tmp_path) -> None:
    secret = SECRETS["GitLab"]
    (tmp_path / "q.jsonl").write_text(
        "\n".join(
            json.dumps({"question": f"What is {i}?", "choices": ["a", "b"], "answer": 0}) for i in range(60)
        )
    )
    config = PrepareConfig(questions=str(tmp_path / "q.jsonl"), data_snapshot=secret)
    prepare(config, tmp_path / "data")
    assert secret not in (tmp_path / "data" / "data.json").read_text()
    from calib_core.report.html import _appendix

    data = ReportData(
        title="", summary={}, before=None, regime={}, parameters={"token": "x"}, versions={}, fingerprints={}
    )
    assert _appendix(data)[0] == ("Parameters", [("token", HIDDEN)])


# Data in messages


def test_values_and_messages_have_a_limit() -> None:
    value, many = "v" * 500, "\n".join(f"row {i}, field 'answer': 'w{i}' is no option" for i in range(900))
    assert shown_message(f"field 'answer': {value!r} is no option") == (
        f"field 'answer': '{'v' * 77}...' is no option"
    )
    text = shown_message(many)
    assert len(text) == MESSAGE_CHARACTERS
    assert text.endswith("characters more)")
    assert shown_message("it isn't there, doesn't it") == "it isn't there, doesn't it"


def test_with_quiet_data_messages_quote_nothing_but_names(monkeypatch) -> None:
    message = "q.jsonl: row 3, field 'answer': 'Jane Roe' isn't one of \"A\", 'B'; column 'x'"
    with quiet_data(False):
        assert "Jane Roe" in shown_message(message)
    with quiet_data(True):
        assert shown_message(message) == (
            "q.jsonl: row 3, field 'answer': <8 characters> isn't one of <1 characters>, <1 characters>; "
            "column 'x'"
        )
    assert "Jane Roe" in shown_message(message)
    monkeypatch.setenv("CALIB_QUIET_DATA", "1")
    with quiet_data(True):
        pass
    assert "Jane Roe" not in shown_message(DataFormatError(message))


PERSON = "PATIENTNAME"
BAD_ROWS = {
    "answer": {"question": "q", "choices": ["a", "b"], "answer": PERSON},
    "repeated option": {"question": "q", "choices": [PERSON, PERSON], "answer": 0},
    "contradiction": {"question": f"{PERSON} 0?", "choices": ["a", "b"], "answer": 1},
    "no list": {"question": "q", "choices": PERSON, "answer": 0},
    "id": {"id": PERSON, "question": "other", "choices": ["a", "b"], "answer": 0},
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_quiet_data_keeps_questions_out_of_all_that_a_command_says(name, tmp_path, capsys) -> None:
    rows = [
        {
            "id": PERSON if i == 3 else f"i{i}",
            "question": f"{PERSON} {i}?",
            "choices": ["a", "b"],
            "answer": 0,
        }
        for i in range(40)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, [*rows, BAD_ROWS[name]])))
    given = ["prepare", "--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "data")]
    assert cli.main([*given, "--quiet-data"]) == 2
    quiet = capsys.readouterr().err
    assert "line 41" in quiet or "2 of 41 rows" in quiet
    assert PERSON not in quiet
    # Rows that are left out are counted, and nothing of them is told, with or without it.
    assert cli.main([*given, "--on-bad-row", "drop"]) == 0
    assert PERSON not in capsys.readouterr().err
