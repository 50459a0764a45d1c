# Needs make and a Python from 3.10 to 3.14; everything else goes into .venv.
PYTHON ?= python3
# What to install as torch, and options for pip that say where from. For the CPU build from PyTorch's own index:
#   make TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
TORCH_OPTIONS ?=

# What else to install: dev and, as CI does, the optional parts (dev,cluster,plot,video).
EXTRAS ?= dev

BIN := .venv/bin
comma := ,
# Named for the Python and the extras, so that another one sets .venv up anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := .venv/stamp-$(VERSION)-$(subst $(comma),-,$(EXTRAS))

.DEFAULT_GOAL := help
.PHONY: help venv demo test trial check bench clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

venv: $(STAMP) ## Set up .venv

# torch first and by itself: a bare "torch" may be gigabytes of CUDA.
$(STAMP): pyproject.toml
	@case "$(VERSION)" in 3.10|3.11|3.12|3.13|3.14) ;; \
	*) echo "expected a Python from 3.10 to 3.14, found '$(VERSION)' ($(PYTHON)); name another: make PYTHON=python3.12" >&2; \
	   exit 1;; esac
	@echo "setting up .venv with Python $(VERSION): downloads some hundred megabytes once, and takes a minute or more"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_OPTIONS) '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $@

demo: $(STAMP) ## Compress synthetic segments, restore them with the zip's own decompress.py, compare
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/vqcomp sample-data "$$folder/data" --segments 2 --frames 200; \
	$(BIN)/vqcomp compress "$$folder/data" "$$folder/demo.zip"; \
	$(BIN)/python -m zipfile -e "$$folder/demo.zip" "$$folder/unpacked"; \
	OUTPUT_DIR="$$folder/restored" $(BIN)/python "$$folder/unpacked/decompress.py"; \
	diff -r "$$folder/data" "$$folder/restored"; \
	echo "restored files are identical"; \
	$(BIN)/vqcomp evaluate "$$folder/demo.zip" "$$folder/data"

test: $(STAMP) ## Run the tests
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(PYTEST_OPTIONS)

TRIAL_OPTIONS ?= --time 20m --jobs 2

trial: $(STAMP) ## Damage everything that vqcomp reads, for 20 minutes (TRIAL_OPTIONS="--time 5m --seed 7")
	$(BIN)/python tests/trial/run.py $(TRIAL_OPTIONS)

check: $(STAMP) ## Lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## Measure rate and speed
	$(BIN)/python benchmarks/compression_rate.py
	$(BIN)/python benchmarks/speed.py --learning --memory

clean: ## Remove .venv and caches
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
