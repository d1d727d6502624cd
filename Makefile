# make demo        embeds the bundled sounds, draws one and tells where it comes from, offline
# make test        runs the tests
# make test-fast   runs those that are not marked slow: they reach every library, in two minutes
# make test-libraries    runs those that call the libraries, for other versions of these
# make test-s3     runs those that read from S3, with clients that need older packages, put into .s3
# make docs        builds the site into docs/_build/html, offline
# make notebooks runs the tutorials' notebooks and keeps what they print
# make dist        builds the source distribution and the wheel into dist, and checks them
# make lint        runs ruff and mypy
# Each makes .venv first, unless PYTHON=/path/to/bin/python names an environment that has all.

VENV = .venv
PYTHON = $(VENV)/bin/python
BIN = $(dir $(shell command -v $(PYTHON) || echo $(PYTHON)))

ifeq ($(origin PYTHON),command line)
READY =
else
READY = $(VENV)/ready
endif

# Golden numbers, a run of each program, and what calls the libraries whose versions differ.
LIBRARIES = $(patsubst %,tests/test_%.py,adapters clips collection config errors files frontend golden heads hear hub \
	layouts package patches registry tasks windows) \
	tests/test_cli.py::test_embed_writes_files_says_so_and_warns_that_the_model_is_untrained \
	tests/test_hear_eval.py::test_everything_in_one_command \
	tests/test_pretrain.py::test_a_checkpoint_converts_and_embeds \
	tests/test_pretrain.py::test_a_run_is_seen \
	tests/test_pretrain.py::test_shipped_configs_are_understood \
	tests/test_pretrain.py::test_stopped_and_resumed_is_the_same_to_the_bit \
	tests/test_scene_command.py::test_both_formats_hear_the_same_scene_and_say_their_channels \
	-k "not killed"

# Two processes, each with whole files of tests, which share what takes long to make.
SIDE_BY_SIDE = -n 2 --dist loadfile

.PHONY: demo test test-fast test-libraries test-s3 docs notebooks dist lint format clean

demo: $(READY)
	$(BIN)gram-hear embed tests/data/sounds --output .demo --model gram-tiny --force
	$(BIN)gram-hear plot tests/data/sounds/binaural_room.flac --output .demo/sound.png --model gram-tiny --force
	$(BIN)gram-hear locate tests/data/sounds/binaural_room.flac --output .demo/directions.png --force
	$(BIN)gram-hear locate tests/data/sounds/ambix_circling.wav --output .demo/circling.png --force

# The pytest command, not python -m pytest: that would put this folder before the installed package.
test: $(READY)
	$(BIN)pytest $(SIDE_BY_SIDE)

test-fast: $(READY)
	$(BIN)pytest $(SIDE_BY_SIDE) -m "not slow" --durations 10 --durations-min 3

test-libraries: $(READY)
	$(BIN)pytest $(SIDE_BY_SIDE) $(LIBRARIES)

test-s3: $(READY)
	$(BIN)python -m pip install --quiet --target .s3 s3fs "moto[server]"
	PYTHONPATH=.s3 $(BIN)pytest tests/check_s3.py

docs: $(READY)
	$(BIN)python -m sphinx -W --keep-going -q -j auto docs docs/_build/html
	@echo "The site: docs/_build/html/index.html"

notebooks: $(READY)
	$(BIN)python tests/test_notebooks.py

dist: $(READY)
	$(BIN)python -m pip install --quiet --constraint constraints.txt build check-manifest twine
	rm -rf build dist
	$(BIN)check-manifest
	$(BIN)python -m build --quiet
	$(BIN)twine check --strict dist/*

lint: $(READY)
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

format: $(READY)
	$(BIN)ruff check --fix .
	$(BIN)ruff format .

clean:
	rm -rf $(VENV) .demo build dist docs/_build docs/jupyter_execute *.egg-info

# The usual Python if it is one that is declared, else the newest of those.
$(VENV)/ready: setup.cfg setup.py pyproject.toml constraints.txt
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then \
			echo "$$python -m venv $(VENV)"; $$python -m venv $(VENV); exit; \
		fi; \
	done; \
	echo "No Python 3.11 to 3.14 was found on the path: install one, or name an environment with PYTHON=." >&2; exit 1
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
