#!/bin/bash
# A CNN as the baseline: 06_cnn.py. At the wall-time it saves a checkpoint, returns to the queue and continues later.
#
#     NAME=wetland bsub < jobs/06.sh
#     NAME=wetland CNN_ARGS="--architecture waveform" bsub < jobs/06.sh
#
# Submit it from the folder that contains jobs/. docs/hpc.md lists its environment variables, and how to request another
# queue, more time or more GPUs; jobs/submit.sh submits a whole study.
#
#BSUB -J 06
#BSUB -q gpua100
#BSUB -gpu "num=1:mode=exclusive_process"
#BSUB -n 4
#BSUB -R "span[hosts=1] rusage[mem=8GB]"
#BSUB -W 24:00
#BSUB -wa USR2 -wt 10
#BSUB -r
#BSUB -Q "75"
#BSUB -o logs/06.%J.out
#BSUB -e logs/06.%J.err
#
#SBATCH --job-name=06
#SBATCH --gres=gpu:1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/06.%j.out
#SBATCH --error=logs/06.%j.err

source jobs/stage.sh || exit 2

run_on_gpus 06_cnn.py "${CNN_ARGS:-}" --architecture melspectrogram --data_dir "$DATA_DIR" \
    ${FOLD:+--fold "$FOLD"} --seed "$SEED" --output_dir "$(folder_of runs cnn)" "$@"
