#!/usr/bin/env bash
# Dense (tissue D) against the rest on mini-MIAS films, cross-validated by woman.
#   pipelines/mias.sh MIAS_FOLDER [OUT]
# MIAS_FOLDER holds images/*.png and labels.csv with the columns file, patient_id, view, tissue (see
# data_manifests/). So few films teach nothing about malignancy, so nothing is claimed about it.
# Hardware: two CPU cores.
# Hours: 0.25 (14 minutes for 212 films on two busy cores, 2026-11-23).
# Expect: an out-of-fold AUC per image of .71 [.60, .80], from .58 in the first fold to .93 in the
# last (the same 212 films). Hours and AUC were measured when a whole fold validated, so that each run
# had three folds to train on instead of nine tenths of four.
set -euo pipefail
films=$1
out=${2:-mias}
export MAMMO_PD_STORE=$out/store

# 1. Films to a store; the label is the tissue. Look at the crops: film markers and strips must be
# gone.
mammo-pd preprocess "$films" --labels "$films/labels.csv" --label-column tissue --positive D \
  --contact-sheet "$out/crops.png"

# 2. Five folds of women: both films of a woman are always in the same fold. A tenth of the women of
# the other folds validates.
mammo-pd split --folds 5 --val 0.1 --name five

# 3. One run for each fold, and a report in which each woman is scored by the run that has not seen
# her. Killed and started again, this goes on where it was.
mammo-pd cv --split five --res 384x240 --keep 0.25 --model vit_tiny_patch16_224 \
  --epochs 12 --batch-size 16 --lr 5e-4 --out "$out/cv"
