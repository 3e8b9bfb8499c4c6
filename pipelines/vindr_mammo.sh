#!/usr/bin/env bash
# BI-RADS 4 and 5 on VinDr-Mammo: a reader's opinion, no outcome.
#   pipelines/vindr_mammo.sh VINDR_FOLDER WEIGHTS [OUT]
# VINDR_FOLDER holds images/ and breast-level_annotations.csv, from PhysioNet; WEIGHTS are DINOv2's
# ViT-S/14.
# Hardware: one GPU with 16 GB, and about 500 GB of disk for the files and the store.
# Hours: not measured.
# Expect: not measured, since we do not have the images. The AUC is of agreement with BI-RADS: never
# compare it with one of cancer. The split is the set's own, so that others' results are comparable.
set -euo pipefail
vindr=$1
weights=$2
out=${3:-vindr}
configs=$(dirname "$0")/../configs
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs

# 1. The table names studies, not women: each study counts as a woman.
mammo-pd preprocess "$vindr/images" --labels "$vindr/breast-level_annotations.csv" \
  --source vindr-mammo --definition birads_4 --levels 1024 --contact-sheet "$out/crops.png"

# 2. Its own 1,000 studies test; of the other 4,000, .15 validate.
mammo-pd split --from-column published_split

# 3. There is no machine_id here, within which the share of positives would be kept.
mammo-pd train --config "$configs/rsna_1024.yaml" --weights "$weights" \
  --set training.balance_within=null

# 4. Scores on all patches, and the report.
mammo-pd evaluate
