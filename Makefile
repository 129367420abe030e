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
OUT_DIR       ?= .
# What trains: this, or 06_cnn.py with its --architecture.
TRAIN         ?= 02_finetuning.py --base_model "$(BASE_MODEL)"
# More flags for one stage, such as TRAIN_ARGS="--keep_layers 0-5 --num_train_epochs 30".
DATA_ARGS     ?=
TRAIN_ARGS    ?=
VALIDATE_ARGS ?=
ANALYSE_ARGS  ?=
PRUNE_ARGS    ?=

DATA_DIR     = $(OUT_DIR)/processed_data/$(NAME)
RUN_DIR      = $(OUT_DIR)/runs/$(NAME)
RESULTS_DIR  = $(OUT_DIR)/validation_results/$(NAME)
ANALYSIS_DIR = $(OUT_DIR)/analysis_results/$(NAME)
SEEDS       ?= 1 2 3
# Ways of splitting that `make leak` compares.
SPLITS      ?= recordist recording clip
# Of each drill, in each stage.
TRIES       ?= 10
# Models of the ladder: from the front end alone to all blocks of the base model.
RUNGS       ?= none 0 0-1 0-2 0-3 0-4 0-5

# The study's data sets and encoders, and how it trains them; learning rates and augmentations by val clips of seed 1.
SHARED      ?= ../shared
ENCODER_ARGS = $(RATES) --per_device_train_batch_size 4 --augment roll gain specaugment \
               --early_stopping_patience 10 --num_train_epochs $(EPOCHS)
STUDY        = $(MAKE) --no-print-directory BASE_MODEL=$(SHARED)/models/whisper-base-encoder \
               RAW_DIR=$(SHARED)/data/$* METADATA=$(SHARED)/data/$*/metadata.csv DATA_ARGS="--min_recordings 5" \
               OUT_DIR="$(OUT_DIR)"

.PHONY: venv demo test pipeline model leak ladder study study-birds20 study-birds25 lint bench drills clean

venv: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# The whole pipeline on synthetic birds and a tiny model.
demo: venv
	$(PY) -m benchmarks.synthetic_birds --output_dir demo/raw
	$(MAKE) --no-print-directory pipeline OUT_DIR=demo NAME=demo BASE_MODEL=tiny \
	    RAW_DIR=demo/raw METADATA=demo/raw/metadata.csv \
	    DATA_ARGS="--min_recordings 5 --clip_seconds 3" \
	    TRAIN_ARGS="--num_train_epochs 12 --learning_rate 2e-3 --augment roll gain" PRUNE_ARGS="--heal 5"
	$(PY) 07_manual_pruning.py --model_dir demo/runs/demo --from demo/validation_results/demo-pruning/best.json \
	    --n_layers 2 --output_dir demo/runs/demo-2-layers
	$(PY) 03_model_validation.py --model_dir demo/runs/demo-2-layers --data_dir demo/processed_data/demo \
	    --output_dir demo/validation_results/demo-2-layers

# On recordings of your own: a model, its scores (01, 02, 03), what its layers know (04), which can go (05).
pipeline: model
	$(PY) 04_analysis.py --model_dir "$(RUN_DIR)" --data_dir "$(DATA_DIR)" --seed $(SEED) \
	    --output_dir "$(ANALYSIS_DIR)" $(ANALYSE_ARGS)
	$(PY) 05_pruning.py --model_dir "$(RUN_DIR)" --data_dir "$(DATA_DIR)" --seed $(SEED) \
	    --output_dir "$(RESULTS_DIR)-pruning" $(PRUNE_ARGS)

model: venv
	@test -n "$(RAW_DIR)" || { echo 'make needs RAW_DIR=<folder of recordings>'; exit 2; }
	$(PY) 01_data_processing.py --raw_dir "$(RAW_DIR)" $(if $(METADATA),--metadata "$(METADATA)") \
	    --split_by $(SPLIT_BY) --seed $(SEED) --output_dir "$(DATA_DIR)" $(DATA_ARGS)
	$(PY) $(TRAIN) --data_dir "$(DATA_DIR)" --seed $(SEED) --output_dir "$(RUN_DIR)" $(TRAIN_ARGS)
	$(PY) 03_model_validation.py --model_dir "$(RUN_DIR)" --data_dir "$(DATA_DIR)" --seed $(SEED) \
	    --output_dir "$(RESULTS_DIR)" $(VALIDATE_ARGS)

# What a split by recording or by clip would have claimed: all three splits, each seed. By recordist, as everywhere
# else, it is <name>-<seed>.
leak: venv
	@for seed in $(SEEDS); do for split_by in $(SPLITS); do \
	    case $$split_by in recordist) name=$(NAME)-$$seed ;; *) name=$(NAME)-$$split_by-$$seed ;; esac; \
	    $(MAKE) --no-print-directory model SEED=$$seed SPLIT_BY=$$split_by NAME=$$name || exit; \
	done; done
	$(PY) -m benchmarks.leak_table --summary "$(OUT_DIR)/validation_results/summary.csv" --name $(NAME)

