"""RBAC as a Kubernetes API decides it, from the manifests that an administrator applies.

It knows `apiGroups`, `resources`, `verbs` and `resourceNames` of Roles and ClusterRoles that are bound to
service accounts; no wildcards (none of our files has one), groups or aggregation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes"
ROLES = (DEPLOY / "calib-train.yaml",)
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Request:
    """A request as RBAC sees it."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


@dataclass
class Account:
    """A service account and its rules, each with the namespace that it holds for ("" for all)."""

    user: str
    rules: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def may(self, request: Request) -> bool:
        """Whether a rule allows a request."""
        return any(
            namespace in ("", request.namespace)
            and request.group in rule["apiGroups"]
            and request.resource in rule["resources"]
            and request.verb in rule["verbs"]
            and request.name in rule.get("resourceNames", [request.name])
            for namespace, rule in self.rules
        )


def account(namespace: str, name: str, manifests: Iterable[Path] = ROLES) -> Account:
    """A service account with what the roles in manifests give it."""
    documents = [made for path in manifests for made in yaml.safe_load_all(path.read_text()) if made]
    roles = {
        (made["kind"], made["metadata"].get("namespace"), made["metadata"]["name"]): made["rules"]
        for made in documents
        if made["kind"] in ("Role", "ClusterRole")
    }
    found = Account(f"system:serviceaccount:{namespace}:{name}")
    for binding in documents:
        if {"kind": "ServiceAccount", "name": name, "namespace": namespace} not in binding.get(
            "subjects", []
        ):
            continue
        here = binding["metadata"].get("namespace")
        ref = binding["roleRef"]
        rules = roles[ref["kind"], here if ref["kind"] == "Role" else None, ref["name"]]
        found.rules += [(here if binding["kind"] == "RoleBinding" else "", rule) for rule in rules]
    return found


def asked_for(method: str, path: str) -> Request | None:
    """What RBAC is asked for a path; None for a path that is no resource."""
    parts = path.strip("/").split("/")
    if parts[0] not in ("api", "apis"):
        return None
    group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace, parts = (parts[1], parts[2:]) if parts[0] == "namespaces" else ("", parts)
    resource, name = parts[0], parts[1] if len(parts) > 1 else ""
    resource = "/".join([resource, *parts[2:]])
    return Request(VERBS.get(method, "get" if name else "list"), group, resource, namespace, name)
