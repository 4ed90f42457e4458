"""A stand-in for Kubeflow Pipelines' API server on loopback: its v2beta1 REST protocol, kept in memory.

Every body is held to the published models of `kfp_server_api`: what a request or an answer holds must survive
being read into its model and written out again, so neither side can use a field that the protocol lacks.
Packages are read strictly, parameters checked, and nodes of runs shown as in kubeflow/pipelines 2.17.0
(4a3592c); see `kfp_rules`.

What differs from the real server:

* Packages are read by the newest messages, whatever `tag_name` says, and not compiled for Argo; so components
  that are missing, or workflows that Argo refuses, pass.
* Runs don't run: their states, and those of their tasks, are what `plan` and `tasks` say.
* Lists are filtered by equal names and never sorted. There are no quotas, tags, plugins or artifacts.
* Signing in is a token's equality. Roles, the gateway and its login page come in as faults.
"""

from __future__ import annotations

import contextlib
import email.parser
import email.policy
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
from kfp_rules import InvalidInputError, check_inputs, nodes, parsed_package
from loopback import Handler, http_server, loopback

Answer = tuple[int, Any]
Fault = Callable[["Request", Callable[[], Answer]], Answer | None]
MODELS = kfp_server_api.ApiClient()
LISTS = {  # fields of lists, as the protocol spells them, and the middle of their models' names
    "experiments": "Experiments",
    "pipelines": "Pipelines",
    "pipeline_versions": "PipelineVersions",
    "runs": "Runs",
    "recurringRuns": "RecurringRuns",
}
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


