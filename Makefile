# How the pipeline is run. `make demo` and `make test` need Python >= 3.11 and make, nothing else.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python

# make pipeline RAW_DIR=recordings [METADATA=metadata.csv] [BASE_MODEL=…] [NAME=…] and what else stands here
RAW_DIR       ?=
METADATA      ?=
BASE_MODEL    ?= facebook/wav2vec2-base
NAME          ?= birds
SEED          ?= 42
SPLIT_BY      ?= recordist
# FOLD=2 tests the second of FOLDS=5 folds; the folds are the same for each SEED.
FOLD          ?=
FOLDS         ?= $(if $(FOLD),5)
OUT_DIR       ?= .
# More flags for all stages, such as COMMON_ARGS="--overwrite --log_level warning"; for one stage, such as
# TRAIN_ARGS="--keep_layers 0-5 --num_train_epochs 30".
COMMON_ARGS   ?=
DATA_ARGS     ?=
TRAIN_ARGS    ?=
VALIDATE_ARGS ?=
ANALYSE_ARGS  ?=
PRUNE_ARGS    ?=

# Names as utils/core/names.py tells. Of a model that is pruned before it is fine-tuned, say so:
# TRAIN_ARGS="--keep_layers 0-5" MODEL=wav2vec2-base.blocks-0-5
MODEL        ?= $(notdir $(BASE_MODEL:/=))
DATA_SET     = $(NAME)$(if $(filter-out recordist,$(SPLIT_BY)),.by-$(SPLIT_BY))
DATA_DIR     = $(OUT_DIR)/processed_data/$(DATA_SET)$(if $(FOLDS),/folds)
PART         = $(if $(FOLD),fold-$(FOLD).)seed-$(SEED)
RUN_DIR      = $(OUT_DIR)/runs/$(DATA_SET)/$(MODEL)/$(PART)
RESULTS_DIR  = $(OUT_DIR)/validation_results/$(DATA_SET)/$(MODEL)/$(PART)
SWEEP_DIR    = $(OUT_DIR)/validation_results/$(DATA_SET)/$(MODEL).sweep/$(PART)
ANALYSIS_DIR = $(OUT_DIR)/analysis_results/$(DATA_SET)/$(MODEL)/$(PART)
# Of each drill, in each stage.
TRIES       ?= 10
# Recordings and models of the study, and how many of its steps run at a time.
SHARED      ?= ../shared
JOBS        ?= 2

.PHONY: venv demo test pipeline study study-birds34 study-birds20 study-check figures lint bench drills clean

venv: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# The whole pipeline on synthetic birds and a tiny model, in float32: bfloat16 would gain nothing for one so small. It
# ends with the songs that the model finds in a night. Val has too few recordists for fitted thresholds.
demo: venv
	$(PY) -m experiments.synthetic_birds --output_dir demo/raw --night_dir demo/night
	$(MAKE) --no-print-directory pipeline OUT_DIR=demo NAME=demo BASE_MODEL=tiny \
	    RAW_DIR=demo/raw METADATA=demo/raw/metadata.csv \
	    DATA_ARGS="--min_recordings 5 --clip_seconds 3" \
	    TRAIN_ARGS="--num_train_epochs 12 --learning_rate 2e-3 --augment roll gain --mixed_precision no" \
	    PRUNE_ARGS="--heal 5"
	$(PY) 07_manual_pruning.py --model_dir demo/runs/demo/tiny/seed-$(SEED) --n_layers 2 \
	    --from demo/validation_results/demo/tiny.sweep/seed-$(SEED)/best.json \
	    --output_dir demo/runs/demo/tiny.after-2/seed-$(SEED)
	$(PY) 03_model_validation.py --model_dir demo/runs/demo/tiny.after-2/seed-$(SEED) \
	    --data_dir demo/processed_data/demo --output_dir demo/validation_results/demo/tiny.after-2/seed-$(SEED)
	$(PY) 08_detection.py --model_dir demo/runs/demo/tiny/seed-$(SEED) --raw_dir demo/night --output_dir demo/detections \
	    --threshold 0.5 --formats raven --review 3
	$(PY) -m experiments.detection_scores --detections demo/detections/detections.csv --truth demo/night/planted.csv

OF_THE_DATA = --data_dir "$(DATA_DIR)" $(if $(FOLD),--fold $(FOLD)) --seed $(SEED)
FINETUNE = $(PY) 02_finetuning.py --base_model "$(BASE_MODEL)" $(OF_THE_DATA) --output_dir "$(RUN_DIR)" $(COMMON_ARGS) $(TRAIN_ARGS)
OF_THE_RUN = --model_dir "$(RUN_DIR)" $(OF_THE_DATA)

