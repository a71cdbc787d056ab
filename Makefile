# `make` prints what there is. Everything that is made stays in the clone: .venv, .zenml, target.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
export ZENML_CONFIG_PATH ?= $(CURDIR)/.zenml
export ZENML_ANALYTICS_OPT_IN ?= false

.NOTPARALLEL:
.PHONY: help check setup base-image run test test-rust test-python test-aws aws-setup aws-bench lint format wheel bench clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

check: ## Say what is missing for a run, if something is
	@scripts/check

setup: ## Virtual environment with the package built and installed
	@scripts/setup

base-image: ## The image that pipeline images are built on, from a registry or made here
	@scripts/base-image

run: check setup base-image ## Set everything up and run the tutorial's pipeline
	@scripts/demo

test: check setup base-image test-rust test-python test-aws ## Set everything up and run every test

# The second run leaves out what it could only repeat: these modules know no features. Its tests wait for the engine most of the
# time.
test-rust: ## Tests of the Rust core, the Docker ones on the real engine
	cargo test --locked --no-default-features
	cargo test --locked --no-default-features --features docker,aws -- --skip asl:: --skip schedule:: --test-threads 4

# Pipelines start one process after the other and wait in between: three at a time keep two cores busy. What is in one file stays
# together.
test-python: setup base-image ## Tests of the Python side, on a real engine and real pipelines
	$(VENV)/bin/python -m pytest --numprocesses 3 --dist loadfile

# Each file has a local AWS of its own: what the one leaves there is not the other's to find.
test-aws: aws-setup ## Tests against a local AWS: Step Functions that executes, tasks in containers
	$(VENV)/bin/python -m pytest tests/aws --numprocesses 3 --dist loadfile

aws-setup: setup base-image
	@scripts/aws-bench-setup

aws-bench: base-image ## A local AWS in the foreground; ends by itself when it is not used
	@scripts/aws-bench

lint: setup ## Formatters and linters, changing nothing
	cargo fmt --check
	cargo clippy --locked --no-default-features --all-targets -- -D warnings
	cargo clippy --locked --all-targets -- -D warnings
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/stubtest step_engine._native --ignore-missing-stub
	@if command -v shellcheck >/dev/null; then shellcheck $$(grep -l "^#.*bash" scripts/*) .ci/run; else echo "shellcheck is not installed: left out"; fi

format: setup ## Format everything
	cargo fmt
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

wheel: setup ## Build a wheel into dist/
	$(VENV)/bin/pip wheel --no-deps --wheel-dir dist .

bench: setup base-image ## Compare with ZenML's own local_docker; the core's figures
	cargo bench --no-default-features --bench scheduler
	cargo test --locked --no-default-features --features docker --test rust warm_latencies -- --ignored --nocapture
	$(VENV)/bin/python bench/compare.py

clean: ## Remove what was made here, images and containers included
	@scripts/clean
