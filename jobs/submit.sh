#!/bin/bash
# Submits a study to LSF or Slurm: one job per step. Each waits for the steps whose output it reads. See --help.

usage() {
    cat <<'TEXT'
usage: jobs/submit.sh [--dry_run] [--email ADDRESS] [--after ID] [STEP …]

    RAW_DIR=recordings NAME=wetland jobs/submit.sh --dry_run
    RAW_DIR=recordings NAME=wetland jobs/submit.sh
    NAME=wetland FOLD=2 jobs/submit.sh --after 4711 02 03
    NAME=wetland QUEUE=gpuv100 WALLTIME_02=48:00 NUM_GPUS=4 jobs/submit.sh 02 03

Steps: 01 02 03 04 05 07 03-pruned (all of them, if none is named), 06 03-cnn 08. What a step reads must be there, or be
made by another named step or by the job of --after.

  --dry_run        print the commands; submit nothing, write nothing
  --email ADDRESS  let the batch system write to ADDRESS when a job ends (default: no e-mail)
  --after ID       the first steps wait for job ID, such as 01 of all folds; what it writes need not be there yet

Input, from environment variables as for make pipeline: RAW_DIR METADATA NAME SEED SPLIT_BY FOLDS FOLD BASE_MODEL
MODEL OUT_DIR DATA_DIR RUN_DIR RESULTS_DIR ANALYSIS_DIR DETECTIONS_DIR, FIELD_DIR (the recordings of 08), and flags of
the stages: COMMON_ARGS (all) DATA_ARGS (01) TRAIN_ARGS (02) VALIDATE_ARGS (03) ANALYSE_ARGS (04) PRUNE_ARGS (05)
CNN_ARGS (06) KEEP_ARGS (07) DETECT_ARGS (08). SHARDS=N runs 01 and 08 as arrays of N jobs, each with a merge. FOLD=2
tests the second of FOLDS folds (default: 5).

Resources; without these variables, those in the head of jobs/01.sh to 08.sh:
  QUEUE, CPU_QUEUE   queue of 02 to 06; of 01, 07 and 08
  WALLTIME           [hours:]minutes, more than 10
  NUM_GPUS           GPUs of 02 and 06, with 4 cores each; 03 and 04 use one; for more, set NUM_GPUS_03, NUM_GPUS_04
  CORES, MEMORY      cores; memory such as 16GB (Slurm: per job; LSF: per host or core, as set by the site)
  BSUB_ARGS          other options of bsub, such as "-P project"; with Slurm SBATCH_ARGS, for sbatch
Each, with _01 to _08 added, applies only to that stage: WALLTIME_02=48:00.
MAX_ATTEMPTS         maximum number of starts per job (default: 20; 3 for 03 and 04)
SCHEDULER            lsf or slurm (default: slurm if there is an sbatch but no bsub, otherwise lsf)
TEXT
}

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then # also without a .venv
    usage
    exit 0
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
source jobs/stage.sh || exit 2

readonly STEPS=(01 02 03 04 05 07 03-pruned 06 03-cnn 08)
readonly WARNING_MIN=10 # -wt in the jobs: SIGUSR2 comes this long before the end

dry_run=false email='' after='' named=()
while (($#)); do
    case $1 in
        --dry_run) dry_run=true ;;
        --email)
            [[ ${2:-} == *@* ]] || fail "--email ${2:-}: expected an address" 2
            email=$2
            shift
            ;;
        --after)
            [[ ${2:-} =~ ^[0-9]+$ ]] || fail "--after ${2:-}: expected the id of a job" 2
            after=$2
            shift
            ;;
        *)
            [[ " ${STEPS[*]} " == *" $1 "* ]] || fail "$1: expected --dry_run, --email, --after or a step of: ${STEPS[*]}" 2
            named+=("$1")
            ;;
    esac
    shift
