#!/bin/bash
# Analysis of every layer: 04_analysis.py.
#
#     NAME=wetland bsub < jobs/04.sh
#     NAME=wetland RUN_DIR=facebook/wav2vec2-base ANALYSIS_DIR=analysis_results/base bsub < jobs/04.sh
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or more GPUs; jobs/submit.sh submits a whole study.
#
#BSUB -J 04
#BSUB -q gpua100
#BSUB -gpu "num=1:mode=exclusive_process"
#BSUB -n 4
#BSUB -R "span[hosts=1] rusage[mem=8GB]"
#BSUB -W 8:00
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/04.%J.out
#BSUB -e logs/04.%J.err
#
#SBATCH --job-name=04
#SBATCH --gres=gpu:1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=8:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/04.%j.out
#SBATCH --error=logs/04.%j.err

: "${MAX_ATTEMPTS:=3}" # each start begins again, except the hidden states
source jobs/stage.sh || exit 2

run_on_gpus 04_analysis.py "${ANALYSE_ARGS:-}" --model_dir "$RUN_DIR" --data_dir "$DATA_DIR" \
    ${FOLD:+--fold "$FOLD"} --seed "$SEED" --output_dir "$ANALYSIS_DIR" "$@"
