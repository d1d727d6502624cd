"""How the programs start and end: help, Ctrl-C while importing, too little memory, output."""

import subprocess
import sys
from typing import get_args

import pytest
import typer

from gram_hear.commands.gram_hear.app import app as gram_hear
from gram_hear.commands.hear_eval import options
from gram_hear.commands.hear_eval.app import app as hear_eval
from gram_hear.errors import OptionError
from gram_hear.evaluation.compare import significance
from gram_hear.evaluation.embed.embed_task import EmptyClips
from gram_hear.evaluation.fetch import record
from gram_hear.scenes.rooms import Ranges
from gram_hear.start import start

PROGRAMS = {
    "gram-hear": "from gram_hear.start import gram_hear; sys.exit(gram_hear())",
    "hear-eval": "from gram_hear.start import hear_eval; sys.exit(hear_eval())",
    "pretrain": "import runpy; runpy.run_module('gram_hear.pretrain', run_name='__main__')",
}
ARGUMENTS = {  # of commands that import torch, which help does not
    "gram-hear": ["info", "gram-tiny-untrained"],
    "hear-eval": ["check", "gram_hear"],
    "pretrain": [],
}
AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            {what}
sys.meta_path.insert(0, Finder())
sys.argv = ["program", *{arguments}]
{program}
"""


def run_program(program, what):
    """Run a program in which something happens when torch is imported."""
    code = AT_IMPORT.format(what=what, program=PROGRAMS[program], arguments=ARGUMENTS[program])
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_importing_says_nothing(program):
    done = run_program(program, "os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("program", PROGRAMS)
def test_too_little_memory_while_importing_is_one_line(program):
    reason = "libtorch_cpu.so: failed to map segment from shared object"
    done = run_program(program, f"raise ImportError('{reason}')")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert reason in done.stderr
    assert "ulimit -v" in done.stderr


def raising(error):
    def program():
        raise error

    return lambda: program


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1 TiB"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_in_a_command_is_one_line(error, capsys):
    assert start(raising(error)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: There is not enough memory (")
    assert said.count("\n") == 1


def test_codes_and_other_errors(capsys):
    assert start(lambda: lambda: None) == 0
    assert start(lambda: lambda: 7) == 7
    assert start(raising(SystemExit(2))) == 2
    assert start(raising(SystemExit())) == 0
    assert start(raising(KeyboardInterrupt())) == 130
    assert start(raising(OptionError("no such option"))) == 1
    assert capsys.readouterr().err == "error: no such option\n"
    with pytest.raises(RuntimeError, match="a fault of ours"):
        start(raising(RuntimeError("a fault of ours")))


def test_a_name_that_the_system_cannot_encode_is_one_line(capsys):
    text = f"{'text ' * 100}\u0142.wav{' text' * 100}"
    assert start(lambda: lambda: text.encode("ascii") and 0) == 1
    said = capsys.readouterr().err
    assert "\\u0142.wav" in said
    assert "PYTHONUTF8=1" in said
    assert len(said) < 300


def test_streams_of_a_process_that_are_gone():
    code = f"import sys; sys.argv = ['gram-hear', '--version']; {PROGRAMS['gram-hear']}"
    command = f'"{sys.executable}" -c "{code}" >&- 2>&-'
    assert subprocess.run(command, shell=True, check=False).returncode == 0


HELP = """
import sys
from gram_hear.start import start
from gram_hear.commands.{program}.app import main
for arguments in {arguments}:
    sys.argv = ["{program}", *arguments]
    assert start(lambda: main) == 0
late = {{"torch", "numpy", "huggingface_hub", "soundfile", "scipy", "sklearn", "matplotlib"}}
print("loaded:", *late & set(sys.modules))
"""


@pytest.mark.parametrize(("program", "app"), [("gram_hear", gram_hear), ("hear_eval", hear_eval)])
def test_no_help_waits_for_a_library(program, app):
    commands = sorted(typer.main.get_command(app).commands)
    arguments = [["--version"], ["--help"], *([command, "--help"] for command in commands)]
    code = HELP.format(program=program, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("Usage: ") == 1 + len(commands)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_defaults_of_options_are_those_of_the_libraries():
    """They are written as numbers in the commands, since help must not import a library."""
    ranges = Ranges()
    for (program, command, option), value in {
        (gram_hear, "rirs", "rt60"): ranges.rt60,
        (gram_hear, "rirs", "distance"): ranges.distance,
        (gram_hear, "rirs", "noise_sources"): ranges.noise_sources,
        (hear_eval, "fetch", "rate"): record.RATE,
        (hear_eval, "fetch", "record"): record.RECORD,
        (hear_eval, "report", "resamples"): significance.RESAMPLES,
    }.items():
        parameters = typer.main.get_command(program).commands[command].params
        assert {each.name: each.default for each in parameters}[option] == value
    assert get_args(options.EmptyClips)[0] == EmptyClips
