#!/usr/bin/env bash
# Malignant against benign abnormalities on CBIS-DDSM's digitised films, cross-validated by woman.
#   pipelines/cbis_ddsm.sh FILMS_FOLDER TABLES_FOLDER WEIGHTS [OUT]
# FILMS_FOLDER holds the full mammograms alone (without masks and cut-outs); TABLES_FOLDER the four
# tables mass_ and calc_case_description_train_ and test_set.csv; WEIGHTS are DINOv2's ViT-S/14.
# Hardware: one GPU with 16 GB, and about 250 GB of disk for the films and the store.
# Hours: not measured.
# Expect: not measured, since we do not have the films. There are no normal women in the set, so
# its AUC is of malignant against benign. The published split does not keep a woman on one side, and
# is not used.
set -euo pipefail
films=$1
tables=$2
weights=$3
out=${4:-cbis_ddsm}
configs=$(dirname "$0")/../configs
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs

# 1. A film with a mass and a calcification exists twice, and gets one label from both.
mammo-pd preprocess "$films" --labels "$tables" --source cbis-ddsm \
  --levels 1024 --contact-sheet "$out/crops.png"

# 2. Five folds of women; 15 % of the women of the other folds validate.
mammo-pd split --folds 5 --val 0.15 --name five

# 3. One run for each fold; nearly half of the films are positive, so none is drawn more often.
mammo-pd cv --split five --config "$configs/rsna_1024.yaml" --weights "$weights" \
  --set training.positive_share=null --set training.balance_within=null --out "$out/cv"
