"""Which server and whose credentials an S3 URI is for: as KFP's launcher finds them, in a pod and outside."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes.config import incluster_config
from loopback import Handler, certificate, http_server, loopback

from calib_core.errors import ConfigError
from calib_core.storage import s3_session
from calib_core.storage import uris as storage
from calib_core.storage.locations import locate
from calib_core.storage.s3_session import Session, default_endpoint, provider_settings, session_for

AWS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")
CONFIG_MAP = "/api/v1/namespaces/team/configmaps/kfp-launcher"
SECRET = "/api/v1/namespaces/team/secrets/"
KEYS = {"fromEnv": False, "secretRef": {"secretName": "mine", "accessKeyKey": "id", "secretKeyKey": "key"}}


class Cluster(dict[str, Any]):
    """What the Kubernetes API of a pod's namespace has: `data` by path, or a status to answer with."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def secret(self, name: str, **data: str) -> None:
        self[SECRET + name] = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}

    def launcher(self, providers: str) -> None:
        self[CONFIG_MAP] = {"defaultPipelineRoot": "minio://mlpipeline/v2/artifacts", "providers": providers}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*AWS, "KUBERNETES_SERVICE_HOST", "MINIO_SERVICE_SERVICE_HOST", "MINIO_SERVICE_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A pod of the namespace `team`, with an API over TLS that asks for the pod's token."""
    pod = tmp_path / "pod"
    pod.mkdir()
    key, pem = certificate("localhost", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    for name, data in {"namespace": b"team", "token": b"pod-token", "ca.crt": pem, "key": key}.items():
        (pod / name).write_bytes(data)
    monkeypatch.setattr(s3_session, "POD", pod)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(pod / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(pod / "ca.crt"))
    answers = Cluster()

    class Serving(Handler):
        def do_GET(self) -> None:  # noqa: N802 - a name of http.server
            answers.asked.append((self.path, self.headers["Authorization"]))
            found = answers.get(self.path, 404)
            missing = isinstance(found, int)
            self.respond(found if missing else 200, {"kind": "Status"} if missing else {"data": found})

    with loopback(http_server(Serving), tls=(pod / "ca.crt", pod / "key")) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
        yield answers


def session(uri: str) -> Session:
    location = locate(uri)
    assert location is not None
    return session_for(location)


def settings(provider: Any, uri: str) -> dict[str, Any]:
    location = locate(uri)
    assert location is not None
    return provider_settings(provider, location)


def test_outside_of_a_cluster_s3_is_what_the_aws_libraries_find() -> None:
    assert session("s3://bucket/name") == Session()


def test_outside_of_a_cluster_minio_needs_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"minio://bucket/name: .*set AWS_ENDPOINT_URL_S3"):
        session("minio://bucket/name")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://localhost:9000")
    assert session("minio://bucket/name") == Session(endpoint="http://localhost:9000", path_style=True)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_an_endpoint_in_the_environment_comes_first(
    name: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.launcher(json.dumps({"s3": {"default": {"endpoint": "other:1", "credentials": KEYS}}}))
    monkeypatch.setenv(name, "https://mine:9000")
    assert session("s3://bucket/name").endpoint == session("minio://b-1/x").endpoint == "https://mine:9000"
    assert cluster.asked == []


def test_without_a_config_map_minio_is_the_installations_own(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIO_SERVICE_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv("MINIO_SERVICE_SERVICE_PORT", "9000")
    cluster.secret("mlpipeline-minio-artifact", accesskey="minio", secretkey="minio123")
    found = session("minio://mlpipeline/v2/artifacts/x")
    assert found == Session(
        endpoint="http://10.0.0.7:9000",
        region="minio",
        path_style=True,
        access_key="minio",
        secret_key="minio123",  # noqa: S106
        source="secret mlpipeline-minio-artifact of namespace team",
    )
    assert "minio123" not in repr(found)
    paths, tokens = zip(*cluster.asked, strict=True)
    assert paths == (CONFIG_MAP, f"{SECRET}mlpipeline-minio-artifact")
    assert set(tokens) == {"bearer pod-token"}


@pytest.mark.parametrize(
    ("known", "endpoint"),
    [
        (("seaweedfs.kubeflow", "minio-service.kubeflow"), "seaweedfs.kubeflow:9000"),
        (("minio-service.kubeflow",), "minio-service.kubeflow:9000"),
        ((), "seaweedfs.kubeflow:9000"),
    ],
)
def test_the_installations_own_is_the_one_that_the_clusters_dns_knows(
    known: tuple[str, ...], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(host: str, port: object) -> list[object]:
        if host not in known:
            raise OSError(-2, "Name or service not known")
        return [host]

    monkeypatch.setattr(s3_session.socket, "getaddrinfo", getaddrinfo)
    assert default_endpoint() == endpoint


def test_without_a_config_map_s3_is_what_the_aws_libraries_find(cluster: Cluster) -> None:
    """Web identity (IRSA), the machine's role, variables: the libraries' own chain."""
    assert session("s3://bucket/name") == Session()


def test_the_config_map_names_endpoint_and_secret(cluster: Cluster) -> None:
    cluster.secret("mine", id="me", key="secret")
    cluster.launcher("""
s3:
  default:
    endpoint: https://s3.example.org
    region: eu-1
    forcePathStyle: false
    credentials: {fromEnv: false, secretRef: {secretName: mine, accessKeyKey: id, secretKeyKey: key}}
minio:
  default:
    endpoint: seaweedfs.team:8333
    region: minio
    disableSSL: true
    credentials: {fromEnv: true}
""")
    assert session("s3://bucket/name") == Session(
        endpoint="https://s3.example.org",
        region="eu-1",
        access_key="me",
        secret_key="secret",  # noqa: S106
        source="secret mine of namespace team",
    )
    assert session("minio://bucket/name") == Session(
        endpoint="http://seaweedfs.team:8333", region="minio", path_style=True
    )


OVERRIDES = {
    "default": {"endpoint": "one:1", "region": "r1", "disableSSL": True, "credentials": {"fromEnv": True}},
    "Overrides": [
        {"bucketName": "b-1", "keyPrefix": "team/", "endpoint": "two:2", "credentials": KEYS},
        {"bucketName": "b-1", "region": "r3", "disableSSL": False, "credentials": {"fromEnv": True}},
    ],
}


@pytest.mark.parametrize(
    ("uri", "endpoint", "region", "no_tls", "secret"),
    [
        ("s3://b-1/team/x", "two:2", "r1", True, "mine"),
        ("s3://b-1/other", "one:1", "r3", False, None),
        ("s3://b-2/team/x", "one:1", "r1", True, None),
    ],
)
def test_the_first_override_whose_prefix_fits_counts(
    uri: str, endpoint: str, region: str, no_tls: bool, secret: str | None
) -> None:
    found = settings(OVERRIDES, uri)
    assert (found["endpoint"], found["region"], found["disableSSL"]) == (endpoint, region, no_tls)
    assert found.get("secretRef", {}).get("secretName") == secret
    lowered = {name.lower(): value for name, value in OVERRIDES.items()}
    assert settings(lowered, uri) == found


@pytest.mark.parametrize("endpoint", ["s3.amazonaws.com", "https://s3.amazonaws.com", "S3.amazonaws.com/x"])
def test_amazons_own_endpoint_is_left_to_the_libraries(endpoint: str, cluster: Cluster) -> None:
    cluster.launcher(
        json.dumps({"s3": {"default": {"endpoint": endpoint, "credentials": {"fromEnv": True}}}})
    )
    assert session("s3://bucket/name").endpoint == ""


@pytest.mark.parametrize(
    ("provider", "wrong"),
    [
        ({"default": {"endpoint": "x"}}, "the provider's default has no credentials"),
        ({"overrides": [{"bucketName": "bucket", "credentials": KEYS}]}, "default has no credentials"),
        ({"default": {"credentials": {"fromEnv": False}}}, "credentials need fromEnv: true, or a secretRef"),
        (
            {"default": {"credentials": KEYS}, "overrides": [{"bucketName": "bucket"}]},
            "the override for bucket bucket has no credentials",
        ),
    ],
)
def test_a_config_map_that_says_nothing_usable_is_refused(provider: Any, wrong: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"s3://bucket/x: ConfigMap kfp-launcher, providers\.s3: .*{wrong}"
    ):
        settings(provider, "s3://bucket/x")


def test_what_a_pod_was_told_is_asked_for_anew_after_a_while(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are changed while a long run goes on."""
    cluster.secret("mlpipeline-minio-artifact", accesskey="minio", secretkey="old")
    assert session("minio://bucket/x").secret_key == session("minio://other/y").secret_key == "old"
    assert len(cluster.asked) == 2
    cluster.secret("mlpipeline-minio-artifact", accesskey="minio", secretkey="new")
    monkeypatch.setattr(s3_session, "PERIOD_S", 1e-3)
    assert session("minio://bucket/x").secret_key == "new"


def test_what_is_no_yaml_is_refused(cluster: Cluster) -> None:
    cluster.launcher("s3: [")
    with pytest.raises(ConfigError, match="`providers` is not YAML"):
        session("s3://bucket/x")


@pytest.mark.parametrize("status", [401, 403, 500])
def test_what_the_account_may_not_read_is_named(status: int, cluster: Cluster) -> None:
    cluster[CONFIG_MAP] = status
    with pytest.raises(
        ConfigError, match=rf"ConfigMap kfp-launcher of namespace team can't be read \({status} .*`get` it"
    ):
        session("minio://bucket/x")
    cluster[CONFIG_MAP] = 404
    with pytest.raises(ConfigError, match="secret mlpipeline-minio-artifact of namespace team can't be read"):
        session("minio://bucket/x")


def test_an_account_without_rights_still_has_its_own_role(cluster: Cluster) -> None:
    """The nodes of a training job, say, whose account has a role (IRSA) and no rights in the namespace."""
    cluster[CONFIG_MAP] = 403
    assert session("s3://bucket/x") == Session()


def test_a_secret_without_the_key_is_named(cluster: Cluster) -> None:
    cluster.secret("mlpipeline-minio-artifact", accesskey="minio")
    with pytest.raises(
        ConfigError, match="secret mlpipeline-minio-artifact of namespace team has no secretkey"
    ):
        session("minio://bucket/x")


def test_an_api_that_does_not_answer_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    with pytest.raises(ConfigError, match=r"ConfigMap kfp-launcher .*can't be read \(.*[Rr]efused"):
        session("minio://bucket/x")


def test_a_pod_reads_and_writes_by_its_namespaces_secret(
    cluster: Cluster, s3: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end: no variable is set, as in a task of a pipeline, and a URI is all that is known."""
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    cluster.secret("mlpipeline-minio-artifact", accesskey="minio", secretkey="minio123")
    monkeypatch.setattr(s3_session, "DEFAULT_ENDPOINTS", (s3_server.removeprefix("http://"),))
    (tmp_path / "a").write_bytes(b"a")
    uri = f"minio{s3[2:]}/v2/artifacts/a"
    storage.publish(tmp_path / "a", uri)
    assert storage.fetch(uri).read_bytes() == b"a"


def test_without_credentials_the_message_says_what_to_set(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
        storage.fetch(f"{s3}/x")
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(ConfigError, match=r"no S3 credentials can be had .*missing"):
        storage.fetch(f"{s3}/x")


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_named(code: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    from calib_core.storage.s3_requests import Requests

    def refuse(*_: object, **__: object) -> None:
        answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(answer, "HeadObject")

    monkeypatch.setattr(Requests, "head", refuse)
    with pytest.raises(
        ConfigError, match=rf"the S3 credentials of the environment were refused \({code}: no"
    ):
        storage.fetch(f"{s3}/x")


def test_web_identity_is_used(
    s3: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IRSA: a role and a token's file in the environment, no key."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "token").write_text("a.web.token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/calib")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert storage.write_versioned(f"{s3}/a", b"a", expected=None)
