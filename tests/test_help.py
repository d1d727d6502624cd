"""What the programs say of themselves: help, choices, examples, names of options, completion."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gram_hear import __version__
from gram_hear.audio.layouts import CONVENTIONS
from gram_hear.checkpoints.registry import default_name, list_models
from gram_hear.checkpoints.store import STORED
from gram_hear.commands.gram_hear import app as gram_hear
from gram_hear.commands.hear_eval import app as hear_eval
from gram_hear.evaluation.predict.grid import GRIDS
from gram_hear.hear import DTYPES, STRATEGIES
from gram_hear.scenes.recipes import FORMATS
from gram_hear.windows import FILLS

PROGRAMS = {"gram-hear": gram_hear, "hear-eval": hear_eval}
GROUPS = {name: typer.main.get_command(program.app) for name, program in PROGRAMS.items()}
COMMANDS = {(program, ""): group for program, group in GROUPS.items()} | {
    (program, name): command
    for program, group in GROUPS.items()
    for name, command in group.commands.items()
}
OPTIONS = [
    pytest.param(option, id=f"{program} {name} {option.name}")
    for (program, name), command in COMMANDS.items()
    for option in command.params
    if option.name not in ("install_completion", "show_completion")
]
LONGEST = 60  # characters that the list of commands has for each, in 80 columns


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a program, and returns exit code, stdout and stderr."""

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as end:
            PROGRAMS[program].main()
        return end.value.code or 0, *capsys.readouterr()

    monkeypatch.setenv("COLUMNS", "80")
    return run


def examples(command):
    """The command lines below "Examples:" in the text of a command."""
    block = re.search(r"^\x08\nExamples:\n((?:  .*\n?)+)", command.help, re.MULTILINE)
    assert block, "no examples"
    return [shlex.split(line) for line in block[1].splitlines()]


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_a_command_begins_with_a_short_sentence(program, name):
    first = COMMANDS[program, name].help.splitlines()[0]
    assert len(first) <= LONGEST
    assert re.fullmatch(r"[A-Z].*\.", first)


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_help_fits_80_columns_and_cuts_nothing(run, program, name):
    code, out, _ = run(program, *filter(None, [name]), "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in re.sub(r"(\w+|[}>\]])\.\.\.", "", out)  # of several values
    for line in examples(COMMANDS[program, name]):
        assert shlex.join(line)[:20] in out


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_explained_in_sentences(option):
    assert re.fullmatch(r"[A-Z][^;]+ .+\.", option.help, re.DOTALL)
    assert "efault:" not in option.help  # which typer shows
    assert "Default" not in option.help


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_the_examples_of_a_command_are_understood(program, name):
    for line in examples(COMMANDS[program, name]):
        assert line[0] == program
        words = line[1:]
        for sign in (">", "|"):  # of the shell
            words = words[: words.index(sign)] if sign in words else words
        command = GROUPS[program]
        if words[0] in command.commands:
            assert name in ("", words[0])
            command = command.commands[words.pop(0)]
        command.make_context(name, words)


def test_one_thing_has_one_name_in_all_commands():
    """The same parameter has the same options wherever it is."""
    spelled = {}
    for command in COMMANDS.values():
        for option in command.params:
            if option.param_type_name == "option":
                names = frozenset(each for each in option.opts if each.startswith("-"))
                spelled.setdefault(option.name, set()).add(names)
    for name, ways in spelled.items():
        # Some commands take one more: locate --plot, hear-eval fetch --output.
        assert frozenset.intersection(*ways), name
    for command in COMMANDS.values():
        opts = {opt for option in command.params for opt in option.opts}
        assert ("--output" in opts) == ("-o" in opts)
        assert ("--model" in opts) == ("-m" in opts)


@pytest.mark.parametrize(
    ("program", "name", "option", "known"),
    [
        ("gram-hear", "embed", "strategy", (*STRATEGIES, "sum")),
        ("gram-hear", "embed", "convention", CONVENTIONS),
        ("gram-hear", "embed", "window_fill", FILLS),
        ("gram-hear", "embed", "dtype", (*DTYPES, "int8")),
        ("gram-hear", "convert", "dtype", tuple(STORED)),
        ("gram-hear", "scene", "format", tuple(FORMATS)),
        ("gram-hear", "naturalistic", "format", tuple(FORMATS)),
        ("gram-hear", "rirs", "format", (*FORMATS, "both")),
        ("hear-eval", "", "grid", tuple(GRIDS)),
        ("hear-eval", "predict", "grid", tuple(GRIDS)),
    ],
)
def test_choices_are_those_of_the_library(run, program, name, option, known):
    """They are written out in the commands, since help must not import a library."""
    words = [*filter(None, [name]), f"--{option.replace('_', '-')}", "no such"]
    code, out, err = run(program, *words)
    assert (code, out) == (2, "")
    said = " ".join(err.split())
    assert ", ".join(map(repr, known)) in said


def test_the_default_model_is_that_of_the_library(run):
    _, out, _ = run("gram-hear", "embed", "--help")
    assert f"[default: {default_name()}]" in " ".join(out.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_its_own_name_and_version(run, program):
    assert run(program, "--version") == (0, f"{program} {__version__}\n", "")


def test_both_programs_run_as_modules():
    for module, program in (("gram_hear", "gram-hear"), ("gram_hear.evaluation", "hear-eval")):
        done = subprocess.run(
            [sys.executable, "-m", module, "-h"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"Usage: {program} ")


def test_without_a_command_help_is_shown(run):
    for program in PROGRAMS:
        code, out, err = run(program)
        assert code in (0, 2)  # typer 0.19 and later
        assert "Examples:" in out + err


def test_former_names_of_options_still_work(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "There is no file x.wav" in run("gram-hear", "locate", "x.wav", "--head", "y")[2]
    assert "seconds is -1" in run("gram-hear", "prepare", ".", "-o", "out", "--seconds", "-1")[2]


def completed(program, *words):
    """What a shell is told, to complete the last word."""
    code = f"from gram_hear.start import {program.replace('-', '_')} as main; main()"
    shell = {
        f"_{program.replace('-', '_').upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join([program, *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; {code}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | shell,
    )
    *names, waited_for_torch = done.stdout.split()
    assert waited_for_torch == "False"
    return names


@pytest.mark.slow
def test_words_are_completed():
    models = [entry.name for entry in list_models()]
    assert completed("gram-hear", "info", "") == models
    tiny = [name for name in models if name.startswith("gram-tiny")]
    assert completed("gram-hear", "embed", "--model", "gram-tiny") == tiny
    assert completed("gram-hear", "scene", "--head", "k") == ["kemar"]
    assert completed("hear-eval", "--probe", "") == ["shallow", "knn"]
    assert completed("hear-eval", "make") == ["make-task"]


def test_a_shell_splits_piped_tables_as_the_page_says():
    page = Path(__file__).parent.parent / "docs" / "how-to" / "command-line.md"
    (line,) = re.findall(r"^```sh\n(.*)\n```", page.read_text(encoding="utf-8"), re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line,
        shell=True,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": path},
    )
    expected = [f"{entry.name} {entry.patching}" for entry in list_models()]
    assert done.stdout.splitlines() == ["name patching", *expected]
