"""A stand-in for the Kubernetes API on 127.0.0.1, over TLS, with Kubeflow Trainer behind it, and faults.

It answers what a fine-tuning task asks for, to accounts that it knows by their tokens, and only what RBAC
allows them: the rules are read from the manifests in `deploy/`. `trainer_standin` says what becomes of a
`TrainJob`, and where that falls short of the real thing. What this file leaves out or makes simpler:

* Authentication is by static tokens; the real server takes bound tokens, which expire.
* RBAC is what `rbac` says. Every account may also ask for `/version`, as the real `system:public-info-viewer`
  lets it.
* Objects are removed at once, or after as many looks as `lingering` says; there are no finalizers. Dependents
  go at once with their last owner (`remove_pod`), where the real garbage collector takes some seconds.
* A job's state moves on by looks (`states`), its pods' by the job's; nothing is scheduled or run.
* Of label selectors only `key=value`; no watch, no paging, no resource versions.
* A log that is followed ends; the real one goes on until its container ends.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from loopback import Handler, certificate, http_server, loopback
from rbac import account, asked_for
from trainer_standin import RUNTIME, RefusedError, admitted, node_pods

NAMESPACE = "team"
ACCOUNT = "default-editor"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{TRAINER}/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "restore-calibration-x7k2p-12345", "namespace": NAMESPACE, "uid": "0b5c-1"},
    "spec": {
        "serviceAccountName": ACCOUNT,
        "imagePullSecrets": [{"name": "registry"}],
        "containers": [
            {"name": "wait", "image": "argoexec"},
            {
                "name": "main",
                "image": "calib:1",
                "env": [
                    {"name": "KFP_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                    {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                    {"name": "AWS_ENDPOINT_URL_S3", "value": "http://minio:9000"},
                    {"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::1:role/task"},
                    {"name": "ARGO_CONTAINER_NAME", "value": "main"},
                    {"name": "KFP_RETRY_INDEX", "value": "0"},
                ],
            },
        ],
    },
}
"""The pod of a fine-tuning task, as far as it matters here."""


class Cluster:
    """The cluster's state, what was asked of it, and the faults that it is to show.

    Attributes:
        trainer: version of Kubeflow Trainer.
        accounts: who may ask, by token.
        objects: training runtimes, config maps and secrets by their path.
        jobs: the TrainJobs that there are, by name.
        pods: pods other than the jobs', by name.
        created: every job that was made, as it was kept.
        requests: every request, as `POST /path`.
        allowed: verb, group and resource of every request that RBAC let through.
        states: states that a job goes through, one at each look; the last one stays.
        reason: and message of a job that failed.
        lingering: looks for which a removed job is still there.
        faults: answers in place of the right one, by `METHOD /path`, each used once: a status, or -1 for a
            connection that is closed without an answer.
        log: of the first node.
        waiting: why a container does not start, as reason and message.
    """

    def __init__(self, trainer: str = "2.3") -> None:
        self.trainer = trainer
        self.accounts = {"not-a-secret": account(NAMESPACE, ACCOUNT)}
        self.objects: dict[str, Any] = {f"{TRAINER}/clustertrainingruntimes/torch-distributed": RUNTIME}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {POD["metadata"]["name"]: POD}
        self.looks: dict[str, int] = {}
        self.created: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.allowed: set[tuple[str, str, str]] = set()
        self.states = ["Created", "Running", "Complete"]
        self.reason = ("FailedJobs", "jobset failed due to one or more job failures")
        self.lingering = 0
        self.faults: dict[str, list[int]] = {}
        self.log = "epoch 1.00: held-out accuracy 0.500\n"
        self.waiting: tuple[str, str] | None = None

    def count(self, request: str) -> int:
        """How often something was asked."""
        return sum(seen.startswith(request) for seen in self.requests)

    def add(self, body: dict[str, Any]) -> None:
        """Put a job there, as if it had been created."""
        name = body["metadata"]["name"]
        metadata = {**body["metadata"], "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.jobs[name] = {**body, "metadata": metadata}
        self.looks[name] = 0

    def remove_pod(self, name: str) -> None:
        """Remove a pod, and what it is the last owner of."""
        del self.pods[name]
        uids = {pod["metadata"]["uid"] for pod in self.pods.values()}
        for job in list(self.jobs.values()):
            owners = job["metadata"].get("ownerReferences", [])
            if owners and not any(owner["uid"] in uids for owner in owners):
                del self.jobs[job["metadata"]["name"]]

    def nodes(self, job: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """The pods of the nodes of a job; of the one that was made, if left out."""
        made = job or self.created[-1]
        return node_pods(made, self._runtime(made["spec"]["runtimeRef"]))

    def answer(  # noqa: PLR0911 - one for each kind of thing
        self, method: str, path: str, query: dict[str, str], body: Any
    ) -> tuple[int, Any]:
        """Status and content of an answer."""
        if method == "POST" and path == JOBS:
            return self._create(body, dry_run=query.get("dryRun") == "All")
        if path.startswith(f"{JOBS}/"):
            return self._job(method, path.rpartition("/")[2], body)
        if path == PODS:
            return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": self._pods(query)}
        name, _, part = path.removeprefix(f"{PODS}/").partition("/")
        if path.startswith(f"{PODS}/") and part == "log":
            return 200, self.log
        if path.startswith(f"{PODS}/") and name in self.pods:
            return 200, self.pods[name]
        version = ("major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion")
        if path == "/version/":
            return 200, dict.fromkeys((*version, "compiler", "platform"), "1")
        if path in self.objects:
            return 200, self.objects[path]
        if path.startswith(TRAINER) and not self.trainer:
            return 404, {"message": "the server could not find the requested resource"}
        return 404, {"message": f'"{path.rpartition("/")[2]}" not found'}

    def _runtime(self, ref: dict[str, Any]) -> Any:
        plural = ref["kind"].lower() + "s"
        namespace = f"/namespaces/{NAMESPACE}" if plural == "trainingruntimes" else ""
        return self.objects[f"{TRAINER}{namespace}/{plural}/{ref['name']}"]

    def _create(self, body: Any, *, dry_run: bool) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        try:
            kept = admitted(body, self.trainer, self._runtime(body["spec"]["runtimeRef"]))
        except RefusedError as error:
            return error.status, {"message": str(error)}
        if name in self.jobs:
            return 409, {"message": f'trainjobs.trainer.kubeflow.org "{name}" already exists'}
        if dry_run:
            return 201, kept
        self.add(kept)
        self.created.append(kept)
        return 201, self.jobs[name]

    def _job(self, method: str, name: str, body: Any) -> tuple[int, Any]:
        job = self.jobs.get(name)
        if job is None:
            return 404, {"message": f'trainjobs.trainer.kubeflow.org "{name}" not found'}
        if method == "PATCH":
            job["metadata"] |= body["metadata"]
        if method == "DELETE":
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
        elif "deletionTimestamp" in job["metadata"]:
            self.lingering -= 1
        if "deletionTimestamp" in job["metadata"] and self.lingering <= 0:
            del self.jobs[name]
            self.lingering = 0
        if method == "DELETE":
            return 200, {"kind": "Status", "status": "Success"}
        state = self._state(name)
        self.looks[name] += 1
        if state in ("Complete", "Failed"):
            reason, message = self.reason
            condition = {"type": state, "status": "True", "reason": reason, "message": message}
            job = {**job, "status": {"conditions": [condition]}}
        return 200, job

    def _state(self, name: str) -> str:
        return self.states[min(self.looks[name], len(self.states) - 1)]

    def _pods(self, query: dict[str, str]) -> list[dict[str, Any]]:
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        pods = list(self.pods.values())
        for name, job in self.jobs.items():
            # The job was looked at just before its pods are.
            state = self.states[min(max(self.looks[name] - 1, 0), len(self.states) - 1)]
            status: dict[str, Any] = {"phase": "Pending" if state == "Created" else "Running"}
            if self.waiting:
                reason, message = self.waiting
                waiting = {"state": {"waiting": {"reason": reason, "message": message}}}
                there = {"name": "node", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
                status["containerStatuses"] = [{**there, **waiting}]
            pods += [{**pod, "status": status} for pod in self.nodes(job)]
        return [pod for pod in pods if wanted.items() <= pod["metadata"].get("labels", {}).items()]


def _authorized(cluster: Cluster, method: str, path: str, token: str) -> tuple[int, Any] | None:
    """The refusal of a request; None if it may go on."""
    known = cluster.accounts.get(token)
    if known is None:
        return 401, {"message": "Unauthorized"}
    asked = asked_for(method, path)
    if asked is None or known.may(asked):
        if asked:
            cluster.allowed.add((asked.verb, asked.group, asked.resource))
        return None
    where = f' in the namespace "{asked.namespace}"' if asked.namespace else " at the cluster scope"
    resource = asked.resource.partition("/")[0]
    full = f"{resource}.{asked.group}" if asked.group else resource
    return 403, {
        "message": f'{full} "{asked.name}" is forbidden: User "{known.user}" cannot {asked.verb} resource '
        f'"{asked.resource}" in API group "{asked.group}"{where}'
    }


@dataclass(frozen=True)
class Served:
    """Where a cluster is served."""

    port: int
    certificate: Path
    folder: Path

    def enter_as_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process find the cluster by a kubeconfig, as on somebody's own machine."""
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        kubeconfig = write_kubeconfig(self.folder / "kubeconfig", self.port, self.certificate)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    def enter_as_pod(self, monkeypatch: pytest.MonkeyPatch, pod: dict[str, Any] = POD) -> None:
        """Let this process find itself in a pod of the cluster, as the launcher of KFP starts it."""
        for name, content in (("token", "not-a-secret"), ("namespace", NAMESPACE)):
            (self.folder / name).write_text(content)
        monkeypatch.delenv("KUBECONFIG", raising=False)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(self.port))
        monkeypatch.setenv("KFP_POD_NAME", pod["metadata"]["name"])
        module = "kubernetes.config.incluster_config"
        monkeypatch.setattr(f"{module}.SERVICE_TOKEN_FILENAME", str(self.folder / "token"))
        monkeypatch.setattr(f"{module}.SERVICE_CERT_FILENAME", str(self.certificate))
        monkeypatch.setattr("calib_components.nodes.trainjob_api.NAMESPACE_FILE", self.folder / "namespace")
        monkeypatch.setattr("calib_core.storage.s3_session.POD", self.folder)


