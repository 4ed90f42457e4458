"""A stand-in for the Kubernetes API on 127.0.0.1: what Kubeflow Trainer's client asks for, and faults.

A `TrainJob` that is created is held to the published models first: a field that they don't know, or a value
of another type, is refused as the real API refuses it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kubeflow_trainer_api import models
from pydantic import ValidationError

NAMESPACE = "team"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{TRAINER}/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"

ANCESTOR = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {
                                "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
                            },
                            "spec": {
                                "template": {"spec": {"containers": [{"name": "node", "image": "torch:1"}]}}
                            },
                        },
                    }
                ]
            }
        },
    },
}


class Cluster:
    """The cluster's state, what was asked of it, and the faults that it is to show.

    Attributes:
        jobs: the TrainJobs that there are, by name.
        requests: every request, as `POST /path`.
        states: states that a job goes through, one at each look; the last one stays.
        faults: answers in place of the right one, by `METHOD /path`, each used once: a status, or -1 for a
            connection that is closed without an answer.
        log: of the first node.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        self.created: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.states = ["Created", "Running", "Complete"]
        self.faults: dict[str, list[int]] = {}
        self.log = "epoch 1.00: held-out accuracy 0.500\n"

    def count(self, request: str) -> int:
        """How often something was asked."""
        return sum(seen.startswith(request) for seen in self.requests)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and content of an answer."""
        if method == "POST" and path == JOBS:
            return self._create(body)
        if path.startswith(JOBS + "/"):
            return self._job(method, path.rpartition("/")[2])
        version = ("major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion")
        things: dict[str, Any] = {
            f"{TRAINER}/clustertrainingruntimes/torch-distributed": RUNTIME,
            PODS: {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": self._pods()},
            f"{PODS}/the-pod/log": self.log,
            "/version/": dict.fromkeys((*version, "compiler", "platform"), "1"),
        }
        if path in things:
            return 200, things[path]
        return 404, {"kind": "Status", "code": 404, "reason": "NotFound", "message": f"{path} not found"}

    def _create(self, body: Any) -> tuple[int, Any]:
        try:
            known = models.TrainerV1alpha1TrainJob.from_dict(body)
        except ValidationError as error:
            return 422, {"message": str(error)}
        if known is None or known.to_dict() != body:
            return 422, {"message": "unknown field"}
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": f'trainjobs "{name}" already exists'}
        self.add(name, body)
        self.created.append(body)
        return 201, self.jobs[name]

    def add(self, name: str, body: dict[str, Any]) -> None:
        """Put a job there, as if it had been created."""
        metadata = {"name": name, "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.jobs[name] = {**body, "metadata": metadata}
        self.looks[name] = 0

    def _job(self, method: str, name: str) -> tuple[int, Any]:
        if name not in self.jobs:
            return 404, {"message": f'trainjobs "{name}" not found'}
        if method == "DELETE":
            del self.jobs[name]
            return 200, {"kind": "Status", "status": "Success"}
        job = dict(self.jobs[name])
        state = self._state(name)
        self.looks[name] += 1
        if state in ("Complete", "Failed"):
            condition = {"type": state, "status": "True", "reason": "Jobs", "message": "m"}
            job["status"] = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:01Z"}]}
        return 200, job

    def _state(self, name: str) -> str:
        return self.states[min(self.looks[name], len(self.states) - 1)]

    def _pods(self) -> list[dict[str, Any]]:
        pods = []
        for name, job in self.jobs.items():
            # The job was looked at just before its pods are.
            state = self.states[min(max(self.looks[name] - 1, 0), len(self.states) - 1)]
            nodes = job["spec"].get("trainer", {}).get("numNodes", 1)
            labels = {"jobset.sigs.k8s.io/replicatedjob-name": "node"}
            pods += [
                {
                    "metadata": {
                        "name": "the-pod" if node == 0 else f"pod-{node}",
                        "labels": labels | {"batch.kubernetes.io/job-completion-index": str(node)},
                    },
                    "spec": {"containers": [{"name": "node", "image": "calib:1"}]},
                    "status": {"phase": "Pending" if state == "Created" else "Running"},
                }
                for node in range(nodes)
            ]
        return pods


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """Serve a cluster on a free port of 127.0.0.1; yields a kubeconfig that names it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            path = self.path.partition("?")[0]
            request = f"{self.command} {path}"
            cluster.requests.append(request)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            fault = next((faults for at, faults in cluster.faults.items() if request.startswith(at)), [])
            status = fault.pop(0) if fault else 0
            if status < 0:
                self.close_connection = True
                return
            if status:
                content: Any = {"message": f"{request} is refused for a test", "code": status}
            else:
                status, content = cluster.answer(self.command, path, body)
            raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield write_kubeconfig(folder / "kubeconfig", server.server_port)
    finally:
        server.shutdown()
        server.server_close()


def write_kubeconfig(path: Path, port: int) -> Path:
    """A kubeconfig for a server without TLS on this machine."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "me", "user": {"token": "not-a-secret"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
        "current-context": "here",
    }
    path.write_text(json.dumps(config))
    return path