class Request(SimpleNamespace):
    """One request: `method`, `path`, `query` (last values), `body`, `token` and `host`."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def checked(content: Any, model: str) -> dict[str, Any]:
    """`content` read into a model and written out again; it must stay the same."""
    read = MODELS.deserialize(SimpleNamespace(data=json.dumps(content)), model)
    written = MODELS.sanitize_for_serialization(read)
    assert written == content, f"{model}: {content!r} became {written!r}"
    return dict(content)


class KfpServer:
    """The server's state, faults to inject, and all requests that it got.

    Attributes:
        requests: In their order.
        token: What `Authorization: Bearer` must hold; None for a server without sign-in.
        multi_user: Whether namespaces are needed.
        faults: Functions of a request and of what would answer it; the first that returns an answer wins.
        plan: States that a run goes through, one at each look; the last one stays.
        tasks: Names and states of a run's tasks; the nodes that Argo has around them are shown too.
        tag_name: What the server says of its version.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.token: str | None = None
        self.multi_user = False
        self.faults: list[Fault] = []
        self.plan = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.tasks: list[tuple[str, str]] = []
        self.tag_name = "2.17.0"
        self.page_size = 2  # small, so that clients must read on
        self.stores: dict[str, dict[str, dict[str, Any]]] = {
            name: {} for name in ("experiments", "pipelines", "versions", "runs", "recurringruns")
        }
        self.packages: dict[str, Any] = {}
        self._ids = itertools.count(1)
        self._looks: dict[str, int] = {}
        self._lock = threading.RLock()
        self.url = ""

    def named(self, store: str, name: str) -> list[dict[str, Any]]:
        """Entries of a display name."""
        return [one for one in self.stores[store].values() if one["display_name"] == name]

    def sent(self, method: str, pattern: str) -> list[Request]:
        """Requests of a method whose path fits a pattern."""
        return [one for one in self.requests if one.method == method and re.search(pattern, one.path)]

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        if self.token is not None and request.token != self.token:
            return 401, error(16, "Request header error: there is no valid user identity")

        def usual() -> Answer:
            with self._lock:
                return self._route(request)

        for fault in self.faults:
            if (answer := fault(request, usual)) is not None:
                return answer
        return usual()

    def _route(self, request: Request) -> Answer:
        for method, pattern, handler in ROUTES:
            match = re.fullmatch("/apis/v2beta1" + pattern, request.path)
            if method == request.method and match:
                return handler(self, request, *match.groups())
        return 404, error(5, f"no such path {request.path}")

    def _new(self, store: str, id_field: str, content: Mapping[str, Any], model: str) -> Answer:
        number = next(self._ids)
        made = {
            **content,
            id_field: f"{store}-{number}",
            "created_at": (STARTED + timedelta(seconds=number)).isoformat(),
        }
        self.stores[store][made[id_field]] = made
        return 200, checked(made, model)

    def _listed(self, request: Request, store: str, items: str, **wanted: str) -> Answer:
        found = [
            one
            for one in self.stores[store].values()
            if all(one.get(field) == value for field, value in wanted.items() if value)
        ]
        if text := request.query.get("filter"):
            for predicate in json.loads(text)["predicates"]:
                assert predicate["operation"] == "EQUALS", predicate
                found = [one for one in found if one[predicate["key"]] == predicate["stringValue"]]
        first = int(request.query.get("page_token") or 0)
        size = min(self.page_size, int(request.query["page_size"]))
        page = [{name: value for name, value in one.items() if name[0] != "_"} for one in found]
        answer: dict[str, Any] = {items: page[first : first + size], "total_size": len(found)}
        if first + size < len(found):
            answer["next_page_token"] = str(first + size)
        return 200, checked(answer, f"V2beta1List{LISTS[items]}Response")

    def health(self, request: Request) -> Answer:
        answer = checked(
            {"multi_user": self.multi_user, "pipeline_store": "database"}, "V2beta1GetHealthzResponse"
        )
        return 200, {**answer, "commit_sha": "unknown", "tag_name": self.tag_name}  # main.go:465-515

    def list_experiments(self, request: Request) -> Answer:
        return self._listed(request, "experiments", "experiments", **self._place(request))

    def create_experiment(self, request: Request) -> Answer:
        body = checked(request.body, "V2beta1Experiment")
        if self._taken("experiments", body):
            return 409, error(6, f"an experiment named {body['display_name']} already exists")
        return self._new(
            "experiments", "experiment_id", {**body, "storage_state": "AVAILABLE"}, "V2beta1Experiment"
        )

    def list_pipelines(self, request: Request) -> Answer:
        return self._listed(request, "pipelines", "pipelines", **self._place(request))

    def create_pipeline(self, request: Request) -> Answer:
        body = checked(request.body, "V2beta1Pipeline")
        if self._taken("pipelines", body):
            return 409, error(6, f"the pipeline name {body['display_name']} already exists")
        return self._new("pipelines", "pipeline_id", body, "V2beta1Pipeline")

    def list_versions(self, request: Request, pipeline_id: str) -> Answer:
        return self._listed(request, "versions", "pipeline_versions", pipeline_id=pipeline_id)

    def upload_version(self, request: Request) -> Answer:
        name, pipeline_id = request.query["name"], request.query["pipelineid"]
        if pipeline_id not in self.stores["pipelines"]:
            return 404, error(5, f"pipeline {pipeline_id} not found")
        if any(one["pipeline_id"] == pipeline_id for one in self.named("versions", name)):
            return 409, error(6, f"the version name {name} already exists")
        try:
            pipeline, platform = parsed_package(request.body["uploadfile"])
        except InvalidInputError as wrong:  # pipeline_upload_server.go:343-347
            return 400, {"error_message": str(wrong), "error_details": str(wrong)}
        self.packages[name] = [pipeline, *([platform] if platform else [])]
        spec = {"pipeline_spec": pipeline, "platform_spec": platform} if platform else pipeline
        content = {"display_name": name, "pipeline_id": pipeline_id, "pipeline_spec": spec}
        return self._new("versions", "pipeline_version_id", content, "V2beta1PipelineVersion")

    def list_runs(self, request: Request) -> Answer:
        return self._listed(request, "runs", "runs", **self._place(request))

    def create_run(self, request: Request) -> Answer:
        body = checked(request.body, "V2beta1Run")
        if refused := self._unknown_references(body):
            return refused
        namespace = self.stores["experiments"][body["experiment_id"]].get("namespace")
        answer = self._new("runs", "run_id", {**body, "state": self.plan[0]}, "V2beta1Run")
        if namespace:  # runs have the namespace of their experiment, which their model doesn't show
            self.stores["runs"][answer[1]["run_id"]]["_namespace"] = namespace
        return answer

    def get_run(self, request: Request, run_id: str) -> Answer:
        run = self.stores["runs"].get(run_id)
        if run is None:
            return 404, error(5, f"run {run_id} not found")
        look = self._looks[run_id] = self._looks.get(run_id, 0) + 1
        run["state"] = self.plan[min(look, len(self.plan) - 1)]
        if (
            self.tasks
        ):  # no errors: toApiPipelineTaskDetail and toApiRun have none for tasks and runs that failed
            run["run_details"] = {
                "task_details": [
                    {
                        "run_id": run_id,
                        "display_name": name,
                        "state": state,
                        "child_tasks": [{"pod_name": child}],
                    }
                    for name, state, child in nodes(self._pipeline_of(run), self.tasks, run["state"])
                ]
            }
        shown = {name: value for name, value in run.items() if name != "_namespace"}
        return 200, checked(shown, "V2beta1Run")

    def _pipeline_of(self, run: Mapping[str, Any]) -> str:
        version = self.stores["versions"][run["pipeline_version_reference"]["pipeline_version_id"]]
        return str(self.packages[version["display_name"]][0]["pipelineInfo"]["name"])

    def list_recurring(self, request: Request) -> Answer:
        return self._listed(request, "recurringruns", "recurringRuns", **self._place(request))

    def create_recurring(self, request: Request) -> Answer:
        body = checked(request.body, "V2beta1RecurringRun")
        if refused := self._unknown_references(body):
            return refused
        cron = body["trigger"]["cron_schedule"]["cron"]
        if len(cron.split()) != 6:
            return 400, error(3, f"Invalid input error: Schedule cron is not a valid cron: {cron}")
        status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body["mode"]]
        assert "namespace" not in body, "the server takes it from the experiment"
        content = {**body, "status": status}
        if namespace := self.stores["experiments"][body["experiment_id"]].get("namespace"):
            content["namespace"] = namespace
        return self._new("recurringruns", "recurring_run_id", content, "V2beta1RecurringRun")

    def switch_recurring(self, request: Request, recurring_id: str, action: str) -> Answer:
        one = self.stores["recurringruns"].get(recurring_id)
        if one is None:
            return 404, error(5, f"recurring run {recurring_id} not found")
        one["status"], one["mode"] = f"{action.upper()}D", action.upper()
        return 200, {}

    def delete_recurring(self, request: Request, recurring_id: str) -> Answer:
        if self.stores["recurringruns"].pop(recurring_id, None) is None:
            return 404, error(5, f"recurring run {recurring_id} not found")
        return 200, {}

    def _taken(self, store: str, body: Mapping[str, Any]) -> bool:
        """Whether the name is taken in the namespace."""
        there = self.named(store, body["display_name"])
        return any(one.get("namespace") == body.get("namespace") for one in there)

    def _place(self, request: Request) -> dict[str, str]:
        if not self.multi_user:
            return {}
        assert request.query.get("namespace"), "in multi-user mode a namespace is needed"
        field = "_namespace" if request.path.endswith("/runs") else "namespace"
        return {field: request.query["namespace"]}

    def _unknown_references(self, body: Mapping[str, Any]) -> Answer | None:
        if body["experiment_id"] not in self.stores["experiments"]:
            return 404, error(5, f"experiment {body['experiment_id']} not found")
        version = self.stores["versions"].get(body["pipeline_version_reference"]["pipeline_version_id"])
        if version is None:
            return 404, error(5, "pipeline version not found")
        try:
            check_inputs(
                self.packages[version["display_name"]][0], body["runtime_config"].get("parameters", {})
            )
        except InvalidInputError as wrong:
            return 400, error(3, f"Failed to create a new run: Invalid input error: {wrong}")
        return None


ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/healthz", KfpServer.health),
    ("GET", "/experiments", KfpServer.list_experiments),
    ("POST", "/experiments", KfpServer.create_experiment),
    ("GET", "/pipelines", KfpServer.list_pipelines),
    ("POST", "/pipelines", KfpServer.create_pipeline),
    ("GET", r"/pipelines/([\w-]+)/versions", KfpServer.list_versions),
    ("POST", "/pipelines/upload_version", KfpServer.upload_version),
    ("GET", "/runs", KfpServer.list_runs),
    ("POST", "/runs", KfpServer.create_run),
    ("GET", r"/runs/([\w-]+)", KfpServer.get_run),
    ("GET", "/recurringruns", KfpServer.list_recurring),
    ("POST", "/recurringruns", KfpServer.create_recurring),
    ("POST", r"/recurringruns/([\w-]+):(enable|disable)", KfpServer.switch_recurring),
    ("DELETE", r"/recurringruns/([\w-]+)", KfpServer.delete_recurring),
]


