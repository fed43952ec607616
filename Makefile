# make demo   own virtual environment, install, logit lens of an example prompt on the bundled model
# make test   the same environment plus the development tools, then the whole test-suite
# make lint   ruff (lint and format) and pyright
# make docs   the documentation as pages that open from disk: build/site/index.html
# make notebooks   runs the notebooks and stores what they print and draw
#
# Another interpreter: make demo PYTHON=python3.12     Arguments for pytest: make test ARGS="-k cache"

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# One torch thread in each of a few workers is faster on many small tests than several threads in one.
WORKERS ?= auto
ARGS ?=

# An installed environment is remembered by a file in it, so that a second call installs nothing.
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs notebooks constraints clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(RUN_READY)
	$(PY) -m analyses.logit_lens examples/prompt.txt --model mini

test: $(DEV_READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --maxprocesses=4 --dist=worksteal $(ARGS)

lint: $(DEV_READY)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright

# Broken links, missing anchors and docstrings that name nothing are errors.
docs: $(DEV_READY)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "build/site/index.html"

notebooks: $(DEV_READY)
	$(PY) -m notebooks.build

format: $(DEV_READY)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "hooked-gpt2 needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv" >&2; exit 1; }

$(RUN_READY): pyproject.toml constraints.txt | $(PY)
	@echo "Installing hooked-gpt2 into $(VENV) (some minutes the first time) ..."
	@$(PIP) install -qq -c constraints.txt -e .
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(PY)
	@echo "Installing hooked-gpt2 and its development tools into $(VENV) (some minutes the first time) ..."
	@$(PIP) install -qq -c constraints.txt -e ".[dev]"
	@touch $(RUN_READY) $@

# The newest versions that fit pyproject.toml, written down after the suite has passed with them.
# A local suffix (torch's +cpu, +cu130) is cut off: any build of that version will do.
constraints: CHECK := build/constraints-venv
constraints: | $(PY)
	rm -rf $(CHECK)
	$(PY) -m venv $(CHECK)
	$(CHECK)/bin/python -m pip --disable-pip-version-check install -qq -e ".[dev,notebooks]"
	$(CHECK)/bin/python -m pytest -n $(WORKERS) --maxprocesses=4 --dist=worksteal
	{ sed -n '/^#/p' constraints.txt; \
	  $(CHECK)/bin/python -m pip freeze --all --exclude-editable | grep -v "^pip==" | sed -E 's/\+[A-Za-z0-9.]+$$//' | sort -f; \
	} > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
