# From a fresh clone, with nothing but Python 3.11 or newer and a package index: `make demo`, `make test`.
# Everything is installed into .venv; .stamps/ remembers what is, so that a second call installs nothing.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
# No cache: whether an import is our own depends on files that the cache does not watch. Not the documents: ruff would reformat what stands in them for people.
CODE := src tests tools bench
# More options for pip, for example a mirror: make demo PIP_FLAGS='--index-url ADDRESS'
PIP_FLAGS ?=
# Real images and the ImageNet teacher's weights, for `make bench`; what is not there is left out.
SHARED ?= ../shared
TEACHER ?= $(SHARED)/weights/mobilenetv2_100_tf.safetensors
# Tests run in so many processes, each with one thread; a file's in one, so that what its tests share is made once.
WORKERS ?= 2

# mkdocs-material advertises its successor on every build.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help demo quick test check bench docs clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

demo: .stamps/learn,web ## draw a production line, learn it, inspect it, and write demo/index.html
	$(BIN)/blemish demo -o $(DEMO)

QUICK := tests/test_house.py tests/test_options.py tests/test_types.py tests/test_files.py tests/test_images.py \
  tests/test_images_refused.py tests/test_doctests.py tests/data tests/inference tests/evaluation tests/reporting/test_figures.py \
  tests/station/test_journal.py tests/station/test_arrivals.py tests/detectors/nn/test_nearest.py tests/training/test_grid.py

quick: .stamps/dev ## what a change usually breaks, in under a minute: ruff, mypy, the unit tests that train nothing
	$(BIN)/ruff check --no-cache $(CODE)
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile -m 'not trains' $(QUICK)

test: check ## everything: check, then all tests with warnings as errors
	@.ci/programs
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile

check: .stamps/dev ## formatting, lint, types, and the docs built strictly
	$(BIN)/ruff check --no-cache $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

bench: demo .stamps/dev ## beside anomalib, accuracy, start-up, memory, measured again here; writes bench/results/
	$(BIN)/python bench/line.py --shared $(SHARED)
	$(BIN)/python bench/accuracy.py --shared $(SHARED) --demo $(DEMO)/data
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/soak.py --bundle $(DEMO)/flange/bundle --data $(DEMO)/data/flange
	$(BIN)/python bench/tiles.py
	$(BIN)/python bench/align.py
	$(BIN)/python bench/align.py --product board --train 40 --good 24 --defective 4 --size 384
	$(BIN)/python bench/trunk.py --data $(SHARED)/data/casting
	$(BIN)/python bench/attention.py --shared $(SHARED) --demo $(DEMO)/data
	$(BIN)/python bench/false_alarms.py --shared $(SHARED) --demo $(DEMO)/data
	$(BIN)/python bench/robustness.py --shared $(SHARED) --demo $(DEMO)/data
	$(BIN)/python bench/faithfulness.py --shared $(SHARED)
	@if [ -f "$(TEACHER)" ]; then set -x; $(BIN)/python bench/backbones.py --data $(SHARED)/data --teacher $(TEACHER) && \
	$(BIN)/python bench/cam.py --shared $(SHARED) --demo $(DEMO)/data; \
	else echo "bench/backbones.py and bench/cam.py are left out: $(TEACHER) is not here"; fi

docs: .stamps/dev ## the site, served on this machine while you write
	$(BIN)/mkdocs serve

clean: ## remove what was installed and built; demo/ and runs/ stay
	rm -rf $(VENV) .venv-line .stamps site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests tools bench -type d -name __pycache__ -prune -exec rm -rf {} +

# Tried in this order; a version manager's shims may be there and fail, so each is run, and must be able to make a
# virtual environment.
$(VENV)/pyvenv.cfg:
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "$(VENV): $$("$$python" --version), $$(command -v "$$python")"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	  if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	echo "No Python 3.11 or newer that can make a virtual environment. Tried:" \
	  "$(or $(PYTHON),python3.13 python3.12 python3.11 python3). Install one (on Debian and Ubuntu with python3-venv)," \
	  "or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

.stamps/learn,web .stamps/dev: .stamps/%: pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	@echo "Installing blemish[$*]; with PyTorch this is several GB and takes some minutes, once."
	$(BIN)/python -m pip install $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@mkdir -p .stamps && touch $@
