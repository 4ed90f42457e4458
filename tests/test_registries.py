"""Model registries: entries with figures, made once, through the real clients against loopback servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain import whole_summary
from registry_standin import Answer, KubeflowRegistry, serving

from calib_components.register_model.registries import RegisterConfig, register
from calib_core.errors import ConfigError
from calib_pipelines.commands import main as cli

MODEL = "gs://bucket/champion/runs/0a/model"


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


@pytest.fixture
def summary(tmp_path) -> Path:
    after = {"accuracy": 0.7, "mean_confidence": 0.72, "conf_ece": 0.03, "cw_ece": 0.02}
    figures = {"n": 90, **{name: interval(value) for name, value in after.items()}}
    result = whole_summary(regime="calibratable", branch="cft", after=figures)
    (tmp_path / "summary.json").write_text(json.dumps(result))
    return tmp_path


@pytest.fixture
def kubeflow() -> Iterator[tuple[KubeflowRegistry, str]]:
    pytest.importorskip("model_registry", reason="needs kubeflow[hub]")
    registry = KubeflowRegistry()
    with serving(registry.answer) as address:
        yield registry, address


@pytest.mark.filterwarnings("ignore:User access token is missing")
def test_kubeflows_registry_gets_a_version_with_figures_once(kubeflow, summary):
    registry, address = kubeflow
    config = RegisterConfig(model_registry=address, model_name="geography")
    for _ in range(2):
        assert register(config, summary=summary, model=MODEL, number=3) == "geography version 3"
    assert [model["name"] for model in registry.models] == ["geography"]
    (version,) = registry.versions
    assert version["name"] == "3"
    assert "conf_ece 0.03" in version["description"]
    properties = version["customProperties"]
    assert properties["conf_ece"]["double_value"] == 0.03
    assert properties["conf_ece_high"]["double_value"] == 0.05
    assert properties["branch"]["string_value"] == "cft"
    (artifact,) = registry.artifacts
    assert artifact["uri"] == MODEL
    register(config, summary=summary, model=MODEL + "2", number=4)
    assert [model["name"] for model in registry.models] == ["geography"]
    assert [version["name"] for version in registry.versions] == ["3", "4"]


@pytest.mark.filterwarnings("ignore:User access token is missing")
def test_kubeflows_registry_keeps_another_model_of_that_number(kubeflow, summary):
    registry, address = kubeflow
    config = RegisterConfig(model_registry=address)
    register(config, summary=summary, model=MODEL, number=3)
    with pytest.raises(ConfigError, match="is another model"):
        register(config, summary=summary, model="gs://elsewhere", number=3)
    assert len(registry.versions) == 1


@pytest.mark.filterwarnings("ignore:User access token is missing")
@pytest.mark.parametrize("status", [401, 403, 500])
def test_kubeflows_registry_that_refuses_is_named(kubeflow, summary, status, capsys):
    registry, address = kubeflow
    registry.status = status
    given = ["register", "--summary", str(summary), "--model", MODEL, "--number", "3"]
    assert cli.main([*given, "--model-registry", address]) == 2
    shown = capsys.readouterr().err
    assert f"{address}: the registry did not take calibrated" in shown
    assert "The model is champion nevertheless" in shown


class VertexRegistry:
    """Vertex AI's model service over HTTP, as far as uploads and their versions need it."""

    def __init__(self) -> None:
        self.versions: list[dict[str, Any]] = []
        self.status = 200

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        parent = "projects/my-project/locations/europe-west4"
        if self.status != 200:
            return self.status, {
                "error": {"code": self.status, "message": "Permission denied", "status": "X"}
            }
        rest = re.sub(r"^/v1(beta1)?/", "", path)
        if (method, rest) == ("GET", f"{parent}/models"):
            name = re.search(r'display_name="(.*?)"', query["filter"])[1]
            return 200, {"models": [v for v in self.versions if v["displayName"] == name][-1:]}
        if (method, rest) == ("POST", f"{parent}/models:upload"):
            model = body["model"]
            name = (body.get("parentModel") or f"{parent}/models/77").partition("@")[0]
            number = str(len(self.versions) + 1)
            self.versions.append({**model, "name": name, "versionId": number, "etag": "e"})
            response = {
                "@type": "type.googleapis.com/google.cloud.aiplatform.v1.UploadModelResponse",
                "model": name,
                "modelVersionId": number,
            }
            return 200, {
                "name": f"{parent}/models/77/operations/{number}",
                "done": True,
                "response": response,
            }
        if method == "GET" and rest.endswith("models/77:listVersions"):
            return 200, {"models": self.versions}
        if method == "GET" and "/models/77" in rest:
            wanted = rest.partition("@")[2] or self.versions[-1]["versionId"]
            return 200, next(v for v in self.versions if v["versionId"] == wanted)
        raise AssertionError(f"{method} {path} is no part of the interface")


@pytest.fixture
def vertex(monkeypatch) -> Iterator[VertexRegistry]:
    aiplatform = pytest.importorskip("google.cloud.aiplatform")
    from google.auth.credentials import AnonymousCredentials

    registry = VertexRegistry()
    with serving(registry.answer) as address:
        before = dict(vars(aiplatform.initializer.global_config))
        aiplatform.init(
            project="my-project",
            location="europe-west4",
            api_endpoint=address,
            api_transport="rest",
            credentials=AnonymousCredentials(),
        )
        yield registry
        vars(aiplatform.initializer.global_config).update(before)


VERTEX = RegisterConfig(
    model_registry="vertex://my-project/europe-west4", model_name="geography", serving_image="example/vllm:1"
)


@pytest.mark.slow
def test_vertex_gets_a_version_with_figures_once(vertex, summary):
    entry = "projects/my-project/locations/europe-west4/models/77"
    for _ in range(2):
        assert register(VERTEX, summary=summary, model=MODEL, number=3) == f"{entry}@1"
    (version,) = vertex.versions
    assert version["artifactUri"] == MODEL
    assert version["containerSpec"]["imageUri"] == "example/vllm:1"
    assert set(version["versionAliases"]) == {"calib-3", "default"}
    assert "conf_ece 0.03" in version["versionDescription"]
    assert version["labels"] == {"branch": "cft", "made-by": "calib-core"}
    assert register(VERTEX, summary=summary, model=MODEL + "2", number=4) == f"{entry}@2"
    with pytest.raises(ConfigError, match="is another model"):
        register(VERTEX, summary=summary, model=MODEL, number=4)
    vertex.status = 403
    with pytest.raises(ConfigError, match=r"did not take geography \(.*Permission denied"):
        register(VERTEX, summary=summary, model=MODEL, number=5)


def test_vertex_takes_models_in_buckets_only(summary):
    with pytest.raises(ConfigError, match="gs:// only"):
        register(VERTEX, summary=summary, model="/data/model", number=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_registry": "ftp://x"}, "`model_registry` is 'ftp://x'; give `https://HOST"),
        ({"model_registry": "vertex://my-project"}, "as in vertex://my-project/europe-west4"),
        ({"model_registry": "vertex://my-project/europe-west4"}, "`serving_image` is ''"),
        ({"model_registry": "https://registry", "model_name": ""}, "`model_name` is ''"),
    ],
)
def test_unusable_parameters_say_what_to_give(changes, message):
    with pytest.raises(ConfigError, match=message):
        RegisterConfig(**changes)
