#!/usr/bin/env bash
# Writes images/requirements-cpu.txt and images/requirements-cuda.txt: all that an image installs, at the versions
# of constraints.txt, each with the SHA-256 of the one file that fits the image (Python 3.11, Linux on x86-64).
# pip's own settings say where packages come from. The CPU lock takes torch's CPU build, so PyTorch's CPU index
# has to be among them (PIP_EXTRA_INDEX_URL), or a folder with its wheel (PIP_FIND_LINKS).
# Usage: [PYTHON=python3.11] scripts/lock_images.sh      (downloads about 3 GB, most of it for CUDA)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=train,kubeflow # kubeflow brings kfp, whose executor starts every component inside its container
python=${PYTHON:-python3.11}

platform=$("$python" -c 'import platform, sys; print(*sys.version_info[:2], platform.system(), platform.machine())')
if [ "$platform" != "3 11 Linux x86_64" ]; then
    echo "$python is for $platform; the images need files for 3 11 Linux x86_64: run this in the image's base," >&2
    echo "docker run --rm -v \"\$PWD:/src\" -w /src python:3.11-slim scripts/lock_images.sh" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
torch=$(sed -n 's/^torch==//p' constraints.txt)

lock() { # lock NAME TORCH-REQUIREMENT EXTRAS: resolves without installing anything, writes the lock of one image
    echo "Resolving the $1 image" >&2
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed \
        --prefer-binary --report "$work/$1.json" -c constraints.txt "$2" setuptools ".[$3]"
    "$work/venv/bin/python" - "$work/$1.json" "images/requirements-$1.txt" <<'PYTHON'
import json
import sys
from pathlib import Path

report, target = map(Path, sys.argv[1:])
pins = {}
for item in json.loads(report.read_text())["install"]:
    if archive := item["download_info"].get("archive_info"):  # this project itself is a folder, and has none
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        hashes = archive.get("hashes") or dict([archive["hash"].split("=")])  # pip before 23.1 has `hash` alone
        pins[name.lower()] = f"{name}=={version} --hash=sha256:{hashes['sha256']}"
head = "# Written by scripts/lock_images.sh from constraints.txt; to change it, run that script.\n"
target.write_text(head + "".join(f"{pins[name]}\n" for name in sorted(pins)))
print(f"Wrote {target}: {len(pins)} packages", file=sys.stderr)
PYTHON
}

lock cpu "torch==$torch+cpu" "$extras"
lock cuda "torch===$torch" "$extras,qlora" # three signs: the build without a local label, which is the one with CUDA
