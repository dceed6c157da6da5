# Stages chained over one run directory; 'make help' lists them. Each stage says what it does or that it is up to date.
.NOTPARALLEL:
.DEFAULT_GOAL := help
SHELL := /bin/sh

DATASET ?= digits
DATA ?=
RECIPE ?=
EPOCHS ?=
SEED ?= 0
DEVICE ?= auto
RUN ?= artifacts/$(DATASET)
GRID ?= quick
PYTEST ?=
PARALLEL ?= $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && echo --numprocesses auto --dist loadfile -p no:benchmark)
VENV ?= .venv
BOOTSTRAP ?= python3
PYTHON ?= $(VENV)/bin/python
READY := $(if $(VENV),$(VENV)/.ready)
STAGE := $(PYTHON) -m stn_export

.PHONY: help setup train export verify bench bench-train report demo all test lint clean

help: ## list targets and variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  DATASET=$(DATASET)  cifar10 or digits"
	@echo "  DATA=$(DATA)  directory holding cifar-10-batches-py or {train,test}/<class>/*.png"
	@echo "  RECIPE=$(RECIPE)  reference or quick; by default the data set's own"
	@echo "  EPOCHS=$(EPOCHS)  instead of the recipe's own"
	@echo "  SEED=$(SEED)"
	@echo "  DEVICE=$(DEVICE)  auto, cpu or cuda"
	@echo "  RUN=$(RUN)  run directory"
	@echo "  GRID=$(GRID)  quick or full: how much 'make bench' times"
	@echo "  VENV=$(VENV)  set it empty, and PYTHON=python3, to use an interpreter that has the packages"

setup: $(READY) ## build $(VENV) from constraints.txt (every target does this first)

$(READY): pyproject.toml constraints.txt
	$(BOOTSTRAP) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: $(READY) ## train the spatial transformer and the plain CNN
	@$(STAGE).train --dataset '$(DATASET)' --data '$(DATA)' --recipe '$(RECIPE)' --epochs '$(EPOCHS)' --seed '$(SEED)' --device '$(DEVICE)' --run '$(RUN)'

export: $(READY) ## write TorchScript and ONNX files
	@$(STAGE).export --run '$(RUN)' --data '$(DATA)'

verify: $(READY) ## prove every file equal to PyTorch
	@$(STAGE).verify --run '$(RUN)' --data '$(DATA)'

bench: $(READY) ## time every file on every backend
	@$(PYTHON) -m pytest benchmarks --run '$(RUN)' --grid '$(GRID)' --device '$(DEVICE)' --data '$(DATA)' \
		--benchmark-json='$(RUN)/bench.json' --benchmark-columns=min,median,iqr,rounds --benchmark-sort=min

bench-train: $(READY) ## time an epoch of training against the tutorial's loop, and keep the figures
	@$(PYTHON) -m pytest benchmarks --dataset '$(DATASET)' --data '$(DATA)' --device '$(DEVICE)' \
		--benchmark-json=artifacts/bench-train.json --benchmark-columns=min,median,max,rounds
	@$(PYTHON) -m benchmarks.keep_training artifacts/bench-train.json

report: $(READY) ## write report.html and report.md
	@$(STAGE).report --run '$(RUN)' --data '$(DATA)'

all: train export verify bench report ## all stages, one after the other

demo: ## all stages on the built-in digits: nothing to download, a few minutes
	@$(MAKE) --no-print-directory all DATASET=digits RUN=artifacts/digits

test: $(READY) ## the test suite; PYTEST= passes it options
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PARALLEL) $(PYTEST)

lint: $(READY) ## ruff, style and format
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

clean: ## remove every generated run
	rm -rf artifacts/*/ .pytest_cache .ruff_cache
