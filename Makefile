# Every target sets up what it needs. PYTHON is any Python 3.11 or 3.12; uv comes from pip into the venv.
PYTHON ?= python3
DATA   ?=
OUT    ?= outputs/tsf
WORKERS ?= 2
PRESET ?= lite
BIN    := .venv/bin
UV     := $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt

.PHONY: help setup demo docs test check shards browse serve bench chaos fuzz clean eval study train-proposer train-stage1 train-stage2
help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.8
	$(UV) setuptools

# Three sizes of the same environment, each a stamp: what the lite preset needs, plus the tools of the tests, plus the
# paper's models (6 GB with CUDA).
.venv/.base: $(BIN)/uv pyproject.toml constraints.txt
	@echo "installing the base (about 1.2 GB) into .venv ..."
	$(UV) -e .
	@touch $@
.venv/.dev: .venv/.base
	$(UV) -e '.[dev]'
	@touch $@
.venv/.full: .venv/.dev
	@echo "installing torch and the models' packages (about 6 GB) into .venv ..."
	SAM2_BUILD_CUDA=0 $(UV) -e '.[dev,docs,full]'
	@touch $@

setup: .venv/.full ## everything: base, test tools, torch and the paper's models
	@echo "ready: $(BIN)/sparrow --help"

demo: .venv/.base ## the whole pipeline on a synthetic corpus: OUT=outputs/demo
	$(BIN)/sparrow demo --out $(if $(filter file,$(origin OUT)),outputs/demo,$(OUT)) --workers $(WORKERS)

check: .venv/.full ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check ## lint, types and the whole test suite
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

shards: $(if $(filter lite,$(PRESET)),.venv/.base,.venv/.full) ## curate every source under DATA=... into OUT=... with PRESET=lite
	@test -n "$(DATA)" || { echo "say where the datasets are, one folder per source (/data/hcstvg, ...): make shards DATA=/data OUT=outputs/tsf"; exit 2; }
	$(BIN)/sparrow shards --data-root $(DATA) --out $(OUT) --preset $(PRESET) --workers $(WORKERS)

docs: .venv/.full ## the documentation site: outputs/docs/index.html, opens from disk
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

browse: .venv/.base ## look at an output in a browser: OUT=outputs/demo
	$(BIN)/sparrow browse $(if $(filter file,$(origin OUT)),outputs/demo,$(OUT))

serve: .venv/.base ## Prefect server, work pool, worker and deployments: DATA=... OUT=...
	$(BIN)/python -m flows.serve $(if $(DATA),--data $(DATA)) --out $(OUT)

# One GPU, or a CPU with SIZE=tiny; for more, torchrun --nproc-per-node N -m flows.cli train ...
HOST   ?= videoglamm
SCALE  ?= cpu
STUDY  ?= outputs/study-$(SCALE)-$(HOST)
SIZE   ?= tiny
RUNS   ?= outputs/runs/$(HOST)-$(SIZE)
BENCHMARK ?= ref-davis17
GPUS   ?= 1
STEPS  ?= $(if $(filter tiny,$(SIZE)),200)
TRAIN   = --host $(HOST) --size $(SIZE) --workers $(WORKERS) $(if $(STEPS),--steps $(STEPS)) \
          $(if $(filter tiny,$(SIZE)),--frames 4 --set train.batch=2 --set train.lr=0.003) $(ARGS)

train-proposer: .venv/.full ## the proposer, on DATA=outputs/demo or a folder with coco, objects365, openimages, v3det, shards
	$(BIN)/sparrow train proposer --data $(or $(DATA),outputs/demo) --out $(RUNS)/proposer $(TRAIN) \
	  $(if $(filter tiny,$(SIZE)),--set train.batch=8)

train-stage1: .venv/.full ## stage 1 on the shards of DATA=outputs/demo: SIZE=tiny HOST=videoglamm RUNS=... ARGS=...
	$(BIN)/sparrow train stage1 --data $(or $(DATA),outputs/demo) --out $(RUNS)/stage1 \
	  $(if $(wildcard $(RUNS)/proposer/export),--from $(RUNS)/proposer/export) $(TRAIN)

train-stage2: .venv/.full ## stage 2, from the export of train-stage1
	$(BIN)/sparrow train stage2 --data $(or $(DATA),outputs/demo) --out $(RUNS)/stage2 --from $(RUNS)/stage1/export $(TRAIN)

eval: .venv/.full ## a model's score: BENCHMARK=ref-davis17 DATA=/data/davis HOST=... SIZE=tiny ARGS="--checkpoint ..."
	@test -n "$(DATA)" || { echo "say where the benchmark is: make eval BENCHMARK=ref-davis17 DATA=/data/davis"; exit 2; }
	$(BIN)/sparrow eval $(BENCHMARK) --data-root $(DATA) --out $(RUNS)/eval-$(BENCHMARK) --host $(HOST) --size $(SIZE) \
	  --workers $(GPUS) $(if $(filter tiny,$(SIZE)),--answer force) $(ARGS)

study: .venv/.full ## small models from nothing: which ablations of the paper show: SCALE=cpu|gpu HOST=... STUDY=folder
	$(BIN)/sparrow study --scale $(SCALE) --host $(HOST) --out $(STUDY) --workers $(WORKERS)

KILLS   ?= 200
SEED    ?= 0
MINUTES ?= 10
chaos: .venv/.dev ## kill runs at every step of a commit and at random moments, compare bytes: KILLS=200 SEED=0
	KILLS=$(KILLS) SEED=$(SEED) $(BIN)/pytest tests/chaos tests/e2e/test_prefect.py -s --timeout 0

fuzz: .venv/.dev ## every bad input, then hypothesis on every parser: MINUTES=10
	BADINPUT=all $(BIN)/pytest tests/badinput
	FUZZ_MINUTES=$(MINUTES) FUZZ_SEED=$(SEED) $(BIN)/pytest tests/fuzz -rP

bench: .venv/.full ## speed and memory of models and pipeline, for this machine
	$(BIN)/sparrow bench

clean: ## remove the environment and caches (never outputs)
	rm -rf .venv .ruff_cache .mypy_cache .hypothesis .pytest_cache *.egg-info
