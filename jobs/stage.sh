# shellcheck shell=bash
# What the jobs and submit.sh share: names of folders, the Python to use, how a stage is started. Sourced, never run.

# Modules, caches and defaults of your cluster (docs/hpc.md); not in git. Before `set -u`, which breaks many modules.
if [[ -f jobs/site.sh ]]; then
    # shellcheck source=/dev/null
    source jobs/site.sh
fi
set -euo pipefail

# The names, the folders and the defaults are those of `make pipeline`, names as utils/core/names.py tells.
: "${NAME:=birds}" "${SEED:=42}" "${SPLIT_BY:=recordist}" "${BASE_MODEL:=facebook/wav2vec2-base}" "${OUT_DIR:=.}"
: "${MODEL:=$(basename "$BASE_MODEL")}"
data_set=$NAME in_out_dir=$OUT_DIR/ part=seed-$SEED
[[ $SPLIT_BY == recordist ]] || data_set+=.by-$SPLIT_BY
data_name=$data_set
: "${FOLD:=}" "${FOLDS:=${FOLD:+5}}" # of which FOLD is tested
if [[ -n $FOLD ]]; then
    part=fold-$FOLD.$part
fi
if [[ -n $FOLDS ]]; then
    data_name+=/folds
fi

# folder_of KIND MODEL: where a run or a result of this kind lies.
folder_of() {
    echo "${in_out_dir#./}$1/$data_set/$2/$part"
}

# variant_of FOLDER VARIANT: where lies what is made of that run, wherever the user has put it.
variant_of() {
    if [[ $1 =~ ^(.+)/((fold-[0-9]+\.)?seed-[0-9]+)$ ]]; then
        echo "${BASH_REMATCH[1]}.$2/${BASH_REMATCH[2]}"
    else
        echo "$1.$2"
    fi
}

: "${DATA_DIR:=${in_out_dir#./}processed_data/$data_name}" "${RUN_DIR:=$(folder_of runs "$MODEL")}"
: "${RESULTS_DIR:=$(folder_of validation_results "$MODEL")}" "${ANALYSIS_DIR:=$(folder_of analysis_results "$MODEL")}"
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

# What the batch system says of this job, be it LSF or Slurm; empty where there is none.
readonly JOB_ID=${LSB_JOBID:-${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}}
readonly JOB_INDEX=${LSB_JOBINDEX:-${SLURM_ARRAY_TASK_ID:-0}}
readonly JOB_CORES=${LSB_DJOB_NUMPROC:-${SLURM_CPUS_PER_TASK:-}}

# names_layers: KEEP_ARGS itself says which layers 07 keeps, so that no best.json of 05 is needed.
names_layers() {
    [[ " ${KEEP_ARGS:-} " =~ [[:space:]]--(keep_layers|drop_layers|ladder|from)[=[:space:]] ]]
}

# run_stage SCRIPT MORE FLAG …: becomes the stage. MORE, from the environment, is split at white space.
run_stage() {
    become 1 '' "$@"
}

# run_on_gpu SCRIPT MORE FLAG …: the same, of a job that has asked for a GPU.
run_on_gpu() {
    become 1 cuda "$@"
}

# run_on_gpus SCRIPT MORE FLAG …: the same, in NUM_GPUS processes.
run_on_gpus() {
    become "$NUM_GPUS" cuda "$@"
}

become() {
    local n_processes=$1 device=$2 script=$3 more=() command=("$PYTHON") is_batch=false
    if [[ -n $JOB_ID && ${LSB_INTERACTIVE:-} != Y && ! -t 0 ]]; then # not a shell that the batch system gave
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
    if [[ -n $JOB_CORES ]]; then # a node has more cores than one job is given
        local n_threads=$((JOB_CORES / n_processes))
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((n_threads > 0 ? n_threads : 1))}"
    fi
    if $is_batch; then
        count_start "${script%%_*}"
        if ((n_starts > 1)); then
            go_on
        fi
    fi
    # SIGUSR2 kills a Python that is still importing; ignored until the stage's own handler is there, it does not.
    trap '' USR2
    if $is_batch && [[ -n ${SLURM_JOB_ID:-} ]]; then
        serve
    fi
    # exec: LSF signals this process and goes by its exit code; a shell in between would die of the signal.
    exec "${command[@]}"
}

# serve: runs `command` and ends with its code; Slurm signals this shell alone. Of itself Slurm puts no job back into the
# queue for its exit code: a stage that has stopped at the wall-time is put back here, one that was cancelled is not.
serve() {
    local code=0 at_wall_time=false
    "${command[@]}" &
    local stage=$!
    trap 'at_wall_time=true; kill -USR2 "$stage" || true' USR2
    trap : TERM INT # scancel sends them to all processes; the shell only waits
    while kill -0 "$stage" 2>/dev/null; do # a signal ends `wait` before the stage
        wait "$stage" || true
    done
    wait "$stage" || code=$?
    if $at_wall_time && ((code == 75)); then
        scontrol requeue "$SLURM_JOB_ID" || echo "job $SLURM_JOB_ID is not queued again: submit it again to go on" >&2
    fi
    exit "$code"
}

# count_start STAGE: sets n_starts, how often the batch system has started this job; ends above MAX_ATTEMPTS.
# A job that exits with 75 goes back into the queue without end. `attempts` in run.json is no help: it counts what
# is started by hand too, and --overwrite sets it back to 1.
count_start() {
    local starts="logs/$1.$JOB_ID.$JOB_INDEX.starts"
    mkdir -p logs
    echo "$(date '+%Y-%m-%d %H:%M:%S') $(hostname)" >>"$starts"
    n_starts=$(wc -l <"$starts")
    ((n_starts <= MAX_ATTEMPTS)) || fail "job $JOB_ID was started $n_starts times ($starts), more than \
MAX_ATTEMPTS=$MAX_ATTEMPTS: it is left alone. If log.txt in its output folder shows progress, submit it again, with \
a longer WALLTIME: it goes on where it stopped" 3
}

# go_on: takes out of `command` what would empty the folder again, which an earlier start of this job has begun to fill.
go_on() {
    local word kept=()
    for word in "${command[@]}"; do
        if [[ $word == --overwrite || $word == --recompute ]]; then
            echo "start $n_starts of job $JOB_ID: going on without $word" >&2
        else
            kept+=("$word")
        fi
    done
    command=("${kept[@]}")
}