@functools.cache
def _localhost() -> tuple[bytes, bytes]:
    return certificate("localhost", rsa.generate_private_key(public_exponent=65537, key_size=2048))


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[Served]:
    """Serve a cluster on a free port of this machine."""

    class Serving(Handler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            split = urlsplit(self.path)
            request = f"{self.command} {split.path}"
            cluster.requests.append(request)
            body = self.json_body()
            fault = next((faults for at, faults in cluster.faults.items() if request.startswith(at)), [])
            status = fault.pop(0) if fault else 0
            if status < 0:
                self.close_connection = True
                return
            token = (self.headers.get("Authorization") or "").rpartition(" ")[2]
            query = {key: values[0] for key, values in parse_qs(split.query).items()}
            if status:
                content: Any = {"message": f"{request} is refused for a test", "code": status}
            elif refusal := _authorized(cluster, self.command, split.path, token):
                status, content = refusal
            elif (
                self.command == "PATCH" and self.headers["Content-Type"] != "application/merge-patch+json"
            ):  # custom resources know no strategic merge
                status, content = 415, {"message": "the body of the request was in an unknown format"}
            else:
                status, content = cluster.answer(self.command, split.path, query, body)
            self.respond(status, content)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    pem_key, pem = _localhost()
    for name, content in (("key.pem", pem_key), ("cert.pem", pem)):
        (folder / name).write_bytes(content)
    with loopback(http_server(Serving), tls=(folder / "cert.pem", folder / "key.pem")) as server:
        yield Served(server.server_port, folder / "cert.pem", folder)


def write_kubeconfig(path: Path, port: int, authority: Path | None = None) -> Path:
    """A kubeconfig for a server on this machine."""
    trusted = {"certificate-authority": str(authority)} if authority else {}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": f"https://localhost:{port}", **trusted}}],
        "users": [{"name": "me", "user": {"token": "not-a-secret"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
        "current-context": "here",
    }
    path.write_text(json.dumps(config))
    return path