# On recordings of your own: a model, its scores (01, 02, 03), what its layers know (04), which can go (05).
# A base model that cannot be loaded is told before 01 has taken its hours.
pipeline: venv
	@test -z "$(FOLDS)" || test "$(FOLD)" -ge 1 -a "$(FOLD)" -le "$(FOLDS)" 2>/dev/null || { echo 'make needs FOLD=1 to $(FOLDS), the fold to test'; exit 2; }
	@test -n "$(RAW_DIR)" || { echo 'make needs RAW_DIR=<folder of recordings>'; exit 2; }
	@test -e "$(DATA_DIR)/run.json" || $(FINETUNE) --check
	$(PY) 01_data_processing.py --raw_dir "$(RAW_DIR)" $(if $(METADATA),--metadata "$(METADATA)") \
	    --split_by $(SPLIT_BY) $(if $(FOLDS),--folds $(FOLDS),--seed $(SEED)) --output_dir "$(DATA_DIR)" $(COMMON_ARGS) $(DATA_ARGS)
	$(FINETUNE)
	$(PY) 03_model_validation.py $(OF_THE_RUN) --output_dir "$(RESULTS_DIR)" $(COMMON_ARGS) $(VALIDATE_ARGS)
	$(PY) 04_analysis.py $(OF_THE_RUN) --output_dir "$(ANALYSIS_DIR)" $(COMMON_ARGS) $(ANALYSE_ARGS)
	$(PY) 05_pruning.py $(OF_THE_RUN) --output_dir "$(SWEEP_DIR)" $(COMMON_ARGS) $(PRUNE_ARGS)

# The study: two data sets in five folds by recordist, each with the base model cut to every depth before fine-tuning and
# after it, with and without repair, a head alone, a smaller encoder, two CNNs, and what other splits would have claimed.
# birds34 also has narrower models, and models with teachers.
# Three trainings on each fold of birds20, and on the first fold of birds34. An estimate for two cores: 27 hours or more
# with AVX-512 BF16, about twice that without. Continues where it was stopped; on another machine, from the results that
# came with the code, as experiments.study says. Its results lie apart from those, for experiments.reproduced to compare.
study: study-birds34 study-birds20

# Chosen on val of fold 1 of birds34: accuracy 0.478 and 0.590 after one and two of three epochs; 0.405 after one with 1e-4
# for all parts; 0.558 after three from a random head and a head rate of 1e-3. Test scores of the last recipe had been seen
# by then (folds 1 to 4), none of this one.
study-birds34: RECIPE = --learning_rate 5e-5 --head_learning_rate 5e-4 --num_train_epochs 3
study-birds34: PLAN = --seeds 1 --seeds_of_first_fold 2 3 --splits recordist_and_species clip --heal frozen healed taught --heal_layers 3 \
    --taught_layers 0-4 0-3 0-2 0-1 0 --taught_cnns melspectrogram --cnn_teachers 0-5 0-3 0-2 --taught_cnn_args="--teacher_views 5" \
    --narrow_layers 0-5 0-3 --ffn_sizes 0.5 0.25
study-birds20: RECIPE = --learning_rate 5e-5 --head_learning_rate 5e-4 --num_train_epochs 6
study-birds20: PLAN = --seeds 1 2 3 --heal frozen --taught_layers 0-4 0-3 0-2 0-1 0
study-birds34 study-birds20: study-%: venv
	$(PY) -m experiments.study --name $* --raw_dir $(SHARED)/data/$* --metadata $(SHARED)/data/$*/metadata.csv \
	    --base_model whisper-base=$(SHARED)/models/whisper-base-encoder --claim_layers 0-1 \
	    --other_models whisper-tiny=$(SHARED)/models/whisper-tiny-en-encoder $(PLAN) \
	    --data_args="--min_recordings 5 --same_recordist experiments/same_recordist.csv" \
	    --train_args="--per_device_train_batch_size 4 --early_stopping_patience 10 --augment roll gain specaugment $(RECIPE)" \
	    --head_first --head_args="--learning_rate 1e-3 --num_train_epochs 20 --early_stopping_patience 20" \
	    --cnn_args="--num_train_epochs 15" --jobs $(JOBS) --output_dir study

# The tables of RESULTS.md and the section Results of README.md, computed again from the committed predictions.
study-check: venv
	$(PY) -m experiments.study_check

# All figures of the results that came with the code; most of them are not in git.
figures: venv
	$(PY) -m experiments.figures
	for name in birds34 birds20; do \
	    $(PY) -m experiments.ways_table --name $$name --model whisper-base.blocks-0-5 --part fold-all.seed-1 >/dev/null || exit; \
	done
	$(PY) -m experiments.ladder_table --name birds20 --model whisper-base >/dev/null

test: venv
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/shellcheck -x jobs/*.sh .ci/run

# Each benchmark replaces its rows of the table; an hour on a quiet machine. BirdNET is compared where it is installed.
BENCHMARKS = data_processing extraction convexity similarity layer_sweep race repair width export detection memory
bench: venv
	for name in $(BENCHMARKS); do $(PY) -m benchmarks.bench_$$name --results benchmarks/results.csv || exit; done
	$(PY) -m benchmarks.latency_under_load

# How often each interval holds the true value; every fault that the pipeline has to survive, and rubbish for all that
# reads files from outside; an hour or more.
drills: venv
	OMP_NUM_THREADS=1 $(PY) -m drills.coverage
	OMP_NUM_THREADS=1 $(PY) -m drills.thresholds
	OMP_NUM_THREADS=1 $(PY) -m drills.race
	OMP_NUM_THREADS=1 $(PY) -m drills.beats_reference
	$(PY) -m drills.faults --tries $(TRIES)
	test ! -d "$(SHARED)/data/birds20" || $(PY) -m drills.formats --raw_dir "$(SHARED)/data/birds20"
	test ! -d "$(SHARED)/data/birds20" || $(PY) -m drills.near_copies --raw_dirs "$(SHARED)"/data/birds*
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_fuzz.py --hypothesis-profile drills

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -exec rm -rf {} +
