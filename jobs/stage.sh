# shellcheck shell=bash
# Shared by the jobs and submit.sh: names of folders, the Python to use, the start of a stage. Sourced, never run.

# Modules, caches and defaults of your cluster (docs/hpc.md); not in git. It comes before `set -u`, which breaks many
# modules.
if [[ -f jobs/site.sh ]]; then
    # shellcheck source=/dev/null
    source jobs/site.sh
fi
set -euo pipefail

# Names, folders and defaults are those of `make pipeline`; utils/core/names.py describes the names.
: "${NAME:=birds}" "${SEED:=42}" "${SPLIT_BY:=recordist}" "${BASE_MODEL:=facebook/wav2vec2-base}" "${OUT_DIR:=.}"
: "${MODEL:=$(basename "$BASE_MODEL")}"
data_set=$NAME in_out_dir=$OUT_DIR/ part=seed-$SEED
[[ $SPLIT_BY == recordist ]] || data_set+=.by-$SPLIT_BY
data_name=$data_set
: "${FOLD:=}" "${FOLDS:=${FOLD:+5}}" # the number of folds; FOLD is tested
if [[ -n $FOLD ]]; then
    part=fold-$FOLD.$part
fi
if [[ -n $FOLDS ]]; then
    data_name+=/folds
fi

# folder_of KIND MODEL: the folder of a run or a result of this kind.
folder_of() {
    echo "${in_out_dir#./}$1/$data_set/$2/$part"
}

# variant_of FOLDER VARIANT: the folder of a variant of that run, for any folder that the user chose.
variant_of() {
    if [[ $1 =~ ^(.+)/((fold-[0-9]+\.)?seed-[0-9]+)$ ]]; then
        echo "${BASH_REMATCH[1]}.$2/${BASH_REMATCH[2]}"
    else
        echo "$1.$2"
    fi
}

: "${DATA_DIR:=${in_out_dir#./}processed_data/$data_name}" "${RUN_DIR:=$(folder_of runs "$MODEL")}"
: "${RESULTS_DIR:=$(folder_of validation_results "$MODEL")}" "${ANALYSIS_DIR:=$(folder_of analysis_results "$MODEL")}"
: "${DETECTIONS_DIR:=$(folder_of detections "$MODEL")}"
: "${PYTHON:=.venv/bin/python}" "${NUM_GPUS:=1}" "${MAX_ATTEMPTS:=20}"

# fail MESSAGE CODE
fail() {
    echo "$1" >&2
    exit "$2"
}

# require_count VARIABLE: its value is an integer of at least 1.
require_count() {
    [[ ${!1} =~ ^[1-9][0-9]*$ ]] || fail "$1=${!1}: expected an integer of at least 1" 2
}

require_count NUM_GPUS
require_count MAX_ATTEMPTS
if [[ -n $FOLDS ]]; then
    require_count FOLDS
fi
if [[ -n $FOLD ]]; then
    require_count FOLD
    ((FOLD <= FOLDS)) || fail "FOLD=$FOLD: expected 1 to $FOLDS, or more FOLDS" 2
fi
command -v "$PYTHON" >/dev/null ||
    fail "there is no $PYTHON: run make venv on a login node, or name another interpreter by PYTHON=…" 3

# The batch system's data on this job, from LSF or Slurm; empty without a batch system.
readonly JOB_ID=${LSB_JOBID:-${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}}
readonly JOB_INDEX=${LSB_JOBINDEX:-${SLURM_ARRAY_TASK_ID:-0}}
readonly JOB_CORES=${LSB_DJOB_NUMPROC:-${SLURM_CPUS_PER_TASK:-}}

# names_layers: true if KEEP_ARGS itself names the layers that 07 keeps, so that no best.json of 05 is needed.
names_layers() {
    [[ " ${KEEP_ARGS:-} " =~ [[:space:]]--(keep_layers|drop_layers|ladder|from)[=[:space:]] ]]
}

# share_among_jobs STAGE: adds to `flags` the share of a job of an array, or the merge of all shares.
share_among_jobs() {
    if [[ -n ${MERGE_SHARDS:-} ]]; then
        require_count MERGE_SHARDS
        flags+=(--merge_shards "$MERGE_SHARDS")
    elif [[ -n ${SHARDS:-} ]]; then
        require_count SHARDS
        ((JOB_INDEX)) || fail "SHARDS=$SHARDS is for a job array: bsub -J \"$1[1-$SHARDS]\" < jobs/$1.sh, \
or sbatch --array=1-$SHARDS jobs/$1.sh" 2
        flags+=(--shard "$JOB_INDEX/$SHARDS")
    fi
}

