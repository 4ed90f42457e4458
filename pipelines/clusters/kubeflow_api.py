"""Calls of Kubeflow Pipelines' API: signing in, limits of time, and what goes wrong put in words.

`kfp.Client` signs in; the generated API that it carries does the calls. Its own methods print to standard
output, wait for answers without a limit, and never stop waiting for a run that was cancelled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import kfp
import kfp_server_api as api
import urllib3

from calib_core.errors import CalibError, ConfigError
from calib_pipelines.clusters.base import (
    ANSWER_S,
    CONNECT_S,
    TryAgainError,
    UnansweredError,
    UnreachableError,
    retried,
)

TOKEN_VARIABLE = "KFP_TOKEN"  # noqa: S105 - the variable's name
HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
IN_CLUSTER_HOST = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"

T = TypeVar("T")


class NotFoundError(ConfigError):
    """What was asked for isn't there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KubeflowConnection:
    """Where Kubeflow Pipelines is, and how to sign in.

    Without a host and inside a pod, the cluster's own service and the pod's projected token are taken.

    Attributes:
        host: URL of its API; "" for `$KF_PIPELINES_ENDPOINT`, or the pod's own cluster.
        token_file: File with a token, read again for each request; None for `$KFP_TOKEN`, or none at all.
        namespace: Namespace of the user, where the installation has several users.
        experiment: Experiment that runs belong to; "" for the pipeline's name.
    """

    host: str = ""
    token_file: Path | None = None
    namespace: str = ""
    experiment: str = ""


class KubeflowApi:
    """One installation of Kubeflow Pipelines, signed in to.

    Attributes:
        version: Its release, such as `2.16.1`; "" where its server was built without one.

    Raises:
        ConfigError: no host, no usable token, an endpoint out of reach or one that isn't KFP's.
    """

    def __init__(self, settings: KubeflowConnection) -> None:
        self.host, token = _host_and_token(settings)
        self.ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT", self.host).rstrip("/")
        self._namespace = settings.namespace
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "only works with KFP 2" is what we want
            self.client = kfp.Client(
                host=self.host,
                # A namespace of any name keeps the client from asking the server without a limit of time.
                namespace=settings.namespace or "none",
                ssl_ca_cert=os.environ.get("SSL_CERT_FILE"),
                **token,
            )
        health = retried(
            lambda: self.call(self.client.healthzs.healthz_service_get_healthz, answer_s=CONNECT_S)
        )
        if health.multi_user and not settings.namespace:
            raise ConfigError(f"{self.host}: this Kubeflow has several users; pass --namespace with your own")
        self.version = self._said_version()

    def call(self, function: Callable[..., T], *, answer_s: float = ANSWER_S, **arguments: Any) -> T:
        """Call `function` of the generated API, waiting at most `answer_s` seconds.

        Raises:
            CalibError: of the class that says whether the request may have taken effect.
        """
        try:
            answer = function(**arguments, _request_timeout=(CONNECT_S, answer_s))
        except api.ApiException as error:
            raise self._refusal(error) from None
        except urllib3.exceptions.HTTPError as error:
            raise self._no_answer(error) from None
        except (ValueError, TypeError, AttributeError):  # what the generated code makes of a web page
            raise self._not_kfp() from None
        if isinstance(answer, str):
            raise self._not_kfp()
        return answer

    def list(self, function: Callable[..., Any], items: str, name: str = "", **arguments: Any) -> list[Any]:
        """Entries of the display name `name`, or all, over all pages."""
        if name:
            predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
            arguments["filter"] = json.dumps({"predicates": [predicate]})
        found: list[Any] = []
        arguments["page_token"] = ""
        while True:
            answer = retried(lambda: self.call(function, page_size=100, **arguments))
            found += getattr(answer, items) or []
            arguments["page_token"] = answer.next_page_token or ""
            if not arguments["page_token"]:
                return found

    def _said_version(self) -> str:
        """The `tag_name` of the last answer, the server's health, which the client's model leaves out."""
        try:
            said = json.loads(self.client.healthzs.api_client.last_response.data).get("tag_name", "")
        except (AttributeError, TypeError, ValueError):
            return ""
        return said if re.match(r"v?\d+\.\d+", said) else ""

    def _refusal(self, error: api.ApiException) -> CalibError:
        place = f"namespace {self._namespace!r}" if self._namespace else "this installation"
        kind, advice = {
            0: (
                UnreachableError,
                "where the certificate is your organisation's own, name its authority's file in "
                "$SSL_CERT_FILE",
            ),
            401: (
                ConfigError,
                "the token is missing, wrong or expired; get a new one and pass it in "
                f"${TOKEN_VARIABLE} or --token-file",
            ),
            403: (
                ConfigError,
                f"this account may not do that in {place}; check --namespace, or ask its owner to add you as "
                "a contributor (role kubeflow-edit)",
            ),
            404: (
                NotFoundError,
                "not found; check that --host is the URL of KFP's API (Kubeflow's dashboard has it under "
                "/pipeline)",
            ),
            409: (TryAgainError, "it is there already"),
            429: (TryAgainError, "too many requests"),
        }.get(
            error.status,
            (UnansweredError, "the server failed")
            if error.status >= 500
            else (ConfigError, "correct what it names, then send it again"),
        )
        return kind(f"{self.host}: {_server_text(error)} ({error.status}): {advice}")

    def _no_answer(self, error: urllib3.exceptions.HTTPError) -> CalibError:
        reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
        text = re.sub(r"^<?[\w.]*(?:Pool|Connection)\(.*?\)>?: ", "", " ".join(str(reason).split()))
        unsent = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
        if isinstance(reason, urllib3.exceptions.SSLError):
            return self._refusal(api.ApiException(status=0, reason=text))
        if isinstance(reason, unsent):
            return UnreachableError(
                f"{self.host}: can't be reached ({text}); check --host, and that the port-forward or VPN "
                "is up"
            )
        return UnansweredError(f"{self.host}: no answer ({text})")

    def _not_kfp(self) -> ConfigError:
        return ConfigError(
            f"{self.host}: answered with something that is not from KFP's API, most often a login page; pass "
            f"a token in ${TOKEN_VARIABLE} or --token-file, and check --host"
        )


