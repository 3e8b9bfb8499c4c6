#!/usr/bin/env bash
# From nothing to a ROC report on phantom mammograms, command by command, as mammo-pd demo does.
#   pipelines/demo.sh [OUT]
# Copy this file and put your own folder and label table in place of step 0.
# Hardware: two CPU cores, 2 GiB of memory.
# Hours: under 0.1 (a few minutes).
# Expect: an AUC above chance on phantoms, which says nothing about cancer.
set -euo pipefail
out=${1:-demo}
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs

# 0. Images: real DICOM files in the style of several vendors, and labels.csv beside them.
python - "$out/dicom" <<'PYTHON'
import sys
from pathlib import Path

from mammo_pd.phantoms import PhantomSettings, write_phantoms

if __name__ == "__main__":
    write_phantoms(Path(sys.argv[1]), PhantomSettings(patients=120, scale=0.3), 2)
PYTHON

# 1. DICOM to a store: grey scale, crop, pyramid, manifest. Look at the crops in crops.png.
mammo-pd preprocess "$out/dicom" --labels "$out/dicom/labels.csv" --contact-sheet "$out/crops.png"

# 2. Patients to train, val and test, once for all runs.
mammo-pd split --fractions 0.6 0.1 0.3

# 3. A tiny ViT on a quarter of the patches.
mammo-pd train --config "$(dirname "$0")/../configs/smoke_cpu.yaml"

# 4. Scores on all patches, and the report.
mammo-pd evaluate
