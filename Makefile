# The doors of the repository: make setup | run | test | lint | bench
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config/default.yaml
# Most tests wait for something outside: files of tests run beside each other, two for each
# processor, in the order of tests/conftest.py.
BESIDE ?= --numprocesses $$(expr 2 \* $$(nproc)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup run test lint nightly appliance-test bench clean

help:
	@echo "make run    install what is pinned and start the agent on $(CONFIG)"
	@echo "make test   install what is pinned and run the tests"
	@echo "make nightly  the long form of the tests"
	@echo "make appliance-test  boots, hangs and cuts a whole machine under QEMU (HOLDFAST_LONG=1: 20 cuts)"
	@echo "make lint   ruff, mypy, import layers        make bench  the measurements        make setup  install only"

define require
@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON). Install Python 3.11 or newer (Debian, Ubuntu: apt-get install python3 python3-venv)"; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Name another with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: the venv module of $(PYTHON) (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
endef

# A set is installed again only when its lock has changed.
$(VENV)/%.installed: requirements/%.txt pyproject.toml
	$(require)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements/$*.txt into $(VENV) (once, a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$*.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(VENV)/run.installed

run: setup
	@$(BIN)/holdfast run --config $(CONFIG)

test: $(VENV)/dev.installed
	@$(BIN)/python -m pytest $(BESIDE) $(PYTEST_ARGS)

lint: $(VENV)/dev.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# The long form of the proofs, some hours; each night another seed, which is printed.
nightly: $(VENV)/dev.installed
	@seed=$$(date +%s); echo "HOLDFAST_LONG=1 HOLDFAST_SEED=$$seed"; \
	HOLDFAST_LONG=1 HOLDFAST_SEED=$$seed $(BIN)/python -m pytest -o faulthandler_timeout=0

# A machine of its own, booted, hung, reset, and cut from its power: docs/appliance.md. One at a time.
APPLIANCE_PACKAGES := qemu-system-x86 qemu-utils mmdebstrap kmod cpio e2fsprogs mosquitto
appliance-test: $(VENV)/dev.installed
	@PATH="$$PATH:/usr/sbin:/sbin"; for one in qemu-system-x86_64 qemu-io mmdebstrap depmod cpio mkfs.ext4 mosquitto; do \
		command -v $$one >/dev/null || { echo "missing: $$one. apt-get install --no-install-recommends $(APPLIANCE_PACKAGES)"; exit 1; }; done
	@test $$(id -u) = 0 || { echo "an image is made by root alone (mmdebstrap, chroot): sudo make appliance-test"; exit 1; }
	@HOLDFAST_APPLIANCE=1 $(BIN)/python -m pytest -m appliance -o faulthandler_timeout=0 tests/appliance $(PYTEST_ARGS)

bench: $(VENV)/dev.installed
	@for b in memory hops streams live serving door isolation recovery rollback ipc store outage damage faults sync ingest reconnect crowd commands rollout; do $(BIN)/python -m bench.$$b || exit 1; done

clean:
	rm -rf $(VENV) var
