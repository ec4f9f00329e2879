# make sims   add the simulators of robots (PushT needs none of them): robosuite, robomimic, LIBERO, pybullet
# make demo   install, train a small model, evaluate it in PushT, write a report
# make test   install, simulators included, run the whole suite
# make faults  the suite of faults at full count: kills at random moments, malformed messages, hostile files
# make lerobot PYTHON=python3.12  the plug-in for LeRobot, in an environment of its own (6 GB), with LeRobot's commands
# make docs   build the documentation as web pages into site/
# make lint   style and import rules
# make clean  remove the environment and what tools left behind (never data or outputs)

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SIMS := $(VENV)/sims_installed
LEROBOT := .venv-lerobot

.PHONY: install sims demo test faults lerobot docs lint clean

install: $(STAMP)

$(STAMP): pyproject.toml requirements/constraints.txt
	$(PYTHON) scripts/check_system.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements/constraints.txt --editable ".[dev]"
	touch $@

sims: $(SIMS)

$(SIMS): $(STAMP) requirements/without_dependencies.txt
	$(PYTHON) scripts/check_system.py --sims
	$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements/constraints.txt --editable ".[dev,sims]"
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --requirement requirements/without_dependencies.txt
	touch $@

demo: $(STAMP)
	$(BIN)/python scripts/demo.py $(DEMO_ARGS)

test: $(SIMS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

faults: $(SIMS)
	UVA_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) tests/faults $(PYTEST_ARGS)

lerobot: $(LEROBOT)/installed
	rm -rf build
	$(LEROBOT)/bin/python -m pip install --disable-pip-version-check --no-deps --force-reinstall .
	OMP_NUM_THREADS=1 $(LEROBOT)/bin/python -m pytest tests/plugins plugins $(PYTEST_ARGS)

$(LEROBOT)/installed: pyproject.toml setup.py plugins/lerobot_policy_uva/pyproject.toml
	test -x $(LEROBOT)/bin/python || $(PYTHON) -m venv --upgrade-deps $(LEROBOT)  # an old pip finds no set of versions
	$(LEROBOT)/bin/python -m pip install --disable-pip-version-check . --editable plugins/lerobot_policy_uva \
		"lerobot[training,pusht]" pytest pytest-timeout
	touch $@

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(LEROBOT) build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
