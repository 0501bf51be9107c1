# 'make run' serves models/, 'make test' runs every test; 'make help' lists all. Each builds its environment.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The interpreter for environments, the device for serving, and extra arguments for the server or pytest.
PYTHON ?= python3
DEVICE ?= $(or $(PANTHER_DEVICE),cpu)
ARGS ?=
INPUTS ?= 2400000
MINUTES ?= 20
# Processes of pytest that run the tests in parallel: one more than cores, since some tests wait for servers.
WORKERS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))

# Ignore packages installed on the machine, and keep compiled modules: the tests start hundreds of processes.
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
export PYTHON
export PYTHONNOUSERSITE := 1
export ORT_DISABLE_TELEMETRY := 1

serve_env := $(if $(filter cuda,$(DEVICE)),.venv-serve-gpu,.venv-serve)
serve_extra := $(if $(filter cuda,$(DEVICE)),gpu,cpu)
python := .venv/bin/python
# The core of the server and the library; a minute or two.
lowest_python := $(if $(shell python3.11 -c 'print(1)' 2>/dev/null),python3.11,$(PYTHON))
lowest_tests := tests/unit/app/config tests/unit/app/engine tests/unit/app/grpc tests/unit/app/http \
  tests/unit/app/telemetry/test_tracing.py tests/integration/test_predict.py tests/integration/test_oip.py tests/integration/test_openapi.py \
  tests/integration/test_stats.py tests/unit/panther/linalg tests/unit/panther/nn/test_linear.py \
  tests/unit/panther/test_checkpoint.py tests/unit/panther/convert/test_from_linear.py tests/unit/panther/export/verify
# A file is run by one process, which makes its fixtures once. Each process has one thread: together they use the cores.
parallel = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
test: export OMP_NUM_THREADS ?= 1

.PHONY: help run test test-lowest lint format check test-make test-compose soak fuzz docs bench report hooks lock audit \
  serve-env dev-env lowest-env clean

help: ## list the targets
	@echo 'usage: make TARGET [NAME=value …]'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name what; \
	  do printf '  %-13s %s\n' "$$name" "$$what"; done

run: serve-env ## serve models/ on port 8000, Ctrl-C stops; DEVICE=cuda, PANTHER_PORT=…, ARGS="--help"
	@PANTHER_DEVICE=$(DEVICE) exec $(serve_env)/bin/python -m app $(ARGS)

test: dev-env ## run all tests; ARGS="-k name" selects, WORKERS=0 runs them in one process
	@exec $(python) -m pytest $(parallel) $(ARGS)

test-lowest: lowest-env ## run the core tests with the lowest versions that pyproject.toml allows
	@exec .venv-lowest/bin/python -m pytest -W default::DeprecationWarning $(lowest_tests) $(ARGS)

lint: dev-env ## check style and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(python) -m bandit --quiet --recursive --configfile pyproject.toml app panther panther_client deploy

format: dev-env ## fix style problems
	$(python) -m ruff check --fix-only .
	$(python) -m ruff format .

check: lint test test-lowest docs test-make test-compose ## everything that CI runs; requires Docker

test-make: dev-env ## test the environments, and 'make run'
	@exec $(python) -m pytest -m environment tests/packaging/deploy $(ARGS)

test-compose: dev-env ## build the images, run, scale, kill, train and predict with Docker Compose; requires Docker
	@exec $(python) -m pytest -m docker tests/packaging/deploy $(ARGS)

soak: dev-env ## 20 minutes of mixed traffic, every response compared; MINUTES=…
	@PYTHONPATH=benchmarks exec $(python) tests/robustness/soak/traffic.py --minutes $(MINUTES) --output benchmarks/results/soak.json

docs: dev-env ## build the documentation into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 exec $(python) -m mkdocs build --strict $(ARGS)

bench: dev-env ## run every benchmark of this machine, writing to benchmarks/results/; ARGS="--quick", ARGS="layer"
	@exec $(python) benchmarks/run.py $(ARGS)

report: dev-env ## update the documents' tables and pictures from the benchmark results
	@exec $(python) benchmarks/report.py $(ARGS)

fuzz: dev-env ## two million random inputs, models and requests; about ten minutes; INPUTS=… sets the number
	@PYTHONPATH=tests:benchmarks exec $(python) tests/robustness/fuzz/run.py --inputs $(INPUTS) --output benchmarks/results/fuzz.json

hooks: dev-env ## install the hooks that check each commit and its message
	$(python) -m pre_commit install --hook-type pre-commit --hook-type commit-msg

lock: ## write the images' lock files with hashes, their bills of materials, and the lowest versions
	@scripts/lock
	@scripts/lowest

audit: ## look up known vulnerabilities in the images' packages; requires the internet
	@scripts/audit

serve-env:
	@scripts/environment $(serve_env) $(serve_extra)

# timm and torchvision are installed without their dependencies: benchmarks/architectures/packages.py says why.
dev-env:
	@scripts/environment .venv train,cpu,dev,docs
	@[ -d .venv/vision ] || $(python) -I -m pip install -qq --no-deps -c constraints.txt --target .venv/vision timm torchvision || \
	  echo 'timm and torchvision could not be installed: the tests of their architectures are skipped'

lowest-env:
	@PYTHON=$(lowest_python) scripts/environment .venv-lowest client,cpu,grpc,otel,test,train requirements/lowest.txt

clean: ## remove the environments and tool caches
	rm -rf .venv .venv-lowest .venv-serve .venv-serve-gpu .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
