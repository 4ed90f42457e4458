"""What only Google Cloud Storage has: its credentials, and what its client lets pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import fault_proxy

from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage import gcs as store
from calib_core.storage import uris as storage


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(
        ConfigError, match="no Google credentials; run `gcloud auth application-default login`"
    ):
        storage.fetch("gs://bucket/name")


def test_expired_credentials_are_named(
    gcs_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    with fault_proxy(gcs_server) as proxy:
        account = {
            "type": "service_account",
            "client_email": "someone@project.example",
            "private_key_id": "1",
            "private_key": key.private_bytes(*form).decode(),
            "token_uri": f"{proxy.url}/token",
        }
        (tmp_path / "key.json").write_text(json.dumps(account))
        proxy.add("400", "^POST /token", times=10**6)
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        store._client.cache_clear()
        try:
            with pytest.raises(
                ConfigError, match=r"credentials were refused .* renew the service account's key"
            ):
                storage.fetch("gs://bucket/name")
        finally:
            store._client.cache_clear()
        assert {line for line, _ in proxy.requests} == {"POST /token"}


@pytest.mark.parametrize("times", [1, 3])
def test_bytes_that_the_client_lets_pass_are_held_to_their_checksum(
    gcs: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.cloud.storage import Blob

    storage.write_versioned(f"{gcs}/champion.json", b'{"number": 1}', expected=None)
    left, download = [times], Blob.download_as_bytes

    def damaged(self: Blob, **options: Any) -> bytes:
        left[0] -= 1
        return b'{"number": 3}' if left[0] >= 0 else download(self, **options)

    monkeypatch.setattr(Blob, "download_as_bytes", damaged)
    if times == 1:
        found = storage.read_versioned(f"{gcs}/champion.json")
        assert found is not None
        assert found[0] == b'{"number": 1}'
    else:
        with pytest.raises(DataFormatError, match="arrived damaged 3 times"):
            storage.read_versioned(f"{gcs}/champion.json")
