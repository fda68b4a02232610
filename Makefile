# make demo   train CS-KD and its baseline on scanned digits, compare them
# make test   lint, types, import rules, tests
# make bench  the benchmarks under scripts/
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
LAUNCH = $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	--num_cpu_threads_per_process $(shell getconf _NPROCESSORS_ONLN) -m cskd_hf.train

.PHONY: demo test bench clean

demo: $(VENV)/.installed
	$(LAUNCH) recipes/digits_test_resnet.yaml
	$(LAUNCH) recipes/digits_test_resnet.yaml 'method={name: cross_entropy}'
	@$(BIN)/python -m cskd_hf.evaluate runs/digits_test_resnet-cskd-seed0 runs/digits_test_resnet-cross_entropy-seed0 \
		--metrics top1_error,nll,ece,aurc

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.installed
	$(BIN)/python scripts/bench/run_all.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than 3.10; write make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
