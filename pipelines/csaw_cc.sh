#!/usr/bin/env bash
# The paper's question on CSAW-CC: what does dropping patches cost? ViT-B/16 at 896x896, keep .25, .5
# and 1, the same women, the same seed, one comparison.
#   pipelines/csaw_cc.sh CSAW_FOLDER WEIGHTS [OUT]
# CSAW_FOLDER holds the DICOM files and CSAW-CC_breast_cancer_screening_data.csv; WEIGHTS are timm's
# vit_base_patch16_224.augreg_in21k.
# Hardware: one GPU with 24 GB, and about 1 TB of disk for the files and the store.
# Hours: not measured.
# Expect: not measured, since we do not have the images. The paper's figure 1, on the larger CSAW: 66.6,
# 67.0 and 66.45 % AUC. The label is of risk within two years: never compare it with detection.
set -euo pipefail
csaw=$1
weights=$2
out=${3:-csaw_cc}
configs=$(dirname "$0")/../configs
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs

# 1. Positive: cancer in this breast within 729 days of the exam.
mammo-pd preprocess "$csaw" --labels "$csaw/CSAW-CC_breast_cancer_screening_data.csv" \
  --source csaw-cc --definition within_2_years --levels 1024 --contact-sheet "$out/crops.png"

# 2. By woman, once for all three.
mammo-pd split --fractions 0.7 0.1 0.2

# 3. Three runs that differ in the keep rate alone, each scored on all patches. What was begun goes on.
for keep in keep100 keep50 keep25; do
  if compgen -G "$out/$keep/*/last.safetensors" > /dev/null; then
    mammo-pd train --resume --runs "$out/$keep"
  else
    mammo-pd train --config "$configs/csaw_$keep.yaml" --weights "$weights" --runs "$out/$keep"
  fi
  mammo-pd evaluate --runs "$out/$keep"
done

# 4. Is a quarter of the patches not worse by .02 or more?
mammo-pd compare "$out"/keep100/2* "$out"/keep50/2* "$out"/keep25/2* --margin 0.02 \
  --out "$out/comparison"
