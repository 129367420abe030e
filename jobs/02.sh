#!/bin/bash
# Fine-tuning: 02_finetuning.py. At the wall-time it saves a checkpoint, returns to the queue and continues later.
#
#     NAME=wetland BASE_MODEL=facebook/wav2vec2-base bsub < jobs/02.sh
#     NAME=wetland NUM_GPUS=4 bsub -n 16 -gpu "num=4:mode=exclusive_process" < jobs/02.sh
#     NAME=wetland NUM_GPUS=4 jobs/02.sh                          # on a node that only you use
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or more GPUs; jobs/submit.sh submits a whole study.
#
#BSUB -J 02
#BSUB -q gpua100
#BSUB -gpu "num=1:mode=exclusive_process"
#BSUB -n 4
#BSUB -R "span[hosts=1] rusage[mem=8GB]"
#BSUB -W 24:00
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/02.%J.out
#BSUB -e logs/02.%J.err
#
#SBATCH --job-name=02
#SBATCH --gres=gpu:1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/02.%j.out
#SBATCH --error=logs/02.%j.err

source jobs/stage.sh || exit 2

run_on_gpus 02_finetuning.py "${TRAIN_ARGS:-}" --base_model "$BASE_MODEL" --data_dir "$DATA_DIR" \
    ${FOLD:+--fold "$FOLD"} --seed "$SEED" --output_dir "$RUN_DIR" "$@"
