#!/usr/bin/env bash
# Cancer on EMBED's open data: 2D images alone, by exam and breast.
#   pipelines/embed.sh IMAGES_FOLDER TABLES_FOLDER WEIGHTS [OUT]
# IMAGES_FOLDER holds cohort_1/ and cohort_2/; TABLES_FOLDER EMBED_OpenData_clinical.csv and
# EMBED_OpenData_metadata.csv, whole or reduced; WEIGHTS are DINOv2's ViT-S/14.
# Hardware: one GPU with 16 GB; 16 or more cores for step 1, and several TB of disk.
# Hours: not measured.
# Expect: not measured, since we do not have the images. Recalled breasts without pathology have no
# label; synthetic views are images, too, and the report's strata by image_type tell them apart.
set -euo pipefail
images=$1
tables=$2
weights=$3
out=${4:-embed}
configs=$(dirname "$0")/../configs
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs

# 1. One row of the clinical table is one finding: they are joined by exam and side. One level keeps
# the store small. Killed and typed again, it goes on.
mammo-pd preprocess "$images" --labels "$tables" --source embed \
  --levels 1024 --contact-sheet "$out/crops.png"

# 2. By woman.
mammo-pd split --fractions 0.7 0.1 0.2

# 3. Far more negatives than positives: the recipe draws a tenth positive, and corrects the scores.
mammo-pd train --config "$configs/rsna_1024.yaml" --weights "$weights" \
  --set training.balance_within=null

# 4. Scores on all patches, and the report at the prevalence of a screening programme.
mammo-pd evaluate --prevalence 0.006
