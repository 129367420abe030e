#!/bin/bash
# Scores of a model: 03_model_validation.py.
#
#     NAME=wetland bsub < jobs/03.sh
#     NAME=wetland RUN_DIR=runs/half RESULTS_DIR=validation_results/half bsub < jobs/03.sh
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or more GPUs; jobs/submit.sh submits a whole study.
#
#BSUB -J 03
#BSUB -q gpua100
#BSUB -gpu "num=1:mode=exclusive_process"
#BSUB -n 4
#BSUB -R "span[hosts=1] rusage[mem=8GB]"
#BSUB -W 2:00
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/03.%J.out
#BSUB -e logs/03.%J.err
#
#SBATCH --job-name=03
#SBATCH --gres=gpu:1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=2:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/03.%j.out
#SBATCH --error=logs/03.%j.err

: "${MAX_ATTEMPTS:=3}" # each start begins again from the beginning
source jobs/stage.sh || exit 2

run_on_gpus 03_model_validation.py "${VALIDATE_ARGS:-}" --model_dir "$RUN_DIR" --data_dir "$DATA_DIR" \
    ${FOLD:+--fold "$FOLD"} --seed "$SEED" --output_dir "$RESULTS_DIR" "$@"
