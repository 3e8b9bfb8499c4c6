#!/usr/bin/env bash
# Cancer on the RSNA 2022 challenge's own DICOM files, cross-validated by woman.
#   pipelines/rsna_detection.sh RSNA_FOLDER WEIGHTS [OUT]
# RSNA_FOLDER holds train_images/ and train.csv; WEIGHTS are DINOv2's ViT-S/14.
# Hardware: one GPU with 16 GB, and about 400 GB of disk for the files and the store.
# Hours: not measured.
# Expect: not measured, since we do not have these files. Age and machine alone predict cancer a
# little here (.657 with grey values on a repackaging): read the strata before the AUC.
set -euo pipefail
rsna=$1
weights=$2
out=${3:-rsna}
configs=$(dirname "$0")/../configs
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs

# 1. The files give neither modality nor view: both come from the set's table. Levels 1024 and 2048
# serve both recipes. Look at the crops.
mammo-pd preprocess "$rsna/train_images" --labels "$rsna/train.csv" --source rsna \
  --levels 2048,1024 --contact-sheet "$out/crops.png"

# 2. Five folds of women; a tenth of the women of the other folds validates.
mammo-pd split --folds 5 --val 0.1 --name five

# 3. Every fold at 1024, then the first at 2048. Killed and started again, each goes on.
mammo-pd cv --split five --config "$configs/rsna_1024.yaml" --weights "$weights" --out "$out/cv1024"
mammo-pd train --split five --fold 0 --config "$configs/rsna_2048.yaml" --weights "$weights"

# 4. The fold at 2048, at the prevalence of a screening programme.
mammo-pd evaluate --prevalence 0.006
