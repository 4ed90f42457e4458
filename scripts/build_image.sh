#!/usr/bin/env bash
# Builds an image, calib:<version> (CPU) or calib:<version>-cuda, with Docker; with BuildKit where it is installed.
# Then writes what is inside it to dist/: an SBOM, and the terms of the software of others.
# Usage: [PYTHON=.venv/bin/python] [PYTHON_IMAGE=BASE] scripts/build_image.sh cpu|cuda [options for `docker build`]
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

# The base is taken once, by digest: both stages are built on it, and the image's labels say which one it was.
base=${PYTHON_IMAGE:-$(sed -n 's/^ARG PYTHON_IMAGE=//p' "images/$kind/Dockerfile")}
docker image inspect "$base" >/dev/null 2>&1 || docker pull --quiet "$base" >/dev/null
digest=$(docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$base" | sed -n '1s/.*@//p')
if [ -n "$digest" ]; then
    name=${base%@*}
    [[ ${name##*/} != *:* ]] || name=${name%:*} # the tag, not a registry's port
    pinned=$name@$digest
else
    pinned=$base # made on this machine: no registry has given it a digest
    digest=$(docker image inspect --format '{{.Id}}' "$base")
    echo "The base $base comes from no registry; built on what it is here, $digest" >&2
fi

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
image=calib:$version$suffix
docker build --platform linux/amd64 --file "images/$kind/Dockerfile" --tag "$image" \
    --build-arg "VERSION=$version" --build-arg "COMMIT=$commit" --build-arg "PYTHON_IMAGE=$pinned" \
    --label "org.opencontainers.image.base.name=$base" --label "org.opencontainers.image.base.digest=$digest" "$@" .
"$python" scripts/describe_image.py "$image" "images/requirements-$kind.txt" dist
docker image inspect --format "$image: {{.Size}} bytes, base $base ($digest)" "$image"
