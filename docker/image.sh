#!/usr/bin/env bash
# What make image and make image-test do, with whichever of Docker, Podman and Buildah answers.
#   IMAGE              name of the image
#   ENGINE             one of the three
#   BASE_IMAGE         another base
#   TORCH_CONSTRAINTS  another list of PyTorch and what it needs, within the checkout's docker/
#   PIP_CONF           a file of pip's settings, such as where your registry is
#   CA_CERT            a file of certificate authorities that pip shall trust
#   BUILD_FLAGS        anything else for the build
set -euo pipefail
cd "$(dirname "$0")/.."
IMAGE=${IMAGE:-mammo-pd}

find_engine() {
    for engine in ${ENGINE:-docker podman buildah}; do
        # Docker's client is often there without its daemon.
        if command -v "$engine" > /dev/null && "$engine" info > /dev/null 2>&1; then
            echo "$engine"
            return
        fi
    done
    echo "no engine answers (${ENGINE:-docker, podman, buildah}); start one, or name it in ENGINE." >&2
    exit 1
}

# Builds one stage of the Dockerfile: build STAGE NAME
build() {
    local flags=(--file docker/Dockerfile --target "$1" --tag "$2")
    if [ -n "${BASE_IMAGE:-}" ]; then flags+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
    if [ -n "${TORCH_CONSTRAINTS:-}" ]; then
        flags+=(--build-arg "TORCH_CONSTRAINTS=$TORCH_CONSTRAINTS")
    fi
    if [ -n "${PIP_CONF:-}" ]; then flags+=(--secret "id=pip.conf,src=$PIP_CONF"); fi
    if [ -n "${CA_CERT:-}" ]; then flags+=(--secret "id=ca.pem,src=$CA_CERT"); fi
    if [ "$1" = mammo-pd ]; then
        local labels=org.opencontainers.image
        # No arguments of the build: Podman 4 takes a layer out of its cache though they have changed.
        flags+=(--label "$labels.version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' mammo_pd/__init__.py)")
        flags+=(--label "$labels.revision=$(git describe --always --dirty 2> /dev/null || echo unknown)")
    fi
    # Secrets need BuildKit, where it is not the default.
    # shellcheck disable=SC2086
    DOCKER_BUILDKIT=1 "$engine" build "${flags[@]}" ${BUILD_FLAGS:-} .
}

engine=$(find_engine)
case ${1:-} in
    build)
        build mammo-pd "$IMAGE"
        ;;
    test)
        if [ "$engine" = buildah ]; then
            echo "Buildah runs no image read-only; make image-test needs Docker or Podman." >&2
            exit 1
        fi
        build test "$IMAGE-test"
        ENGINE=$engine IMAGE=$IMAGE docker/test_image.sh
        ;;
    *)
        echo "usage: docker/image.sh build | test" >&2
        exit 2
        ;;
esac