def error(code: int, message: str) -> dict[str, Any]:
    """An error's body, as KFP's gateway writes it."""
    return {"error": message, "code": code, "message": message, "details": []}


def fault(method: str, pattern: str, answer: Answer, *, times: int = 1, after: bool = False) -> Fault:
    """A fault for the first `times` requests that fit: `answer` in place of what was asked, or `after` it."""
    left = itertools.count()

    def inject(request: Request, usual: Callable[[], Answer]) -> Answer | None:
        if request.method != method or not re.search(pattern, request.path) or next(left) >= times:
            return None
        if after:
            assert usual()[0] == 200
        return answer

    return inject


@contextlib.contextmanager
def serving(server: KfpServer) -> Iterator[KfpServer]:
    """Serve on a free port of 127.0.0.1 until the block ends."""

    class Serving(Handler):
        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            content = self.body()
            kind = self.headers.get("Content-Type") or ""
            body: Any = json.loads(content) if content and "json" in kind else None
            if kind.startswith("multipart/form-data"):
                body = _parts(kind, content)
            scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
            status, answer = server.answer(
                Request(
                    method=self.command,
                    path=parts.path,
                    query={name: values[-1] for name, values in parse_qs(parts.query).items()},
                    body=body,
                    token=token if scheme == "Bearer" else None,
                    host=self.headers["Host"],
                )
            )
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.respond(status, answer, text_type="text/html")

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - names of http.server

    with loopback(http_server(Serving)) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        yield server


def _parts(kind: str, content: bytes) -> dict[str, str]:
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content
    )
    return {
        str(part.get_param("name", header="content-disposition")): part.get_content()
        if part.get_content_maintype() == "text"
        else part.get_payload(decode=True).decode()
        for part in message.iter_parts()
    }