# Pruning before fine-tuning, a model for each rung and seed, and after it, every subset of the last rung's blocks.
ladder: venv
	@for seed in $(SEEDS); do \
	    for keep in $(RUNGS); do \
	        $(MAKE) --no-print-directory model SEED=$$seed NAME=$(NAME)-$$keep-$$seed \
	            DATA_DIR="$(OUT_DIR)/processed_data/$(NAME)-$$seed" TRAIN_ARGS="--keep_layers $$keep $(TRAIN_ARGS)" || exit; \
	    done; \
	    $(PY) 05_pruning.py --model_dir "$(OUT_DIR)/runs/$(NAME)-$(lastword $(RUNGS))-$$seed" --seed $$seed \
	        --data_dir "$(OUT_DIR)/processed_data/$(NAME)-$$seed" \
	        --output_dir "$(OUT_DIR)/validation_results/$(NAME)-$(lastword $(RUNGS))-$$seed-pruning" $(PRUNE_ARGS) || exit; \
	done
	$(PY) -m benchmarks.ladder_table --results_dir "$(OUT_DIR)/validation_results" --name $(NAME)

# The study: two data sets, each with the ladder, the best subsets after fine-tuning, a smaller encoder, two CNNs,
# and what other splits would have claimed. Goes on where it was stopped; some hours for each on two cores. Its results
# lie apart from those that came with the code: a model trained again is another model.
study study-birds20 study-birds25: OUT_DIR = study
study:
	$(MAKE) --no-print-directory study-birds20 study-birds25

study-birds20: RATES = --learning_rate 1e-4
study-birds20: EPOCHS = 10
study-birds25: RATES = --learning_rate 5e-5 --head_learning_rate 1e-3
study-birds25: EPOCHS = 5
study-birds20 study-birds25: study-%: venv
	$(STUDY) ladder NAME=$*-whisper-base TRAIN_ARGS="$(ENCODER_ARGS)" RUNGS="$(RUNGS)"
	@for seed in $(SEEDS); do \
	    whole=$*-whisper-base-$(lastword $(RUNGS))-$$seed; \
	    for n in 1 2 3 4 5; do \
	        name=$*-whisper-base-after-$$n-$$seed; \
	        $(PY) 07_manual_pruning.py --model_dir "$(OUT_DIR)/runs/$$whole" --n_layers $$n \
	            --from "$(OUT_DIR)/validation_results/$$whole-pruning/best.json" --output_dir "$(OUT_DIR)/runs/$$name" && \
	        $(PY) 03_model_validation.py --model_dir "$(OUT_DIR)/runs/$$name" --seed $$seed \
	            --data_dir "$(OUT_DIR)/processed_data/$*-whisper-base-$$seed" \
	            --output_dir "$(OUT_DIR)/validation_results/$$name" || exit; \
	    done; \
	    same="SEED=$$seed DATA_DIR=$(OUT_DIR)/processed_data/$*-whisper-base-$$seed"; \
	    $(STUDY) model $$same NAME=$*-whisper-tiny-$$seed BASE_MODEL=$(SHARED)/models/whisper-tiny-en-encoder \
	        TRAIN_ARGS="$(ENCODER_ARGS)" && \
	    for cnn in waveform melspectrogram; do \
	        $(STUDY) model $$same NAME=$*-cnn-$$cnn-$$seed TRAIN="06_cnn.py --architecture $$cnn" || exit; \
	    done || exit; \
	done
	$(STUDY) leak NAME=$*-whisper-base-0-1 SPLITS="recording clip" TRAIN_ARGS="--keep_layers 0-1 $(ENCODER_ARGS)"
	$(PY) -m benchmarks.latencies --runs_dir "$(OUT_DIR)/runs" --results_dir "$(OUT_DIR)/validation_results" --name $* \
	    --seed $(firstword $(SEEDS)) --data_dir "$(OUT_DIR)/processed_data/$*-whisper-base-$(firstword $(SEEDS))"
	$(PY) -m benchmarks.study_table --results_dir "$(OUT_DIR)/validation_results" --name $*

test: venv
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/shellcheck -x jobs/*.sh .ci/run

bench: venv
	$(PY) -m benchmarks.bench_data_processing
	$(PY) -m benchmarks.bench_extraction
	$(PY) -m benchmarks.bench_convexity
	$(PY) -m benchmarks.bench_similarity
	$(PY) -m benchmarks.bench_layer_sweep

# Every fault that the pipeline has to survive, and rubbish for all that reads files from outside; an hour or more.
drills: venv
	$(PY) -m drills.faults --tries $(TRIES)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_fuzz.py --hypothesis-profile drills

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -exec rm -rf {} +
