#!/bin/bash
# Detections in long recordings: 08_detection.py, on a node without a GPU, in the cluster's default queue.
#
#     NAME=wetland FIELD_DIR=night bsub < jobs/08.sh
#     NAME=wetland FIELD_DIR=night SHARDS=8 bsub -J "08[1-8]" < jobs/08.sh    # then, when all have ended:
#     NAME=wetland FIELD_DIR=night MERGE_SHARDS=8 bsub < jobs/08.sh
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or a GPU, which it uses if there is one; jobs/submit.sh submits a whole study.
#
#BSUB -J 08
#BSUB -n 8
#BSUB -R "span[hosts=1] rusage[mem=2GB]"
#BSUB -W 12:00
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/08.%J.out
#BSUB -e logs/08.%J.err
#
#SBATCH --job-name=08
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/08.%j.out
#SBATCH --error=logs/08.%j.err

source jobs/stage.sh || exit 2

[[ -n ${FIELD_DIR:-} ]] || fail "FIELD_DIR=<folder of recordings to listen to> is missing" 2
flags=(--model_dir "$RUN_DIR" --raw_dir "$FIELD_DIR" --output_dir "$DETECTIONS_DIR")
if [[ -n $JOB_CORES ]]; then
    flags+=(--num_workers "$JOB_CORES")
fi
share_among_jobs 08
run_stage 08_detection.py "${DETECT_ARGS:-}" "${flags[@]}" "$@"
