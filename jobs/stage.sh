# shellcheck shell=bash
# What the jobs and submit.sh share: names of folders, the Python to use, how a stage is started. Sourced, never run.

# Modules, caches and defaults of your cluster (docs/hpc.md); not in git. Before `set -u`, which breaks many modules.
if [[ -f jobs/site.sh ]]; then
    # shellcheck source=/dev/null
    source jobs/site.sh
fi
set -euo pipefail

# The names, the folders and the defaults are those of `make pipeline`.
: "${NAME:=birds}" "${SEED:=42}" "${SPLIT_BY:=recordist}" "${BASE_MODEL:=facebook/wav2vec2-base}" "${OUT_DIR:=.}"
in_out_dir=$OUT_DIR/
: "${DATA_DIR:=${in_out_dir#./}processed_data/$NAME}" "${RUN_DIR:=${in_out_dir#./}runs/$NAME}"
: "${RESULTS_DIR:=${in_out_dir#./}validation_results/$NAME}" "${ANALYSIS_DIR:=${in_out_dir#./}analysis_results/$NAME}"
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
command -v "$PYTHON" >/dev/null ||
    fail "there is no $PYTHON: run make venv on a login node, or name another interpreter by PYTHON=…" 3

# names_layers: KEEP_ARGS itself says which layers 07 keeps, so that no best.json of 05 is needed.
names_layers() {
    [[ " ${KEEP_ARGS:-} " =~ [[:space:]]--(keep_layers|drop_layers|ladder|from)[=[:space:]] ]]
}

# run_stage SCRIPT MORE FLAG …: becomes the stage. MORE, from the environment, is split at white space.
run_stage() {
    become 1 "$@"
}

# run_on_gpus SCRIPT MORE FLAG …: the same, in NUM_GPUS processes.
run_on_gpus() {
    become "$NUM_GPUS" "$@"
}

become() {
    local n_processes=$1 script=$2 more=() command=("$PYTHON")
    read -r -d '' -a more <<<"$3" || true # ends with 1: there is no delimiter
    shift 3
    if ((n_processes > 1)); then
        command+=(-m jobs.launch --nproc_per_node "$n_processes")
    fi
    command+=("$script" "$@")
    if ((${#more[@]})); then
        command+=("${more[@]}")
    fi
    if [[ -n ${LSB_DJOB_NUMPROC:-} ]]; then # a node has more cores than LSF gives to one job
        local n_threads=$((LSB_DJOB_NUMPROC / n_processes))
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((n_threads > 0 ? n_threads : 1))}"
    fi
    if [[ -n ${LSB_JOBID:-} && ${LSB_INTERACTIVE:-} != Y ]]; then
        count_start "${script%%_*}"
        if ((n_starts > 1)); then
            go_on
        fi
    fi
    # SIGUSR2 kills a Python that is still importing; ignored until the stage's own handler is there, it does not.
    # exec: LSF signals this process and goes by its exit code; a shell in between would die of the signal.
    trap '' USR2
    exec "${command[@]}"
}

# count_start STAGE: sets n_starts, how often LSF has started this job; ends above MAX_ATTEMPTS.
# LSF puts a job that exits with 75 back into the queue without end. `attempts` in run.json is no help: it counts what
# is started by hand too, and --overwrite sets it back to 1.
count_start() {
    local starts="logs/$1.$LSB_JOBID.${LSB_JOBINDEX:-0}.starts"
    mkdir -p logs
    echo "$(date '+%Y-%m-%d %H:%M:%S') $(hostname)" >>"$starts"
    n_starts=$(wc -l <"$starts")
    ((n_starts <= MAX_ATTEMPTS)) || fail "LSF has started job $LSB_JOBID $n_starts times ($starts), more than \
MAX_ATTEMPTS=$MAX_ATTEMPTS: it is left alone. If log.txt in its output folder shows progress, submit it again, with \
a longer WALLTIME: it goes on where it stopped" 3
}

# go_on: takes out of `command` what would empty the folder again, which an earlier start of this job has begun to fill.
go_on() {
    local word kept=()
    for word in "${command[@]}"; do
        if [[ $word == --overwrite || $word == --recompute ]]; then
            echo "start $n_starts of job $LSB_JOBID: going on without $word" >&2
        else
            kept+=("$word")
        fi
    done
    command=("${kept[@]}")
}
