#!/usr/bin/env bash
# Builds an image, calib:<version> (CPU) or calib:<version>-cuda, with Docker; with BuildKit where it is installed.
# Usage: [PYTHON=.venv/bin/python] scripts/build_image.sh cpu|cuda [options for `docker build`]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-}
case $kind in
cpu) suffix= ;;
cuda) suffix=-cuda ;;
*)
    echo "Usage: scripts/build_image.sh cpu|cuda [options for docker build]" >&2
    exit 2
    ;;
esac
shift
python=${PYTHON:-python3}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' calib_core/version.py)
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ "$commit" = unknown ] || git diff --quiet HEAD -- || commit+=-dirty

if [ "$kind" = cpu ]; then # torch's CPU build is on no ordinary index: pip's settings on this machine find it
    torch=$(mktemp)
    trap 'rm -f "$torch"' EXIT
    grep '^torch==' images/requirements-cpu.txt >"$torch"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest images/wheels \
        --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 -r "$torch"
fi
if ! docker buildx version >/dev/null 2>&1; then
    # Newer clients refuse to build without buildx unless they are told so; older ones have BuildKit without it.
    export DOCKER_BUILDKIT="${DOCKER_BUILDKIT:-0}"
fi
docker build --platform linux/amd64 --file "images/$kind/Dockerfile" --tag "calib:$version$suffix" \
    --build-arg "VERSION=$version" --build-arg "COMMIT=$commit" "$@" .
docker image inspect --format "calib:$version$suffix: {{.Size}} bytes" "calib:$version$suffix"
