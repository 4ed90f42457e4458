"""Model registries on loopback: a server of JSON answers, and Kubeflow's registry behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlparse

from loopback import Handler, http_server, loopback

Answer = tuple[int, Any]


@contextmanager
def serving(answer: Callable[[str, str, dict[str, str], Any], Answer]) -> Iterator[str]:
    """A server on 127.0.0.1 that answers (method, path, query, body) with (status, JSON)."""

    class Serving(Handler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            url = urlparse(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            self.respond(*answer(self.command, url.path, query, self.json_body()))

        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815 - names that http.server asks for

    with loopback(http_server(Serving)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


class KubeflowRegistry:
    """Kubeflow's Model Registry, as far as entering a version needs it; bodies are held to its own models."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.status = 200

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:  # noqa: PLR0911
        if self.status != 200:
            return self.status, {"code": str(self.status), "message": "not for you"}
        found = re.fullmatch(r"/api/model_registry/v\w+/(.*)", path)
        assert found, path
        match (method, *found[1].split("/")):
            case ("GET", "registered_models"):
                return 200, listed(self.models)
            case ("GET", "registered_model"):
                return one(self.models, name=query["name"])
            case ("POST", "registered_models"):
                return self._add(self.models, body, "RegisteredModelCreate")
            case ("GET", "registered_models", model, "versions"):
                return 200, listed([v for v in self.versions if v["registeredModelId"] == model])
            case ("GET", "model_version"):
                return one(self.versions, name=query["name"], registeredModelId=query["parentResourceId"])
            case ("POST", "model_versions"):
                return self._add(self.versions, body, "ModelVersionCreate")
            case ("POST", "model_versions", version, "artifacts"):
                return self._add(self.artifacts, {**body, "parent": version}, "ModelArtifact")
            case ("GET", "model_artifact"):
                return one(self.artifacts, parent=query["parentResourceId"])
        raise AssertionError(f"{method} {path} is no part of the interface")

    def _add(self, where: list[dict[str, Any]], body: dict[str, Any], kind: str) -> Answer:
        import mr_openapi.models as published

        module = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
        getattr(getattr(published, module), kind).from_dict(
            {key: value for key, value in body.items() if key != "parent"}
        )
        made = {**body, "id": str(len(where) + 1)}
        where.append(made)
        return 201, {key: value for key, value in made.items() if key != "parent"}


def listed(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"items": items, "nextPageToken": "", "pageSize": 100, "size": len(items)}


def one(items: list[dict[str, Any]], **fields: str) -> Answer:
    found = [item for item in items if all(item[name] == value for name, value in fields.items())]
    if not found:
        return 404, {"code": "404", "message": "not found"}
    return 200, {key: value for key, value in found[0].items() if key != "parent"}