class _TokenFile(kfp.client.TokenCredentialsBase):
    """A token in a file, read again for each request because whoever wrote it may renew it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read()

    def _read(self) -> str:
        try:
            token = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._path}: no token can be read ({error}); check --token-file") from None
        if len(token.split()) != 1:
            raise ConfigError(f"{self._path}: must hold a token and nothing else")
        return token

    def refresh_api_key_hook(self, config: Any) -> None:
        """Put the file's token into the client's settings."""
        config.api_key["authorization"] = self._read()


def _host_and_token(settings: KubeflowConnection) -> tuple[str, dict[str, Any]]:
    """URL without a slash at its end, and how the client gets its token."""
    token: dict[str, Any] = {}
    if settings.token_file is not None:
        token = {"credentials": _TokenFile(settings.token_file)}
    elif given := os.environ.get(TOKEN_VARIABLE, "").strip():
        token = {"existing_token": given}
    host = settings.host or os.environ.get(HOST_VARIABLE, "")
    if not host and "KUBERNETES_SERVICE_HOST" in os.environ:
        host = IN_CLUSTER_HOST
        variable, usual = kfp.client.KF_PIPELINES_SA_TOKEN_ENV, kfp.client.KF_PIPELINES_SA_TOKEN_PATH
        projected = Path(os.environ.get(variable, usual))
        if not token and projected.is_file():
            token = {"credentials": _TokenFile(projected)}
    if not host:
        raise ConfigError(
            "no host: pass --host with the URL of Kubeflow Pipelines, which in Kubeflow's dashboard ends in "
            "/pipeline; or run `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80` and pass --host "
            "http://127.0.0.1:8080"
        )
    if not re.match(r"https?://[^/]", host):
        raise ConfigError(f"host {host!r}: not a URL; write it with http:// or https:// in front")
    return host.rstrip("/"), token


def _server_text(error: api.ApiException) -> str:
    """What the server says went wrong, in one line."""
    try:
        body: Any = json.loads(error.body)
    except (TypeError, ValueError):
        body = None
    text = None
    if isinstance(body, Mapping):
        text = body.get("message") or body.get("error") or body.get("error_message")
    return " ".join(str(text or error.reason or "refused").split())[:500]
