#!/usr/bin/env bash
# Several nodes of a SLURM cluster: preprocess on Dask, train with torchrun, evaluate on one node.
#   sbatch pipelines/slurm_nodes.sh DICOM_FOLDER [OUT]
# DICOM_FOLDER holds labels.csv beside the files; it and OUT lie where every node sees them. The
# environment in which mammo-pd is installed, with '[cluster]', is active where this is typed.
# Hardware: two nodes with 4 GPUs and 32 cores each, as named below; change it to what you have.
# Hours: not measured on a cluster; what was tried instead is in docs/clusters.md.
# Expect: what one node gives, up to rounding: draws depend on neither the devices nor the nodes.
#SBATCH --job-name=mammo-pd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=mammo-pd-%j.log
set -euo pipefail
dicom=$1
out=${2:-slurm}
gpus=${SLURM_GPUS_ON_NODE:-4}
# Under sbatch the script is a copy elsewhere; what is typed is relative to the checkout.
configs=${SLURM_SUBMIT_DIR:-.}/configs
export MAMMO_PD_STORE=$out/store MAMMO_PD_RUNS=$out/runs
mkdir -p "$out"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# 1. A Dask scheduler here, and on every node one worker process for each core. They end with step 1.
dask scheduler --host "$head" --port 8786 &
scheduler=$!
srun dask worker "tcp://$head:8786" --nworkers "$SLURM_CPUS_PER_TASK" --nthreads 1 --no-dashboard &
workers=$!
trap 'kill $workers $scheduler 2> /dev/null || true' EXIT
mammo-pd preprocess "$dicom" --labels "$dicom/labels.csv" --scheduler "tcp://$head:8786"
kill $workers $scheduler 2> /dev/null || true
wait || true

# 2. By woman, once.
mammo-pd split

# 3. One torchrun on each node, one process on each GPU. A job that starts again goes on.
command=(train --config "$configs/full_resolution.yaml" --batch-size 64)
if compgen -G "$MAMMO_PD_RUNS/*/last.safetensors" > /dev/null; then
  command=(train --resume)
fi
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$gpus" --rdzv-backend c10d \
  --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" -m mammo_pd "${command[@]}"

# 4. Scores on all patches, and the report.
mammo-pd evaluate