# run_stage SCRIPT MORE FLAG …: replaces this shell by the stage. MORE, from the environment, is split at white space.
run_stage() {
    become 1 '' "$@"
}

# run_on_gpu SCRIPT MORE FLAG …: the same, for a job that has requested a GPU.
run_on_gpu() {
    become 1 cuda "$@"
}

# run_on_gpus SCRIPT MORE FLAG …: the same, in NUM_GPUS processes.
run_on_gpus() {
    become "$NUM_GPUS" cuda "$@"
}

become() {
    local n_processes=$1 device=$2 script=$3 more=() command=("$PYTHON") is_batch=false
    if [[ -n $JOB_ID && ${LSB_INTERACTIVE:-} != Y && ! -t 0 ]]; then # not an interactive shell of the batch system
        is_batch=true
    fi
    read -r -d '' -a more <<<"${COMMON_ARGS:-} $4" || true # ends with 1: there is no delimiter
    shift 4
    if ((n_processes > 1)); then
        command+=(-m jobs.launch --nproc_per_node "$n_processes")
    fi
    command+=("$script")
    if [[ -n $device ]] && $is_batch; then # a GPU without a driver is an error, not 24 hours on a CPU
        command+=(--device "$device")
    fi
    command+=("$@")
    if ((${#more[@]})); then
        command+=("${more[@]}")
    fi
    if [[ -n $JOB_CORES ]]; then # a node has more cores than one job may use
        local n_threads=$((JOB_CORES / n_processes))
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((n_threads > 0 ? n_threads : 1))}"
    fi
    if $is_batch; then
        count_start "${script%%_*}"
        if ((n_starts > 1)); then
            go_on
        fi
    fi
    # SIGUSR2 would kill a Python that is still importing, so it is ignored until the stage installs its own handler.
    trap '' USR2
    if $is_batch && [[ -n ${SLURM_JOB_ID:-} ]]; then
        serve
    fi
    # exec: LSF signals this process and reads its exit code; a shell in between would die of the signal.
    exec "${command[@]}"
}

# serve: runs `command` and ends with its code; Slurm signals only this shell. Slurm itself returns no job to the queue
# because of its exit code. This function returns a stage that stopped at the wall-time, but not a cancelled one.
serve() {
    local code=0 at_wall_time=false
    # scancel signals all processes; the shell ignores that and waits. It must not trap it: when the stage ends while
    # bash 5.2 handles a trapped SIGTERM, `wait` often returns 255 instead of the code of the stage.
    trap '' TERM INT
    (trap - TERM INT && exec "${command[@]}") &
    local stage=$!
    trap 'at_wall_time=true; kill -USR2 "$stage" || true' USR2
    while kill -0 "$stage" 2>/dev/null; do # a signal ends `wait` before the stage
        wait "$stage" || true
    done
    wait "$stage" || code=$?
    if $at_wall_time && ((code == 75)); then
        scontrol requeue "$SLURM_JOB_ID" || echo "job $SLURM_JOB_ID is not queued again: submit it again to continue" >&2
    fi
    exit "$code"
}

# count_start STAGE: sets n_starts, the number of starts of this job by the batch system; ends above MAX_ATTEMPTS.
# A job that exits with 75 would return to the queue without end. `attempts` in run.json cannot limit this: it also
# counts starts by hand, and --overwrite sets it back to 1.
count_start() {
    local starts="logs/$1.$JOB_ID.$JOB_INDEX.starts"
    mkdir -p logs
    echo "$(date '+%Y-%m-%d %H:%M:%S') $(hostname)" >>"$starts"
    n_starts=$(wc -l <"$starts")
    ((n_starts <= MAX_ATTEMPTS)) || fail "job $JOB_ID was started $n_starts times ($starts), more than \
MAX_ATTEMPTS=$MAX_ATTEMPTS: it is not started again. If log.txt in its output folder shows progress, submit it again, \
with a longer WALLTIME: it continues where it stopped" 3
}

# go_on: removes from `command` the flags that would empty the folder of an earlier start of this job.
go_on() {
    local word kept=()
    for word in "${command[@]}"; do
        if [[ $word == --overwrite || $word == --recompute ]]; then
            echo "start $n_starts of job $JOB_ID: continuing without $word" >&2
        else
            kept+=("$word")
        fi
    done
    command=("${kept[@]}")
}
