#!/bin/bash
# Remove blocks from a model: 07_manual_pruning.py, on a node without a GPU, in the default queue.
#
#     NAME=wetland bsub < jobs/07.sh                                           # the blocks that 05 chose
#     NAME=wetland KEEP_ARGS="--n_layers 6" bsub < jobs/07.sh                  # the best 6 of 05
#     NAME=wetland KEEP_ARGS="--keep_layers 0-3,7" bsub < jobs/07.sh
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or more GPUs; jobs/submit.sh submits a whole study.
#
#BSUB -J 07
#BSUB -n 1
#BSUB -R "span[hosts=1] rusage[mem=8GB]"
#BSUB -W 0:30
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/07.%J.out
#BSUB -e logs/07.%J.err
#
#SBATCH --job-name=07
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G
#SBATCH --time=0:30:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/07.%j.out
#SBATCH --error=logs/07.%j.err

source jobs/stage.sh || exit 2

flags=(--model_dir "$RUN_DIR" --seed "$SEED" --output_dir "$(variant_of "$RUN_DIR" pruned)")
if ! names_layers; then
    flags+=(--from "$(variant_of "$RESULTS_DIR" sweep)/best.json")
fi
run_stage 07_manual_pruning.py "${KEEP_ARGS:-}" "${flags[@]}" "$@"
