"""S3 and the services that speak like it (MinIO, SeaweedFS, Ceph), for `calib_core.storage.objects`.

`calib_core.storage.s3_session` says which server and whose credentials a URI is for.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
from botocore.config import Config
from botocore.exceptions import ClientError

from calib_core.errors import CalibError, ConfigError
from calib_core.storage import s3_download, s3_renewal, s3_upload
from calib_core.storage.bucket import WORKERS, Bucket, StoredObject
from calib_core.storage.locations import Location
from calib_core.storage.s3_requests import BROKEN, Requests, code_of, is_transient, status_of
from calib_core.storage.s3_session import Session, session_for

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_S, READ_S = 10.0, 60.0
_IDENTITY = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN")
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_honouring: set[str] = set()
"""Buckets whose server was seen to refuse a write whose condition isn't met."""


def open_bucket(location: Location) -> Bucket:
    """The bucket that a place is in."""
    return S3Bucket(location)


class S3Bucket:
    """A `calib_core.storage.bucket.Bucket` of S3; versions are ETags."""

    cache = "s3"

    def __init__(self, location: Location) -> None:
        self.root = f"{location.scheme}://{location.bucket}"
        self._session = session_for(location)
        with self.reported(location.uri):
            client = _client(self._session, tuple(os.environ.get(name, "") for name in _IDENTITY))
        server = client.meta.endpoint_url
        if location.scheme == "minio" and str(urlsplit(server).hostname).endswith(".amazonaws.com"):
            raise ConfigError(f"{location.uri}: no server is named for minio://; set AWS_ENDPOINT_URL_S3")
        self.identity = f"{server} {location.bucket}"
        self._requests = Requests(client, location.bucket, self.root)

    def stat(self, name: str) -> StoredObject | None:
        """An object, with its CRC32C where it was written from here; None if there is none."""
        return self._requests.stat(name)

    def listed(self, prefix: str) -> Iterable[StoredObject]:
        """All objects whose names begin with `prefix`; their CRC32C isn't known."""
        return s3_download.listed(self._requests, prefix)

    def read(self, name: str) -> tuple[bytes, StoredObject] | None:
        """Content and ETag of a small object, which belong together; None if there is none."""
        return s3_download.read(self._requests, name)

    def put(self, name: str, data: bytes, *, expected: str) -> StoredObject:
        """Write an object in one request, if it still has the ETag `expected`."""
        return s3_upload.put(self._requests, name, data, expected=expected)

    def swap(self, name: str, data: bytes, *, expected: str) -> StoredObject:
        """Like `put`, for those who race: refuses a server that doesn't honour the condition."""
        stored = self.put(name, data, expected=expected)
        if self.identity not in _honouring and stored.version != expected:
            if not s3_upload.honours(self._requests, name, data, expected=expected):
                raise ConfigError(
                    f"{self.root}/{name}: this S3 server writes even if a condition (If-Match, "
                    "If-None-Match) isn't met, so two writers at the same time would both succeed; keep this "
                    "file on a server that honours conditions (S3, MinIO, Ceph, current SeaweedFS)"
                )
            _honouring.add(self.identity)
        return stored

    def upload(self, name: str, path: Path, *, expected: str) -> StoredObject:
        """Write a file of any size, if the object still has the ETag `expected`."""
        return s3_upload.upload(self._requests, name, path, expected=expected)

    def renew(self, obj: StoredObject, path: Path) -> StoredObject:
        """Give an object a new ETag, its content unchanged."""
        return s3_renewal.renew(self._requests, obj, path)

    def discard(self, obj: StoredObject) -> None:
        """Delete an object if it still has the ETag that it had."""
        s3_renewal.discard(self._requests, obj)

    def download(self, wanted: Sequence[tuple[StoredObject, Path]]) -> None:
        """Bring objects into files; those that are there already and whole are left as they are."""
        s3_download.download(self._requests, wanted)

    def remove(self, name: str) -> None:
        """Delete an object; one that isn't there counts as deleted."""
        self._requests.send("delete_object", Key=name)

    def abandon(self, prefix: str) -> None:
        """Give up uploads in parts that were begun below `prefix` and never ended."""
        for upload in self._requests.send("list_multipart_uploads", Prefix=prefix).get("Uploads", []):
            self._requests.send("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    @contextlib.contextmanager
    def reported(self, uri: str) -> Iterator[None]:
        """Turn what the client library raises into one message with what to do."""
        try:
            yield
        except CalibError:
            raise
        except (boto.NoCredentialsError, boto.PartialCredentialsError):
            raise ConfigError(
                f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or give the pod a service account with a role (web identity)"
            ) from None
        except (
            boto.CredentialRetrievalError,
            boto.SSOError,
            boto.TokenRetrievalError,
            boto.ProfileNotFound,
        ) as e:
            raise ConfigError(f"{uri}: no S3 credentials can be had ({_reason(e)}); renew them") from None
        except ClientError as error:
            raise self._refusal(uri, error) from None
        except (boto.BotoCoreError, *BROKEN) as error:
            if is_transient(error) or isinstance(error, boto.SSLError):
                raise self._unreachable(uri, error) from None
            raise ConfigError(f"{uri}: this can't be asked of {self._server()} ({_reason(error)})") from None

    def _refusal(self, uri: str, error: ClientError) -> ConfigError:
        code, reason, account = code_of(error), _reason(error), self._session.source
        if code == "NoSuchBucket":
            return ConfigError(f"{uri}: there is no bucket {self.root}; check its name, or create it")
        if code in _REFUSED or error.operation_name.startswith("AssumeRole"):
            return ConfigError(
                f"{uri}: the S3 credentials of {account} were refused ({reason}); they may have expired: "
                "renew them"
            )
        if status_of(error) in (401, 403):
            return ConfigError(
                f"{uri}: no permission ({reason}); let the account of {account} s3:ListBucket on "
                f"{self.root}, and s3:GetObject, and to write s3:PutObject, s3:DeleteObject and "
                "s3:AbortMultipartUpload, on what is in it"
            )
        if is_transient(error):
            return self._unreachable(uri, error)
        return ConfigError(f"{uri}: {self._server()} refused this ({reason})")

    def _unreachable(self, uri: str, error: Exception) -> ConfigError:
        return ConfigError(
            f"{uri}: {self._server()} can't be reached, or does not answer ({_reason(error)}); check the "
            "network and the endpoint, and try again"
        )

    def _server(self) -> str:
        return f"the S3 server {self._session.endpoint}" if self._session.endpoint else "S3"


@functools.cache
def _client(session: Session, identity: tuple[str, ...]) -> S3Client:
    """The one client of this process for a server and an identity, which its environment names."""
    aws = boto3.Session(
        aws_access_key_id=session.access_key or None, aws_secret_access_key=session.secret_key or None
    )
    style: Any = {"addressing_style": "path"} if session.path_style else {}
    if aws._session.get_scoped_config().get("s3", {}).get("addressing_style"):
        style = {}  # the profile says how
    config = Config(
        s3=style,
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        max_pool_connections=2 * WORKERS,
        retries={"total_max_attempts": 1},  # `s3_transfer.retried` sends again
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = session.region or aws.region_name or ("us-east-1" if session.endpoint else None)
    return aws.client("s3", endpoint_url=session.endpoint or None, region_name=region, config=config)


def _reason(error: Exception) -> str:
    """First line of an error's text."""
    if isinstance(error, ClientError):
        said = error.response.get("Error", {})
        text = ": ".join(filter(None, [str(said.get("Code", "")), str(said.get("Message") or "")]))
        return text[:300] or f"status {status_of(error)}"
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
