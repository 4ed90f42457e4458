"""Which server, and whose credentials, an S3 URI is for: the environment's, or those that KFP's launcher has.

In a pod this follows the launcher of Kubeflow Pipelines, so that a task reads what its artifacts' URIs name
without being told more. The ConfigMap `kfp-launcher` of the pod's namespace says, by scheme, bucket and
prefix, the endpoint and the secret with the keys; without it `minio://` is the installation's own MinIO or
SeaweedFS with the secret `mlpipeline-minio-artifact`, and `s3://` is what the AWS libraries find (variables,
web identity, the machine's role). `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` in the environment comes first,
and is the way to name a server outside of a cluster.

Source: kubeflow/pipelines 2.17.0, backend/src/v2/config (env.go, s3.go, minio.go) and objectstore (config.go,
object_store.go).
"""

from __future__ import annotations

import base64
import functools
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from urllib3.exceptions import HTTPError

from calib_core.errors import ConfigError
from calib_core.storage.locations import Location

CONFIG_MAP = "kfp-launcher"
DEFAULT_SECRET = {
    "secretName": "mlpipeline-minio-artifact",
    "accessKeyKey": "accesskey",
    "secretKeyKey": "secretkey",
}
DEFAULT_ENDPOINTS = ("seaweedfs.kubeflow:9000", "minio-service.kubeflow:9000")
"""Where installations of KFP have their store: SeaweedFS from 2.16 on, MinIO before."""

POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""What Kubernetes mounts in every pod that has a service account: namespace, token and certificate."""

TIMEOUT_S, PERIOD_S = 30, 300
_AWS = re.compile(r"(https?://)?s3\.amazonaws\.com")


@dataclass(frozen=True, kw_only=True)
class Session:
    """Server and credentials of one bucket.

    Attributes:
        endpoint: URL of the server; "" for what the AWS libraries choose.
        region: As requests are signed for; "" for what the AWS libraries find.
        path_style: Whether the bucket is part of the path rather than of the host's name.
        access_key: Key's id; "" for the credentials that the AWS libraries find.
        secret_key: The key.
        source: Where this was found, for messages.
    """

    endpoint: str = ""
    region: str = ""
    path_style: bool = False
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    source: str = "the environment"


def session_for(location: Location) -> Session:
    """The server and credentials for a place in a bucket.

    Raises:
        ConfigError: a `minio://` URI outside of a cluster with no endpoint set, a ConfigMap that says
            nothing usable, or a ConfigMap or secret that this pod's account may not read.
    """
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        return Session(endpoint=_url(endpoint, tls=True), path_style=True)
    if not in_pod():
        if location.scheme == "minio":
            raise ConfigError(
                f"{location.uri}: the server is known inside a cluster only; set AWS_ENDPOINT_URL_S3, "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to reach it from here (through a port-forward)"
            )
        return Session()
    server = tuple(os.environ.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    cluster = _cluster(server, int(time.monotonic() // PERIOD_S))
    if settings := provider_settings(cluster.providers(location).get(location.scheme), location):
        return _from_settings(settings, location, cluster)
    if location.scheme == "s3":
        return Session()
    endpoint = default_endpoint()
    defaults: dict[str, Any] = {
        "endpoint": endpoint,
        "region": "minio",
        "disableSSL": True,
        "secretRef": DEFAULT_SECRET,
    }
    return _from_settings(defaults, location, cluster)


def in_pod() -> bool:
    """Whether this process runs in a pod with a service account."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (POD / "token").is_file()


def default_endpoint() -> str:
    """The installation's own store: a service beside this pod, or the first that the cluster's DNS knows."""
    host, port = (os.environ.get(f"MINIO_SERVICE_SERVICE_{part}") for part in ("HOST", "PORT"))
    if host and port:
        return f"{host}:{port}"
    for endpoint in DEFAULT_ENDPOINTS:
        try:
            socket.getaddrinfo(endpoint.partition(":")[0], None)
        except OSError:
            continue
        return endpoint
    return DEFAULT_ENDPOINTS[0]


def provider_settings(provider: Any, location: Location) -> dict[str, Any]:
    """What a provider's entry of the ConfigMap says for a place; empty if it says nothing.

    Args:
        provider: The entry of the URI's scheme, `{"default": {...}, "overrides": [...]}`; names are read
            without regard to case, as the launcher reads them.
        location: The place; the first override of its bucket whose `keyPrefix` its key begins with counts.

    Raises:
        ConfigError: the entry is not as it should be.
    """
    entry = _lowered(provider)
    if not entry.get("default") and not entry.get("overrides"):
        return {}
    default = _lowered(entry.get("default"))
    if not _lowered(default.get("credentials")):
        raise _bad(location, "the provider's default has no credentials")
    found = {name: value for name, value in default.items() if value not in (None, "")}
    for other in entry.get("overrides") or []:
        override = _lowered(other)
        prefix = str(override.get("keyprefix") or "")
        if override.get("bucketname") == location.bucket and location.key.startswith(prefix):
            if not override.get("credentials"):
                raise _bad(location, f"the override for bucket {location.bucket} has no credentials")
            found.update({name: value for name, value in override.items() if value not in (None, "")})
            break
    credentials = _lowered(found["credentials"])
    settings: dict[str, Any] = {
        "endpoint": str(found.get("endpoint", "")),
        "region": str(found.get("region", "")),
        "disableSSL": bool(found.get("disablessl", False)),
        "forcePathStyle": bool(found.get("forcepathstyle", True)),
    }
    if not credentials.get("fromenv"):
        reference = _lowered(credentials.get("secretref"))
        settings["secretRef"] = {name: reference.get(name.lower()) for name in DEFAULT_SECRET}
        if not all(settings["secretRef"].values()):
            raise _bad(location, "credentials need fromEnv: true, or a secretRef with secretName, "
                       "accessKeyKey and secretKeyKey")  # fmt: skip
    return settings


