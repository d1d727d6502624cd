# make demo   embeds the bundled sounds, draws one and tells where it comes from, offline
# make test   runs the tests
# make lint   runs ruff and mypy
# Each makes .venv first, unless PYTHON=/path/to/bin/python names an environment that has all.

VENV = .venv
PYTHON = $(VENV)/bin/python
BIN = $(dir $(shell command -v $(PYTHON) || echo $(PYTHON)))

ifeq ($(origin PYTHON),command line)
READY =
else
READY = $(VENV)/ready
endif

.PHONY: demo test lint format clean

demo: $(READY)
	$(BIN)gram-hear embed tests/data/sounds --output .demo --model gram-tiny --force
	$(BIN)gram-hear plot tests/data/sounds/binaural_room.flac --output .demo/sound.png --model gram-tiny --force
	$(BIN)gram-hear locate tests/data/sounds/binaural_room.flac --output .demo/directions.png --force
	$(BIN)gram-hear locate tests/data/sounds/ambix_circling.wav --output .demo/circling.png --force

# The pytest command, not python -m pytest: that would put this folder before the installed package.
test: $(READY)
	$(BIN)pytest

lint: $(READY)
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

format: $(READY)
	$(BIN)ruff check --fix .
	$(BIN)ruff format .

clean:
	rm -rf $(VENV) .demo build *.egg-info

$(VENV)/ready: setup.cfg setup.py pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
