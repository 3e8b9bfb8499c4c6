#!/usr/bin/env bash
# Try the image as a hardened host runs it: without a network, on a root that cannot be written to,
# as a user that it does not know, without capabilities. make image-test calls it.
# Everything is written to volumes of the engine's own, which are removed at the end.
set -euo pipefail
engine=${ENGINE:?} image=${IMAGE:?}
name=mammo-pd-test-$$
declare -a volumes=("$name-demo" "$name-store" "$name-runs")

remove() {
    "$engine" rm --force "$name-training" > /dev/null 2>&1 || true
    "$engine" volume rm --force "${volumes[@]}" > /dev/null 2>&1 || true
}
trap remove EXIT

hardened=(
    --init --network none --read-only --tmpfs /tmp:exec --user 4242:4242
    --cap-drop ALL --security-opt no-new-privileges
)
mounts=(
    --volume "$name-demo:/dicom:ro" --volume "$name-store:/store" --volume "$name-runs:/runs"
)

step() { printf '\n== %s\n' "$*"; }
fail() {
    echo "image-test: $*" >&2
    exit 1
}
run() { "$engine" run --rm "${hardened[@]}" "$@"; }
job() { run "${mounts[@]}" "$image" "$@"; }

for volume in "${volumes[@]}"; do "$engine" volume create "$volume" > /dev/null; done
training=(
    train --res 384x304 --keep 0.25 --model test_vit --epochs 12 --batch-size 16 --lr 5e-4
)

step "the image"
"$engine" image inspect --format '{{.Size}} bytes; user {{.Config.User}}; {{json .Config.Labels}}' \
    "$image"

step "--version"
run "$image" --version

step "nothing but /tmp can be written to, and what lies there can be executed"
# shellcheck disable=SC2016
run --entrypoint sh "$image" -c '
    for folder in / /opt/mammo-pd /usr/local /store /runs /dicom; do
        if touch "$folder/written" 2> /dev/null; then echo "$folder was written to"; exit 1; fi
    done
    cp /bin/true /tmp/program && /tmp/program && grep -E "CapEff|NoNewPrivs" /proc/self/status'

step "torch.compile finds its compiler and a place for its caches"
run --entrypoint python "$image" -c '
import torch
print(torch.__version__, torch.compile(torch.sin)(torch.ones(2)).tolist())'

step "without a mount, what would be lost is said"
said=$(run "$image" train --resume 2>&1 || true)
echo "$said"
[[ $said == "warning: no host folder is mounted at /runs"* ]] || fail "no warning"

step "demo"
run --volume "$name-demo:/runs" "$image" demo --out /runs/demo

step "preprocess from a read-only mount"
job preprocess /dicom/demo/dicom --labels /dicom/demo/dicom/labels.csv
job split /store --fractions 0.6 0.1 0.3

step "train, and stop within the training"
"$engine" run --detach --name "$name-training" "${hardened[@]}" "${mounts[@]}" "$image" \
    "${training[@]}" > /dev/null
until "$engine" logs "$name-training" 2>&1 | grep -q "^epoch *2"; do
    [ "$("$engine" inspect --format '{{.State.Running}}' "$name-training")" = true ] || {
        "$engine" logs "$name-training"
        fail "the training ended by itself"
    }
    sleep 0.2
done
began=$SECONDS
"$engine" stop "$name-training" > /dev/null
"$engine" logs "$name-training" 2>&1 | tail -n 5
status=$("$engine" inspect --format '{{.State.ExitCode}}' "$name-training")
echo "stopped within $((SECONDS - began + 1)) s, exit status $status"
[ "$status" = 130 ] || fail "the training was not interrupted but killed"

step "train --resume"
job train --resume

step "evaluate"
job evaluate
run "${mounts[@]}" --entrypoint sh "$image" -c 'ls /runs/*/report'

step "results for a PACS, a model for onnxruntime, a bundle for MONAI"
run "${mounts[@]}" --entrypoint sh "$image" -c 'set -e
    run=$(dirname /runs/*/model.safetensors)
    study=$(dirname "$(find /dicom/demo/dicom -name "*.dcm" | head -n 1)")
    mammo-pd predict "$run" "$study" --out /runs/new --dicom
    find /runs/new -name "*.dcm" | grep -q .
    mammo-pd export "$run" --onnx /runs/model.onnx
    mammo-pd export "$run" --bundle /runs/bundle
    cd /runs/bundle
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir "$study"'

step "the fast tests, of the package that is installed in the image"
# torchrun, which one of them starts, looks its own host up by name, and finds none without a network.
run --hostname localhost --env OMP_NUM_THREADS=1 "$image-test" \
    --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --quiet

step "all of it worked"
