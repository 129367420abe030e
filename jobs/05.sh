#!/bin/bash
# Search for blocks that can be removed: 05_pruning.py.
#
#     NAME=wetland bsub < jobs/05.sh
#     NAME=wetland PRUNE_ARGS="--strategies greedy beam --heal 5" bsub < jobs/05.sh
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or more GPUs; jobs/submit.sh submits a whole study.
#
#BSUB -J 05
#BSUB -q gpua100
#BSUB -gpu "num=1:mode=exclusive_process"
#BSUB -n 4
#BSUB -R "span[hosts=1] rusage[mem=8GB]"
#BSUB -W 12:00
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/05.%J.out
#BSUB -e logs/05.%J.err
#
#SBATCH --job-name=05
#SBATCH --gres=gpu:1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/05.%j.out
#SBATCH --error=logs/05.%j.err

source jobs/stage.sh || exit 2

run_on_gpu 05_pruning.py "${PRUNE_ARGS:-}" --model_dir "$RUN_DIR" --data_dir "$DATA_DIR" \
    ${FOLD:+--fold "$FOLD"} --seed "$SEED" --output_dir "$(variant_of "$RESULTS_DIR" sweep)" "$@"
