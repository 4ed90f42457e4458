"""The roles in `deploy/`: all that the code asks of a service, and nothing more."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_proxy import FaultProxy, fault_proxy
from kubernetes_api import ACCOUNT, NAMESPACE, Cluster, serving
from rbac import DEPLOY, account

import calib_components
from calib_core.errors import CalibError
from calib_core.storage import bucket as limits
from calib_core.storage import uris as storage
from calib_core.storage.locations import locate
from calib_core.storage.s3_session import session_for

ROOT = Path(__file__).resolve().parents[1]
SLICE = 64 * 1024

GOOGLE: tuple[tuple[str, set[str]], ...] = (
    (r"^GET /storage/v1/b/[^/?]+\?", set()),  # the library's, in the background; a refusal does no harm
    (r"^GET /storage/v1/b/[^/]+/o(\?|$)", {"list"}),
    (r"^GET /(download/)?storage/v1/b/[^/]+/o/", {"get"}),
    (r"^GET /download/", {"get"}),
    (r"^POST /storage/v1/b/[^/]+/o/[^?]+/compose", {"create", "delete", "get"}),
    # To write over an object one must be allowed to delete it; the emulator doesn't ask.
    (r"^POST /upload/.*ifGenerationMatch=0(&|$)", {"create"}),
    (r"^(POST|PUT) /upload/", {"create", "delete"}),
    (r"^DELETE /storage/v1/b/[^/]+/o/", {"delete"}),
)
"""Permissions `storage.objects.*` by request: cloud.google.com/storage/docs/access-control/iam-json."""

AMAZON = (
    (r"^GET /[^/]+/?\?.*uploads", {"ListBucketMultipartUploads"}),
    (r"^GET /[^/]+/?\?.*list-type=2", {"ListBucket"}),
    (r"^GET .*uploadId=", {"ListMultipartUploadParts"}),
    (r"^(GET|HEAD) ", {"GetObject"}),
    (r"^DELETE .*uploadId=", {"AbortMultipartUpload"}),
    (r"^DELETE ", {"DeleteObject"}),
    (r"^(PUT|POST) ", {"PutObject"}),
)
"""Actions `s3:*` by request: docs.aws.amazon.com, Service Authorization Reference."""


@pytest.fixture(params=["gs", "s3"])
def store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, FaultProxy]]:
    """A bucket, and a proxy that sees what is asked of its server."""
    gs = request.param == "gs"
    bucket = request.getfixturevalue("gcs" if gs else "s3")
    monkeypatch.setattr(limits, "SLICE_BYTES", SLICE)
    with fault_proxy(request.getfixturevalue("gcs_server" if gs else "s3_server")) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST" if gs else "AWS_ENDPOINT_URL_S3", proxy.url)
        yield bucket, proxy


def used(bucket: str, proxy: FaultProxy) -> set[str]:
    """The permissions that the requests so far have needed."""
    found: set[str] = set()
    for line, _ in proxy.requests:
        rules = GOOGLE if bucket.startswith("gs:") else AMAZON
        known = [needed for pattern, needed in rules if re.search(pattern, line)]
        assert known, f"which permission does {line} need?"
        found |= known[0]
    proxy.requests.clear()
    return found


def granted(bucket: str, kind: str) -> set[str]:
    """The permissions of a role in `deploy/`, without their prefixes."""
    if bucket.startswith("gs:"):
        role = yaml.safe_load((ROOT / "deploy" / "google-cloud" / f"calib-storage-{kind}.yaml").read_text())
        return {name.removeprefix("storage.objects.") for name in role["includedPermissions"]}
    policy = json.loads((ROOT / "deploy" / "aws" / f"calib-storage-{kind}.json").read_text())
    return {action.removeprefix("s3:") for part in policy["Statement"] for action in part["Action"]}


def folder(path: Path, *, size: int) -> Path:
    """A folder with a small file and a large one, which travels in slices."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"size": size}))
    (path / "model.safetensors").write_bytes(bytes(size))
    return path


