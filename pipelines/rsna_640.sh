#!/usr/bin/env bash
# Cancer on a public repackaging of RSNA 2022: JPEG, 8 bits, squashed to 640x640; see docs/results.md.
#   pipelines/rsna_640.sh FOLDER WEIGHTS [OUT]
# FOLDER holds images/*.jpg and labels.csv with the columns path, patient_id, laterality, view, age,
# cancer, photometric_interpretation (some files are inverted); WEIGHTS are DINOv2's ViT-S/14.
# Hardware: one GPU with 8 GB.
# Hours: 0.5 (guessed: the five runs were only ever trained beside others).
# Expect: an out-of-fold AUC of .67 to .68 per image within folds (docs/results.md). Age, machine and
# global grey values alone give .657 [.614, .696]; what the model knows besides stands there, too.
set -euo pipefail
films=$1
weights=$2
out=${3:-rsna_640}
export MAMMO_PD_STORE=$out/store

# 1. JPEG files to a store, recorded as lossy. Look at the crops: none may be inverted.
mammo-pd preprocess "$films" --labels "$films/labels.csv" --label-column cancer \
  --contact-sheet "$out/crops.png"

# 2. Five folds of women; 15 % of the women of the other folds validate.
mammo-pd split --folds 5 --val 0.15 --name five

# 3. One run for each fold, and one report. Killed and started again, this goes on where it was.
mammo-pd cv --split five --config configs/finetune.yaml --weights "$weights" --out "$out/cv"
