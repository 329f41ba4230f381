# Two commands on a fresh machine: `make train` and `make test`.
#   make train CONFIG=configs/ddpm_mnist.py ARGS="--config.train.steps=2000"
#   make test ARGS="tests/test_gan.py" WORKERS=0
#   make sample CONFIG=configs/ddpm_digits.py ARGS="--num=100"
PYTHON  ?= python3
VENV    ?= .venv
CONFIG  ?= configs/ddpm_digits.py
ARGS    ?=
# Processes of the tests, each on files of its own; 0 shows their output as they run.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: train sample setup test lint format clean

train: setup
	$(BIN)/python launch.py --config=$(CONFIG) $(ARGS)

sample: setup
	$(BIN)/python launch.py --mode=sample --config=$(CONFIG) $(ARGS)

setup: $(VENV)/.runtime

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache

# A stamp is newer than the list that it was installed from, or the list is installed again.
$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.test: $(VENV)/.runtime requirements-test.txt requirements-test-alone.txt requirements-trackers.txt
	$(PIP) -r requirements-test.txt -r requirements-trackers.txt
	$(PIP) --no-deps -r requirements-test-alone.txt
	@touch $@
