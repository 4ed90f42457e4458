"""Lock files and Dockerfiles of the images, without building any; tests/in_image.py runs the built one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("cpu", "cuda")
LINE = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)(\+[a-z0-9]+)? --hash=sha256:[0-9a-f]{64}")
RELOCK = "run scripts/lock_images.sh"


def lock(kind: str) -> dict[str, str]:
    """Versions by canonical name, without torch's local label."""
    lines = (ROOT / "images" / f"requirements-{kind}.txt").read_text().splitlines()
    matches = [LINE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(matches), "a line that is more or less than one pin with one hash"
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in pins}


def needed_in_images() -> set[str]:
    """All that the images' extras ask for, directly or not, on Python 3.11."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^extras=(\S+)", (ROOT / "scripts" / "lock_images.sh").read_text(), re.MULTILINE)
    waiting = [Requirement(f"calib-core[{extras}]"), Requirement("setuptools")]
    asked: dict[str, set[str]] = {}
    while waiting:
        requirement = waiting.pop()
        name, known = canonicalize_name(requirement.name), canonicalize_name(requirement.name) in asked
        if known and requirement.extras <= asked[name]:
            continue
        asked.setdefault(name, set()).update(requirement.extras)
        if name == "calib-core":
            lines = [*project["dependencies"]]
            for extra in asked[name]:
                lines += project["optional-dependencies"][extra]
            waiting += map(Requirement, lines)
        else:
            waiting += [r for r in map(Requirement, metadata.requires(name) or []) if applies(r, asked[name])]
    return asked.keys() - {"calib-core"}


def applies(requirement: Requirement, extras: set[str]) -> bool:
    environment = {"python_version": "3.11", "python_full_version": "3.11.0"}
    return requirement.marker is None or any(
        requirement.marker.evaluate({**environment, "extra": extra}) for extra in {"", *extras}
    )


def test_cpu_lock_is_what_the_extras_need_at_the_versions_of_the_constraints(constraints):
    pins = lock("cpu")
    assert set(pins) == needed_in_images(), RELOCK
    assert pins == {name: constraints[name] for name in pins}, RELOCK


def test_cuda_lock_adds_to_the_cpu_lock_what_torch_needs_for_cuda_and_4_bits(constraints):
    cpu, cuda = lock("cpu"), lock("cuda")
    added = {name: version for name, version in cuda.items() if name not in cpu}
    assert {name: version for name, version in cuda.items() if name in cpu} == cpu, RELOCK
    assert {"triton", "nvidia-nccl-cu13"} <= added.keys()
    assert added.pop("bitsandbytes") == constraints["bitsandbytes"], RELOCK
    assert "kernels" not in cuda  # with it bitsandbytes and transformers fetch machine code from a hub
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in added)


@pytest.mark.parametrize("kind", KINDS)
def test_image_runs_as_a_numbered_user_and_installs_by_hash(kind):
    text = (ROOT / "images" / kind / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE) == ["10001:10001"]  # runAsNonRoot needs a number
    installs = [part for part in text.split("&&") if " install" in part and "./source" not in part]
    assert len(installs) == 2
    assert all("--require-hashes" in part and "--no-deps" in part for part in installs)
    assert f"requirements-{kind}.txt" in text


@pytest.fixture
def described(tmp_path):
    """The script that describes an image, and what it would copy of one: two packages, two of Debian's."""
    spec = importlib.util.spec_from_file_location("describe_image", ROOT / "scripts" / "describe_image.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    packages = tmp_path / "opt/calib/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    for name in ("numpy", "filelock"):
        folder = Path(metadata.distribution(name)._path)
        (packages / folder.name).symlink_to(folder)
    (tmp_path / "opt/calib/pyvenv.cfg").write_text("home = /usr/local/bin\nversion = 3.11.9\n")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n"
    )
    return script, tmp_path


def test_an_images_bill_of_materials_has_its_python_and_debian_packages(described, tmp_path):
    script, root = described
    lock = tmp_path / "lock.txt"
    lock.write_text(f"# a comment\nnumpy=={metadata.version('numpy')} --hash=sha256:{'a' * 64}\n")
    text, notices = script.describe("calib:1.0", root, lock)
    bom = json.loads(text)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["component"]["name"] == "calib"
    parts = {part["purl"]: part for part in bom["components"]}
    numpy = parts[f"pkg:pypi/numpy@{metadata.version('numpy')}"]
    assert numpy["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert "BSD" in json.dumps(numpy["licenses"])
    assert parts.keys() == {
        numpy["purl"],
        f"pkg:pypi/filelock@{metadata.version('filelock')}",
        "pkg:generic/python@3.11.9",
        "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12",
    }
    (whole,) = [given for given in bom["dependencies"] if given["ref"] == "calib:1.0"]
    assert len(whole["dependsOn"]) == 4
    assert f"numpy {metadata.version('numpy')}\n" in notices
    assert "Redistribution and use in source and binary forms" in notices  # the text itself, not its name


def test_a_package_of_the_lock_that_is_not_in_the_image_is_told(described, tmp_path):
    script, root = described
    lock = tmp_path / "lock.txt"
    lock.write_text(f"torch==2.13.0+cpu --hash=sha256:{'a' * 64}\n")
    with pytest.raises(ValueError, match=r"calib:1\.0: has no torch"):
        script.describe("calib:1.0", root, lock)


class Advisories(BaseHTTPRequestHandler):
    """A service that speaks OSV's query: it knows of one vulnerability, in every version of urllib3."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        affected = {
            "package": asked["package"],
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
            "versions": [asked["version"]],
        }
        known = [{"id": "PYSEC-2026-1", "summary": "", "details": "", "aliases": [], "affected": [affected]}]
        answer = json.dumps({"vulns": known} if asked["package"]["name"] == "urllib3" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def audit(url: str) -> subprocess.CompletedProcess[str]:
    """Run the check against a service of advisories."""
    return subprocess.run(
        [ROOT / "scripts" / "audit_images.sh", "-s", "osv", "--osv-url", url],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_known_vulnerability_in_the_locks_is_told() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = audit(f"http://127.0.0.1:{server.server_address[1]}/v1/query")
        server.shutdown()
    assert found.returncode == 1, found.stderr
    assert re.search(r"^urllib3 +[\d.]+ +PYSEC-2026-1 +99\.0$", found.stdout, re.MULTILINE)
    assert "Found 1 known vulnerability in 1 package" in found.stderr


def test_a_service_of_advisories_that_does_not_answer_is_no_all_clear() -> None:
    found = audit("http://127.0.0.1:9/v1/query")
    assert found.returncode == 1
    assert "No known vulnerabilities found" not in found.stderr
