#!/bin/bash
# Recordings to clips: 01_data_processing.py, on a node without a GPU, in the cluster's default queue.
#
#     RAW_DIR=recordings METADATA=metadata.csv NAME=wetland bsub < jobs/01.sh
#     RAW_DIR=recordings NAME=wetland SHARDS=8 bsub -J "01[1-8]" < jobs/01.sh    # then, when all have ended:
#     RAW_DIR=recordings NAME=wetland MERGE_SHARDS=8 bsub < jobs/01.sh
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or more GPUs; jobs/submit.sh submits a whole study.
#
#BSUB -J 01
#BSUB -n 8
#BSUB -R "span[hosts=1] rusage[mem=2GB]"
#BSUB -W 12:00
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/01.%J.out
#BSUB -e logs/01.%J.err
#
#SBATCH --job-name=01
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/01.%j.out
#SBATCH --error=logs/01.%j.err

source jobs/stage.sh || exit 2

[[ -n ${RAW_DIR:-} ]] || fail "RAW_DIR=<folder of recordings> is missing" 2
flags=(--raw_dir "$RAW_DIR" --split_by "$SPLIT_BY")
if [[ -n $FOLDS ]]; then
    flags+=(--folds "$FOLDS") # without --seed: the folds are the same for each SEED
else
    flags+=(--seed "$SEED")
fi
flags+=(--output_dir "$DATA_DIR")
if [[ -n ${METADATA:-} ]]; then
    flags+=(--metadata "$METADATA")
fi
if [[ -n $JOB_CORES ]]; then
    flags+=(--num_workers "$JOB_CORES")
fi
share_among_jobs 01
run_stage 01_data_processing.py "${DATA_ARGS:-}" "${flags[@]}" "$@"
