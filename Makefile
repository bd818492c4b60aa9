# Each target first installs what it needs into .venv. PYTHON is any Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-long lint format tensorboard

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
# torchvision for the tests of MViT. Its wheel is made for torch with CUDA, and beside another torch it would break
# transformers, which imports it wherever it finds it: so it gets a folder of its own.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --target $(VENV)/torchvision --upgrade torchvision
	touch $@

# From nothing to a trained model and its table: phantom angiograms, ingest, training, evaluation.
demo: install
	$(BIN)/python -m experiments.demo

# What starts a Ray of the whole machine runs by itself, the rest in two processes of one thread.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/integration --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest tests/integration

test-long: install
	$(BIN)/python -m pytest tests -m long

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

tensorboard: install
	$(BIN)/tensorboard --logdir runs
