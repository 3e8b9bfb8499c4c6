#!/usr/bin/env bash
# The whole job in the container image, by Apptainer, without Docker and without a network.
#   pipelines/apptainer.sh IMAGE.sif DICOM_FOLDER [OUT]
# IMAGE.sif is made as docs/clusters.md says; DICOM_FOLDER holds labels.csv beside the files.
# Hardware: as for the commands; a GPU is used where there is one.
# Hours: those of the commands; the image starts in seconds.
# Expect: what the same commands give without a container.
set -euo pipefail
here=$(dirname "$0")/..
export MAMMO_PD_SIF=$1 MAMMO_PD_DICOM=$2
out=${3:-apptainer}
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs
mkdir -p "$MAMMO_PD_STORE" "$MAMMO_PD_RUNS"

# /dicom, /store and /runs are those three folders in the container.
"$here/docker/apptainer.sh" preprocess /dicom --labels /dicom/labels.csv \
  --contact-sheet /runs/crops.png
"$here/docker/apptainer.sh" split
"$here/docker/apptainer.sh" train --config /opt/mammo-pd/configs/res1024_keep25.yaml
"$here/docker/apptainer.sh" evaluate