done
if ((${#named[@]} == 0)); then
    named=(01 02 03 04 05 07 03-pruned)
fi
[[ $NAME =~ ^[A-Za-z0-9._-]+$ ]] || fail "NAME=$NAME: expected letters, digits, dots, hyphens and underscores" 2

: "${SCHEDULER:=$(command -v bsub >/dev/null || ! command -v sbatch >/dev/null && echo lsf || echo slurm)}"
declare -rA SUBMITS=([lsf]=bsub [slurm]=sbatch) CANCELS=([lsf]=bkill [slurm]=scancel)
declare -rA WATCHES=([lsf]="bjobs -a" [slurm]="sacct -X -j")
[[ -n ${SUBMITS[$SCHEDULER]:-} ]] || fail "SCHEDULER=$SCHEDULER: expected lsf or slurm" 2

declare -A id_of=() # of the submitted jobs, by their steps
submitted=()

# has STEP: is this step to be submitted?
has() {
    [[ " ${named[*]} " == *" $1 "* ]]
}

# setting VARIABLE STEP [DEFAULT]: its value for the stage of a step, or its value for all, or the default.
setting() {
    local for_stage="$1_${2%%-*}"
    echo "${!for_stage:-${!1:-${3:-}}}"
}

# reads STEP PATH: the current job reads PATH, which STEP writes.
reads() {
    if has "$1"; then
        waits_for+=("$1")
    elif [[ ! -e $2 && -z $after ]]; then
        fail "step $step reads $2, which does not exist (paths are relative to $PWD); name step $1 too, or run it first, \
or give --after with the id of its job" 3
    fi
}

# minutes [HOURS:]MINUTES: the time in minutes; 0 if it is not a time.
minutes() {
    if [[ $1 =~ ^(([0-9]+):)?([0-9]+)$ ]]; then
        echo $((60 * 10#0${BASH_REMATCH[2]} + 10#${BASH_REMATCH[3]}))
    else
        echo 0
    fi
}

# plan STEP: sets the steps that it waits for, the variables that differ from those of the study, and the options.
plan() {
    step=$1 waits_for=() variables=() options=()
    local stage=${1%%-*} queue walltime n_gpus=1 cores memory
    if [[ -n $FOLDS && -z $FOLD && $stage != 0[17] ]]; then
        fail "step $step needs FOLD=1 to $FOLDS, the fold to test" 2
    fi
    case $step in
        01)
            [[ -n ${RAW_DIR:-} ]] || fail "step 01 needs RAW_DIR=<folder of recordings>" 2
            [[ -d $RAW_DIR ]] || fail "RAW_DIR=$RAW_DIR: no such folder (paths are relative to $PWD)" 3
            [[ -z ${METADATA:-} || -f $METADATA ]] || fail "METADATA=$METADATA: no such file (paths are relative to $PWD)" 3
            ;;
        02 | 06) reads 01 "$DATA_DIR" ;;
        03 | 05)
            reads 01 "$DATA_DIR"
            reads 02 "$RUN_DIR"
            ;;
        04) # also accepts a base model, by its name on the hub
            reads 01 "$DATA_DIR"
            if has 02; then waits_for+=(02); fi
            ;;
        07)
            if has 02; then waits_for+=(02); fi
            names_layers || reads 05 "$(variant_of "$RESULTS_DIR" sweep)/best.json"
            ;;
        03-pruned)
            [[ ${KEEP_ARGS:-} != *--ladder* ]] ||
                fail "step 03-pruned scores one model, but KEEP_ARGS=$KEEP_ARGS makes many: name the other steps" 2
            reads 01 "$DATA_DIR"
            reads 07 "$(variant_of "$RUN_DIR" pruned)"
            variables+=("RUN_DIR=$(variant_of "$RUN_DIR" pruned)" "RESULTS_DIR=$(variant_of "$RESULTS_DIR" pruned)")
            ;;
        03-cnn)
            reads 01 "$DATA_DIR"
            reads 06 "$(folder_of runs cnn)"
            variables+=("RUN_DIR=$(folder_of runs cnn)" "RESULTS_DIR=$(folder_of validation_results cnn)")
            ;;
        08)
            [[ -n ${FIELD_DIR:-} ]] || fail "step 08 needs FIELD_DIR=<folder of recordings to listen to>" 2
            [[ -e $FIELD_DIR ]] || fail "FIELD_DIR=$FIELD_DIR: no such folder (paths are relative to $PWD)" 3
            reads 02 "$RUN_DIR"
            if has 03; then waits_for+=(03); fi # which can fit the thresholds
            ;;
    esac
    case $stage in
        01 | 07 | 08) queue=$(setting CPU_QUEUE "$step") ;;
        02 | 06)
            queue=$(setting QUEUE "$step")
            n_gpus=$(setting NUM_GPUS "$step")
            ;;
        03 | 04) # scoring takes minutes, so the job waits for more GPUs only on request
            queue=$(setting QUEUE "$step")
            n_gpus=NUM_GPUS_$stage
            n_gpus=${!n_gpus:-1}
            ;;
        *) queue=$(setting QUEUE "$step") ;;
    esac
    walltime=$(setting WALLTIME "$step")
    cores=$(setting CORES "$step")
    memory=$(setting MEMORY "$step")
    if [[ -n $walltime ]]; then
        (($(minutes "$walltime") > WARNING_MIN)) || fail "WALLTIME=$walltime for step $step: expected [hours:]minutes, \
more than the $WARNING_MIN minutes before the end at which the job receives the signal to stop" 2
    fi
    if [[ ! $n_gpus =~ ^[1-9][0-9]*$ ]]; then
        fail "NUM_GPUS_$stage=$n_gpus: expected an integer of at least 1" 2
    elif [[ $stage == 0[2346] && $n_gpus != "$NUM_GPUS" ]]; then
        variables+=("NUM_GPUS=$n_gpus")
    fi
    if ((n_gpus > 1)); then
        cores=${cores:-$((4 * n_gpus))}
    fi
    "ask_$SCHEDULER"
}

