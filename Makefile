# Two commands that do all their own set-up: `make score` and `make test`.
#
#   make score                                             a synthetic sample archive
#   make score ARCHIVE=/data/films OUTPUT=out/films        your own archive
#   make score ARCHIVE=s3://bucket/films OUTPUT=s3://bucket/scores WEIGHTS=s3://bucket/bundle \
#              OPTIONS='limit=1000 archive_options.anon=true'
#   make test | make lint | make format | make clean
#
# ARCHIVE, OUTPUT and WEIGHTS reach the shell through the environment and Hydra in quotes, so that
# spaces, commas and equals signs in them are safe. Exit codes: make turns every failure into 2; for the
# codes of docs/reference/error-codes.md run `python jobs/score.py` itself.

PYTHON ?= python3
VENV ?= .venv
ARCHIVE ?=
OUTPUT ?= out/scores
WEIGHTS ?=
OPTIONS ?=
# Two files at a time, in the order of their names: the end-to-end part waits half of its time, and comes first.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup score test lint format clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(STAMP)

# The stamp makes every later call quick; a change of the pins, the extras or the compiled code installs again.
$(STAMP): pyproject.toml constraints.txt $(wildcard cxr_ray/nets/fused/*.cpp cxr_ray/nets/fused/*.h)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "cxr_ray needs Python 3.11 or later; name one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) (once, some minutes) ..."
	@"$(PYTHON)" -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch "$(STAMP)"

# `q` writes a Hydra string: in single quotes, with single quotes inside escaped. Without run.json nothing was
# scored (OPTIONS=dry_run=true).
score: export ARCHIVE := $(ARCHIVE)
score: export OUTPUT := $(OUTPUT)
score: export WEIGHTS := $(WEIGHTS)
score: $(STAMP)
	@set -eu; \
	q() { printf "'%s'" "$$(printf '%s' "$$1" | sed "s/'/\\\\'/g")"; }; \
	synthetic=; \
	if [ -z "$$ARCHIVE" ]; then \
		synthetic=yes; ARCHIVE=sample; \
		[ -e sample/README.txt ] || "$(BIN)/cxr-ray" sample sample; \
	fi; \
	if [ -z "$$WEIGHTS" ]; then \
		WEIGHTS=default; \
		if [ -n "$$synthetic" ] && [ ! -e cxr_ray/weights/default/bundle.json ]; then WEIGHTS=seeded; fi; \
	fi; \
	"$(BIN)/python" jobs/score.py "archive=$$(q "$$ARCHIVE")" "output=$$(q "$$OUTPUT")" "weights=$$(q "$$WEIGHTS")" $(OPTIONS); \
	case "$$OUTPUT" in *://*) ;; *) [ -e "$$OUTPUT/run.json" ] || exit 0 ;; esac; \
	echo; \
	echo "Table:    $$OUTPUT/scores/*.parquet    try: $(BIN)/cxr-ray query \"$$OUTPUT\" \"SELECT uri, member, status, reason, p_covid FROM scores\""; \
	case "$$OUTPUT" in \
		*://*) echo "Pictures: $(BIN)/cxr-ray render \"$$OUTPUT\" --top 4 --out pictures" ;; \
		*) "$(BIN)/cxr-ray" render "$$OUTPUT" --top 4 --out "$$OUTPUT/pictures" >/dev/null; \
		   echo "Pictures: $$OUTPUT/pictures/" ;; \
	esac; \
	echo "Summary:  $$OUTPUT/run.json"; \
	if [ -n "$$synthetic" ]; then echo "The sample archive is SYNTHETIC: drawn phantoms, no patients, and one file broken on purpose."; fi; \
	if [ "$$WEIGHTS" = seeded ]; then echo "The weights are UNTRAINED (weights=seeded): these scores and maps mean nothing."; fi; \
	echo "Research software, not a medical device."

test: $(STAMP)
	"$(BIN)/python" -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy

format: $(STAMP)
	"$(BIN)/python" -m ruff check --fix .
	"$(BIN)/python" -m ruff format .

clean:
	rm -rf "$(VENV)" build dist .pytest_cache .mypy_cache .ruff_cache
