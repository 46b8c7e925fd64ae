# Two commands: `make demo` and `make test`. Both need Python 3.11+ and make, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out
# JupyterLab refuses to run as root, as in a container, unless it is told to.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check lab lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## make .venv and install everything into it, by hash

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "labkit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## replay 69,659 real purchases through Kafka into MongoDB, check every cent
	@mkdir -p $(OUT)
	$(BIN)/labkit demo --json $(OUT)/demo.json --plot $(OUT)/demo.png

check: install ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict labkit benchmarks
	$(BIN)/lint-imports --no-cache

test: check ## the test suite, on real servers that it starts itself
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: install ## what takes longer than `make test` may
	$(BIN)/pytest -n 2 --dist loadfile -m slow

lab: install ## start the servers, then JupyterLab on the first notebook
	$(BIN)/labkit up
	$(BIN)/jupyter lab $(ROOT) --ServerApp.root_dir="$(CURDIR)" --LabApp.news_url= --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

lock: ## pin all requirements anew (needs uv)
	uv pip compile --universal --generate-hashes --all-extras --no-annotate --no-header pyproject.toml -o requirements.lock

clean: ## remove .venv and what the demo wrote
	rm -rf $(VENV) $(OUT)
