#!/usr/bin/env bash
# Write the image's locks anew from pyproject.toml and constraints.txt (make lock; needs uv).
# Each names versions and the hashes of their files, and no address:
#   torch.txt         PyTorch and all that it needs
#   requirements.txt  what else mammo-pd needs, with its extras but those for a GPU's decoder and for
#                     development: where the image runs nothing can be installed
#   test.txt          what its tests need beside both
# A version that is in a lock already and may stay does; delete the lock to have the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    "${UV:-uv}" pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --no-annotate --no-header --constraint constraints.txt "$@"
}

printf '%s\n' torch torchvision |
    compile - --output-file docker/torch.txt

# The part of it that changes with the CUDA version comes from that list alone.
mapfile -t cuda < <(
    grep -oE '^(torch|torchvision|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==' docker/torch.txt |
        tr -d =
)
compile pyproject.toml --extra bundle --extra cluster --extra dicom --extra onnx \
    --constraint docker/torch.txt --output-file docker/requirements.txt \
    "${cuda[@]/#/--no-emit-package=}"

printf '%s\n' av distributed hypothesis jsonschema pytest pytest-xdist |
    compile - --constraint docker/torch.txt --constraint docker/requirements.txt \
        --output-file docker/test.txt
