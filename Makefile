# `make setup` installs what is missing; every other target does it first.
BIN := .venv/bin

.PHONY: setup check test unit soak bench demo conformance docs lock clean

setup:
	@scripts/setup

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	$(BIN)/pytest

unit: setup
	$(BIN)/pytest tests/unit tests/property

# Long: 10,000 CNI commands with crashes, and the chaos run that writes docs/reliability.md.
soak: setup
	SOAK_STEPS=10000 $(BIN)/pytest --timeout=3000 tests/kernel/test_cni_crashes.py
	$(BIN)/python -m bench.chaos --faults 500 --write

bench: setup
	$(BIN)/python -m bench

demo: setup
	$(BIN)/poplin lab demo

conformance: setup
	$(BIN)/poplin lab conformance --write docs/conformance.md

docs: setup
	$(BIN)/python scripts/make-docs

lock:
	scripts/lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis src/poplin/cni/poplin-cni