# ask_lsf, ask_slurm: put the results of `plan` into `options`, in the syntax of the batch system.
ask_lsf() {
    local more=()
    if [[ -n $queue ]]; then
        options+=(-q "$queue")
    fi
    if [[ -n $walltime ]]; then
        options+=(-W "$walltime")
    fi
    if ((n_gpus > 1)); then
        options+=(-gpu "num=$n_gpus:mode=exclusive_process")
    fi
    if [[ -n $cores ]]; then
        options+=(-n "$cores")
    fi
    if [[ -n $memory ]]; then
        options+=(-R "span[hosts=1] rusage[mem=$memory]")
    fi
    if [[ -n $email ]]; then
        options+=(-N -u "$email")
    fi
    read -r -d '' -a more <<<"$(setting BSUB_ARGS "$step")" || true
    options+=(${more[@]+"${more[@]}"})
}

ask_slurm() {
    local more=()
    if [[ -n $queue ]]; then
        options+=("--partition=$queue")
    fi
    if [[ -n $walltime ]]; then
        options+=("--time=$(minutes "$walltime")")
    fi
    if ((n_gpus > 1)); then
        options+=("--gres=gpu:$n_gpus")
    fi
    if [[ -n $cores ]]; then
        options+=("--cpus-per-task=$cores")
    fi
    if [[ -n $memory ]]; then
        options+=("--mem=${memory%[Bb]}")
    fi
    if [[ -n $email ]]; then
        options+=("--mail-type=END,FAIL" "--mail-user=$email")
    fi
    read -r -d '' -a more <<<"$(setting SBATCH_ARGS "$step")" || true
    options+=(${more[@]+"${more[@]}"})
}

# quoted WORD …: the words, quoted for a shell.
quoted() {
    local word line=''
    for word in "$@"; do
        if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
            word="'${word//\'/\'\\\'\'}'"
        fi
        line+="$word "
    done
    echo "${line% }"
}

