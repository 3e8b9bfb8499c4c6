#!/usr/bin/env bash
# One mammo-pd command in Apptainer (docs/clusters.md):
#   docker/apptainer.sh COMMAND ...
# These name where things lie on the host:
#   MAMMO_PD_SIF    the image                                   mammo-pd.sif by default
#   MAMMO_PD_DICOM  the archive, read-only, as /dicom           may be absent after preprocess
#   MAMMO_PD_STORE  the store, as /store
#   MAMMO_PD_RUNS   runs and reports, as /runs
# MLFLOW_TRACKING_URI and the like are passed on where they are set.
set -euo pipefail

fail() {
    echo "docker/apptainer.sh: $*" >&2
    exit 2
}

sif=${MAMMO_PD_SIF:-mammo-pd.sif}
[ -e "$sif" ] || fail "there is no image $sif; name it in MAMMO_PD_SIF."
binds=()
bind() {
    [ -d "$1" ] || fail "$1 is no folder; make it, or name another in $2."
    binds+=(--bind "$1:$3")
}
bind "${MAMMO_PD_STORE:?names the folder for the store}" MAMMO_PD_STORE /store
bind "${MAMMO_PD_RUNS:?names the folder for runs and reports}" MAMMO_PD_RUNS /runs
[ -z "${MAMMO_PD_DICOM:-}" ] || bind "$MAMMO_PD_DICOM" MAMMO_PD_DICOM /dicom:ro

# A node's /tmp is everybody's: caches that are compiled and executed go into a folder that only
# this user can write to, and stay there for the next job.
scratch=${TMPDIR:-/tmp}/mammo-pd-$(id -u)
mkdir -m 700 "$scratch" 2> /dev/null || true
if [ ! -d "$scratch" ] || [ ! -O "$scratch" ] || [ -L "$scratch" ]; then
    fail "$scratch is no folder of yours; set TMPDIR."
fi

gpu=()
if [ -e /dev/nvidiactl ]; then gpu=(--nv); fi
# With --cleanenv nothing else of the host's reaches the image: SLURM's own variables would have
# Lightning expect one task for each GPU, where mammo-pd starts its processes itself.
for variable in MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD \
    MLFLOW_TRACKING_TOKEN OMP_NUM_THREADS CUDA_VISIBLE_DEVICES USER LOGNAME; do
    if [ -n "${!variable:-}" ]; then export "APPTAINERENV_$variable=${!variable}"; fi
done

# exec: SLURM's signals reach mammo-pd, and no shell in between ends by them.
exec apptainer run --contain --cleanenv --pwd /runs ${gpu[@]+"${gpu[@]}"} \
    "${binds[@]}" --bind "$scratch:/tmp" "$sif" "$@"
