# 'make run' serves models/, 'make test' runs every test; 'make help' lists the rest. Both make their own environment.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The interpreter to make environments with, the device to serve on, and more arguments for the server or pytest.
PYTHON ?= python3
DEVICE ?= $(or $(PANTHER_DEVICE),cpu)
ARGS ?=
INPUTS ?= 2400000
MINUTES ?= 20

# What is installed on the machine must not reach in.
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP VIRTUAL_ENV
export PYTHON
export PYTHONNOUSERSITE := 1
export ORT_DISABLE_TELEMETRY := 1

serve_env := $(if $(filter cuda,$(DEVICE)),.venv-serve-gpu,.venv-serve)
serve_extra := $(if $(filter cuda,$(DEVICE)),gpu,cpu)
python := .venv/bin/python

.PHONY: help run test lint format check test-make test-compose soak fuzz docs bench report hooks lock audit serve-env dev-env clean

help: ## list the targets
	@echo 'usage: make TARGET [NAME=value …]'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name what; \
	  do printf '  %-13s %s\n' "$$name" "$$what"; done

run: serve-env ## serve models/ on port 8000, Ctrl-C stops; DEVICE=cuda, PANTHER_PORT=…, ARGS="--help"
	@PANTHER_DEVICE=$(DEVICE) exec $(serve_env)/bin/python -m app $(ARGS)

test: dev-env ## run all tests; ARGS="-k name" chooses
	@exec $(python) -m pytest $(ARGS)

lint: dev-env ## check style and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(python) -m bandit --quiet --recursive --configfile pyproject.toml app panther panther_client deploy

format: dev-env ## mend what can be mended of the style
	$(python) -m ruff check --fix-only .
	$(python) -m ruff format .

check: lint test docs test-make test-compose ## everything that CI runs; needs Docker

test-make: dev-env ## test the environments, and 'make run' as a user starts it
	@exec $(python) -m pytest -m environment tests/deploy $(ARGS)

test-compose: dev-env ## build the images, run, scale, kill, train and ask by Docker Compose; needs Docker
	@exec $(python) -m pytest -m docker tests/deploy $(ARGS)

soak: dev-env ## 20 minutes of mixed traffic, every answer compared; MINUTES=…
	@exec $(python) tests/soak/traffic.py --minutes $(MINUTES) --output benchmarks/results/soak.json

docs: dev-env ## build the documentation into site/; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 exec $(python) -m mkdocs build --strict $(ARGS)

bench: dev-env ## run every benchmark of this machine, results into benchmarks/results/; ARGS="--quick", ARGS="layer"
	@exec $(python) benchmarks/run.py $(ARGS)

report: dev-env ## put the results of the benchmarks into the tables and pictures of the documents
	@exec $(python) benchmarks/report.py $(ARGS)

fuzz: dev-env ## two million odd inputs, models and requests; some ten minutes, INPUTS=… for another number
	@exec $(python) tests/fuzz/run.py --inputs $(INPUTS) --output benchmarks/results/fuzz.json

hooks: dev-env ## check each commit by pre-commit
	$(python) -m pre_commit install

lock: ## write the hashed locks of the images' packages, and their bills of materials, anew
	@scripts/lock

audit: ## look up known vulnerabilities of what the images install; needs the internet
	@scripts/audit

serve-env:
	@scripts/environment $(serve_env) $(serve_extra)

dev-env:
	@scripts/environment .venv train,cpu,dev,docs

clean: ## remove the environments and what tools left
	rm -rf .venv .venv-serve .venv-serve-gpu .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