# submit STEP [INDICES]: submits the current job; it starts when the jobs that it waits for have ended well. Records its
# id. A job that can never start is removed from the queue (-ti, --kill-on-invalid-dep).
submit() {
    local other parents=() condition='' answer command=() name=$NAME${FOLD:+-fold-$FOLD} script=jobs/${step%%-*}.sh
    for other in ${waits_for[@]+"${waits_for[@]}"}; do
        parents+=("${id_of[$other]}")
    done
    if ((${#parents[@]} == 0)) && [[ -n $after ]]; then
        parents=("$after")
    fi
    for other in ${parents[@]+"${parents[@]}"}; do
        if [[ $SCHEDULER == lsf ]]; then
            condition+="${condition:+ && }done($other)"
        else
            condition=${condition:-afterok}:$other
        fi
    done
    if [[ $SCHEDULER == lsf ]]; then
        command=(bsub -J "$name-$1${2:-}" ${options[@]+"${options[@]}"} ${condition:+-w "$condition" -ti})
    else
        command=(sbatch "--job-name=$name-$1" ${options[@]+"${options[@]}"})
        command+=(${condition:+"--dependency=$condition" --kill-on-invalid-dep=yes})
    fi
    if ((${#variables[@]})); then
        command=(env "${variables[@]}" "${command[@]}")
    fi
    if $dry_run; then
        echo "$(quoted "${command[@]}") < $script"
        id_of[$1]="<id of $1>"
        return
    fi
    answer=$("${command[@]}" <"$script") || answer="${SUBMITS[$SCHEDULER]} ended with exit code $?; $answer"
    if [[ ! $answer =~ Job\ \<([0-9]+)\>\ is\ submitted && ! $answer =~ ^Submitted\ batch\ job\ ([0-9]+) ]]; then
        echo "step $1 was not submitted: $answer" >&2
        if ((${#submitted[@]})); then
            echo "the steps before it were; to cancel them: ${CANCELS[$SCHEDULER]} ${submitted[*]}" >&2
        fi
        exit 3
    fi
    id_of[$1]=${BASH_REMATCH[1]}
    submitted+=("${BASH_REMATCH[1]}")
    printf '%-10s %s%s\n' "$1" "$answer" "${condition:+ It waits for $condition.}"
}

# All steps are checked before the first is submitted.
for step in "${STEPS[@]}"; do
    if has "$step"; then
        plan "$step"
    fi
done
if [[ -n ${SHARDS:-} ]]; then
    require_count SHARDS
fi
if ! $dry_run; then
    command -v "${SUBMITS[$SCHEDULER]}" >/dev/null || fail "there is no ${SUBMITS[$SCHEDULER]} here: this is not a node \
that submits to ${SCHEDULER^^}; --dry_run works" 3
    if has 02 && { has 01 || [[ -n $after ]]; }; then # check the base model before 01 runs for hours
        more=()
        read -r -d '' -a more <<<"${COMMON_ARGS:-} ${TRAIN_ARGS:-}" || true
        "$PYTHON" 02_finetuning.py --base_model "$BASE_MODEL" --output_dir "$RUN_DIR" ${more[@]+"${more[@]}"} --check ||
            fail "step 02 cannot start from BASE_MODEL=$BASE_MODEL with TRAIN_ARGS=${TRAIN_ARGS:-}: nothing is submitted" $?
    fi
    mkdir -p logs
fi
for step in "${STEPS[@]}"; do
    has "$step" || continue
    plan "$step"
    if [[ $step == 0[18] && -n ${SHARDS:-} ]]; then
        if [[ $SCHEDULER == lsf ]]; then
            options+=(-o "logs/$step.%J.%I.out" -e "logs/$step.%J.%I.err")
            submit "$step-shards" "[1-$SHARDS]"
        else
            options+=("--array=1-$SHARDS" "--output=logs/$step.%A.%a.out" "--error=logs/$step.%A.%a.err")
            submit "$step-shards"
        fi
        plan "$step"
        variables=("MERGE_SHARDS=$SHARDS") waits_for=("$step-shards")
    fi
    submit "$step"
done
if ! $dry_run; then
    ids=${submitted[*]}
    if [[ $SCHEDULER == slurm ]]; then
        watched=${ids// /,}
    fi
    echo
    echo "to watch them:         ${WATCHES[$SCHEDULER]} ${watched:-$ids}"
    echo "to cancel them:        ${CANCELS[$SCHEDULER]} $ids"
    echo "their messages:        logs/<stage>.<id>.err, and log.txt in every output folder while a stage is running"
fi