def _from_settings(settings: dict[str, Any], location: Location, cluster: _Cluster) -> Session:
    """A session as the launcher's session information means it."""
    endpoint = "" if _AWS.match(settings["endpoint"].lower()) else settings["endpoint"]
    secret, keys = settings.get("secretRef"), ("", "")
    if secret:
        keys = cluster.keys(secret, location)
    return Session(
        endpoint=_url(endpoint, tls=not settings["disableSSL"]) if endpoint else "",
        region=settings["region"],
        path_style=settings.get("forcePathStyle", True),
        access_key=keys[0],
        secret_key=keys[1],
        source=f"secret {secret['secretName']} of namespace {cluster.namespace}"
        if secret
        else "the environment",
    )


class _Cluster:
    """What this pod's service account can read of its namespace; each thing is asked for once."""

    def __init__(self) -> None:
        from kubernetes import client, config  # noqa: PLC0415 (takes a second, and only pods need it)

        self._refusal = client.exceptions.ApiException
        self.namespace = (POD / "namespace").read_text(encoding="utf-8").strip()
        settings = client.Configuration()
        config.load_incluster_config(client_configuration=settings)
        self._api = client.CoreV1Api(client.ApiClient(settings))
        self._known: dict[tuple[str, str], dict[str, str]] = {}

    def providers(self, location: Location) -> dict[str, Any]:
        """The ConfigMap's providers by scheme; empty if there is no ConfigMap.

        An account that may not read it has its own role for `s3://`, but can't know what `minio://` is.
        """
        import yaml  # noqa: PLC0415 (comes with the extra s3)

        found = self._read("ConfigMap", CONFIG_MAP, location, required=location.scheme == "minio")
        try:
            return _lowered(yaml.safe_load(found.get("providers") or "{}"))
        except yaml.YAMLError:
            raise _bad(location, "`providers` is not YAML") from None

    def keys(self, reference: Mapping[str, str], location: Location) -> tuple[str, str]:
        """Access key and secret key that a reference to a secret names."""
        name, *wanted = (reference[part] for part in DEFAULT_SECRET)
        data = self._read("secret", name, location, required=True)
        if missing := [key for key in wanted if not data.get(key)]:
            raise ConfigError(
                f"{location.uri}: secret {name} of namespace {self.namespace} has no {missing[0]}; "
                f"ConfigMap {CONFIG_MAP}, or the installation's default, names it: correct one of them"
            )
        access_key, secret_key = (base64.b64decode(data[key]).decode() for key in wanted)
        return access_key, secret_key

    def _read(self, kind: str, name: str, location: Location, *, required: bool) -> dict[str, str]:
        """The data of an object of this namespace; empty for a ConfigMap that may be missing."""
        if (kind, name) in self._known:
            return self._known[kind, name]
        secret, found = kind == "secret", None
        request = self._api.read_namespaced_secret if secret else self._api.read_namespaced_config_map
        try:
            found = dict(request(name, self.namespace, _request_timeout=TIMEOUT_S).data or {})
        except self._refusal as error:
            reason = f"{error.status} {error.reason}"
            if not secret and (error.status == 404 or (error.status in (401, 403) and not required)):
                found = {}
        except HTTPError as error:
            reason = str(getattr(error, "reason", error))[:200]
        if found is None:
            raise ConfigError(
                f"{location.uri}: {kind} {name} of namespace {self.namespace} can't be read ({reason}), as "
                "KFP's launcher reads it; let the pod's service account `get` it, or give the task "
                "AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        self._known[kind, name] = found
        return found


@functools.lru_cache(maxsize=1)
def _cluster(server: tuple[str, ...], period: int) -> _Cluster:
    """The cluster that this pod runs in; asked again in each period, so that new keys are found."""
    return _Cluster()


def _lowered(mapping: Any) -> dict[str, Any]:
    """A mapping with its names in lower case; empty for anything else."""
    return {str(name).lower(): value for name, value in mapping.items()} if isinstance(mapping, dict) else {}


def _bad(location: Location, what: str) -> ConfigError:
    return ConfigError(
        f"{location.uri}: ConfigMap {CONFIG_MAP}, providers.{location.scheme}: {what}; correct it"
    )


def _url(endpoint: str, *, tls: bool) -> str:
    """An endpoint as a URL; KFP's have no scheme."""
    if endpoint.startswith(("http://", "https://")):
        return endpoint
    return f"{'https' if tls else 'http'}://{endpoint}"