def test_the_roles_for_buckets_are_what_reading_and_writing_need(store, tmp_path) -> None:
    bucket, proxy = store
    model, state = f"{bucket}/model", f"{bucket}/champion/champion.json"
    large = folder(tmp_path / "model", size=3 * SLICE)
    proxy.add("403", r"^PUT .*partNumber=3" if bucket.startswith("s3:") else r"^POST .*/compose", times=99)
    with pytest.raises(CalibError):
        storage.publish(large, model)
    proxy.faults.clear()
    storage.publish(large, model)  # goes on with what has arrived
    storage.publish(folder(tmp_path / "model", size=4 * SLICE), model)  # writes over it
    version = storage.write_versioned(state, b"{}", expected=None)
    storage.write_versioned(state, b'{"run": 1}', expected=version)
    storage.delete(f"{bucket}/champion")
    if bucket.startswith("s3:"):  # and clears up what was begun and never ended
        import boto3

        client = boto3.client("s3", region_name="us-east-1")
        client.create_multipart_upload(Bucket=bucket.removeprefix("s3://"), Key="model/left.safetensors")
        storage.delete(model)
        storage.publish(large, model)
    assert used(bucket, proxy) == granted(bucket, "writer")
    storage.fetch(model)
    assert storage.exists(model)
    assert storage.list_files(bucket)
    assert storage.read_versioned(state) is None
    assert used(bucket, proxy) == granted(bucket, "reader")


def test_the_role_for_s3_in_a_cluster_is_what_the_launchers_credentials_need(tmp_path, monkeypatch) -> None:
    cluster = Cluster()
    cluster.accounts["not-a-secret"] = account(NAMESPACE, ACCOUNT, [DEPLOY / "calib-storage.yaml"])
    keys = {name: base64.b64encode(name.encode()).decode() for name in ("accesskey", "secretkey")}
    here = f"/api/v1/namespaces/{NAMESPACE}"
    cluster.objects |= {
        f"{here}/configmaps/kfp-launcher": {"data": {"providers": "{}"}},
        f"{here}/secrets/mlpipeline-minio-artifact": {"data": keys},
        f"{here}/secrets/others": {"data": keys},
    }
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    location = locate("minio://mlpipeline/model")
    assert location is not None
    with serving(cluster, tmp_path) as there:
        there.enter_as_pod(monkeypatch)
        assert session_for(location).access_key == "accesskey"
    assert cluster.allowed == {("get", "", "configmaps"), ("get", "", "secrets")}
    rules = [rule for _, rule in cluster.accounts["not-a-secret"].rules]
    assert sorted(name for rule in rules for name in rule["resourceNames"]) == [
        "kfp-launcher",
        "mlpipeline-minio-artifact",
    ]  # and no other secret of the namespace


def manifests() -> list[Path]:
    return sorted(DEPLOY.glob("*.yaml"))


@pytest.mark.parametrize("path", manifests(), ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes_and_grant_no_more_than_they_name(path) -> None:
    import kubernetes_validate

    for made in filter(None, yaml.safe_load_all(path.read_text())):
        kubernetes_validate.validate(made, "1.30", strict=True)
        for rule in made.get("rules", []):
            everything = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in everything
            assert {"secrets", "configmaps"}.isdisjoint(rule["resources"]) or rule["resourceNames"]


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "aws").glob("*.json")), ids=lambda path: path.name)
def test_policies_name_what_they_allow(path) -> None:
    policy: dict[str, Any] = json.loads(path.read_text())
    assert policy["Version"] == "2012-10-17"
    assert "*" not in [action for part in policy["Statement"] for action in part["Action"]]
    assert "*" not in [part.get("Resource", "") for part in policy["Statement"]]


def test_every_component_has_its_line_in_the_page() -> None:
    page = (ROOT / "docs" / "permissions.md").read_text()
    for name in calib_components.__all__:
        assert re.search(rf"^\| .*`{name}`", page, re.MULTILINE), name
    for path in [
        *DEPLOY.iterdir(),
        *(ROOT / "deploy" / "aws").iterdir(),
        *(ROOT / "deploy/google-cloud").iterdir(),
    ]:
        assert path.name in page
