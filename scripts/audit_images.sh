#!/usr/bin/env bash
# Asks for known vulnerabilities of all Python packages in the images, by their locks. Advisories come from
# PyPI's JSON API; a package without an answer there is an error, not a clean one.
# Usage: [PYTHON=.venv/bin/python] scripts/audit_images.sh [options for pip-audit]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
# A local label (torch's "+cpu") names a build; advisories name the version.
sed -nE 's/^([A-Za-z0-9._-]+==[A-Za-z0-9.!]+).*/\1/p' images/requirements-*.txt | sort -u >"$pins"
echo "Asking about $(wc -l <"$pins") packages" >&2
"${PYTHON:-python3}" -m pip_audit --strict --no-deps --disable-pip --progress-spinner off -r "$pins" "$@"
