.DEFAULT_GOAL := help
.PHONY: help setup guests demo check lint man matrix stress bench clean
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# Processes that share the tests; WORKERS=0 for none but pytest's own. Each has volumes of its own.
WORKERS := auto
# Where `make bench` leaves its table, its plots and what they are made from.
OUT := build/bench

help:  ## say what can be made
	@sed -n 's/^\([a-z]*\):[^#]*##  *\(.*\)/make \1\t\2/p' Makefile | expand -t 16

setup:  ## install what is missing and make .venv (the others call it)
	@tests/matrix/setup.sh

demo: setup  ## mount a real musl guest on a real folding volume and look around in it
	@$(BIN)/python -m tests.matrix.demo

guests: setup  ## build the guest programs of the demo and the tests, kept in the cache
	@$(BIN)/python -m tests.matrix.guests
	@$(BIN)/python -m tests.matrix.programs
	@$(BIN)/python -m tests.matrix.testsuites

lint: setup  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

check: lint guests  ## everything that must hold: lint, then the tests
	$(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal --max-worker-restart 4

man: setup  ## write docs/man anew, from what the command line declares
	$(BIN)/python -m sysroot_fs.cli.manual docs/man

matrix: guests  ## suites by volumes, guests, places and modes; ONLY=suite=..,volume=a+b for some; REPORT=DIR
	@$(BIN)/python -m tests.matrix.table "$(ONLY)" $(if $(REPORT),--report "$(REPORT)")

stress: setup  ## 8 terminals at once, 100 rounds of starting musl programs in them
	SYSROOT_FS_STRESS_ROUNDS=100 $(BIN)/pytest tests/test_run_terminal.py -k eight

bench: guests  ## this project beside others of its kind, 40 minutes; BENCH=--quick for 3; OUT=DIR
	@$(BIN)/python -m benchmarks.bench --out "$(OUT)" $(BENCH)

clean:  ## remove .venv, caches and build output; the guest root's cache stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
