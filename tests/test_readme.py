"""The examples of the documentation run, in their order, as one reader would run them."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

import gram_hear
from gram_hear.commands.gram_hear.app import app as gram_hear_app
from gram_hear.commands.hear_eval.app import app as hear_eval_app
from gram_hear.pretrain.cli import complete
from gram_hear.pretrain.cli import run as run_pretraining
from gram_hear.start import gram_hear as gram_hear_program
from gram_hear.start import hear_eval as hear_eval_program

TESTS = Path(__file__).parent
PROGRAMS = {"gram-hear": gram_hear_program, "hear-eval": hear_eval_program}
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.compile(
    r"^```(python|sh)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)


def page(name):
    return (TESTS.parent / "docs" / name).read_text(encoding="utf-8")


def script(text):
    """Every Python block, and every gram-hear line of the shell blocks, as one program.

    Where a block of text follows a Python block, it is what that prints. The commands run in the
    program's process, so that each need not import torch again.
    """
    lines = [
        "import contextlib, io, shlex, sys",
        "from gram_hear.start import gram_hear as run_command",
    ]
    for language, block, output in BLOCKS.findall(text):
        if output:
            lines += [
                "with contextlib.redirect_stdout(io.StringIO()) as printed:",
                textwrap.indent(block, "    "),
                f"assert printed.getvalue() == {output!r}, printed.getvalue()",
            ]
        elif language == "python":
            lines.append(block)
        else:
            commands = [line for line in block.splitlines() if line.startswith("gram-hear")]
            for line in commands:
                lines += [
                    f"sys.argv = shlex.split({line!r})",
                    f"assert run_command() == 0, {line!r}",
                ]
    return "\n".join(lines)


PAGES = {  # how many commands they run, and a file that is there at the end
    "README.md": (0, "page.py"),  # what it shows is what it prints
    "docs/tutorials/first-steps.md": (7, "directions/ambix_circling.wav.npz"),
    "docs/choose.md": (3, "half.npy"),
    "docs/explanation/parity.md": (0, "page.py"),
    "docs/how-to/embedding.md": (2, "embeddings.parquet"),
    "docs/explanation/gramm.md": (2, "embeddings/street.flac.npz"),
}
RUN_ALL = """
import os, runpy, sys
for folder in sys.argv[1:]:
    print(folder, file=sys.stderr)
    os.chdir(folder)
    runpy.run_path("page.py")
"""


@pytest.mark.slow
def test_examples_run(tmp_path, hub):
    """One process runs all pages, each in a folder of its own: importing torch takes longest."""
    sounds = {
        "speech.mp3": "mono_vowels.mp3",
        "street.flac": "binaural_passing.flac",
        "circling.wav": "ambix_circling.wav",
        "recordings/street.flac": "binaural_passing.flac",
        "recordings/speech.mp3": "mono_vowels.mp3",
    }
    folders = {document: tmp_path / Path(document).stem for document in PAGES}
    for document, folder in folders.items():
        bundled = shutil.copytree(TESTS / "data" / "sounds", folder / "tests" / "data" / "sounds")
        (folder / "recordings").mkdir()
        for name, source in sounds.items():
            shutil.copy(bundled / source, folder / name)
        program = script((TESTS.parent / document).read_text(encoding="utf-8"))
        assert program.count("run_command()") == PAGES[document][0], document
        (folder / "page.py").write_text(program, encoding="utf-8")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN_ALL, *folders.values()],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for document, (_, result) in PAGES.items():
        assert (folders[document] / result).exists(), document


def write_digits(folder, speakers, indices):
    """Three tones in the place of three spoken digits."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for digit, speaker, index in itertools.product(range(3), speakers, indices):
        time = np.arange(3200) / 8000
        tone = 0.3 * np.sin(2 * np.pi * 400 * (digit + 1) * time)
        sound = tone + 0.01 * generator.standard_normal(len(time))
        soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", sound, 8000)


@pytest.fixture
def run_line(tmp_path, monkeypatch, capsys):
    """Return a function that runs a line of a shell block in ``tmp_path``, in this process."""

    def run_here(line):
        program, *arguments = shlex.split(line)
        if program == "python":
            subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)
            return
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        assert PROGRAMS[program]() == 0, f"{line}: {capsys.readouterr().err}"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the programs replace it
    yield run_here
    for module in ("logmel", "hearbaseline", "mine"):  # of this folder
        sys.modules.pop(module, None)


@pytest.mark.slow
def test_examples_of_the_evaluation_run(tmp_path, run_line):
    text = (TESTS.parent / "docs" / "how-to" / "evaluation.md").read_text(encoding="utf-8")
    for name, block in re.findall(r"^```python\n# file: (\S+)\n(.*?)^```", text, re.M | re.S):
        (tmp_path / name).write_text(block, encoding="utf-8")
    write_digits(tmp_path / "recordings", ["anna"], range(16))
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines.count("python make_digits.py") == 1
    lines.sort(key=lambda line: line != "python make_digits.py")  # the tasks come first
    for line in lines:
        trains = line.startswith(("hear-eval --module", "hear-eval predict"))
        run_line(line + " --grid fast --grid-points 2" * trains)  # a shorter run
    results = json.loads((tmp_path / "embeddings" / "logmel" / "results.json").read_text())
    assert results["results"][0]["score"] > 0.5  # three tones: far above chance, below training


@pytest.mark.slow
def test_recordings_become_a_table_of_three_models(tmp_path, run_line):
    text = (TESTS.parent / "docs" / "how-to" / "your-data.md").read_text(encoding="utf-8")
    commands = re.search(r"^## From recordings.*?^```sh\n(.*?)^```", text, re.M | re.S)[
        1
    ].splitlines()
    assert len(commands) == 5
    write_digits(tmp_path / "recordings", ("anna", "ben", "cleo", "dan", "eve", "finn"), range(2))
    modules = TESTS / "data" / "hear_modules"
    for name in ("logmel.py", "hearbaseline.py"):  # the latter is not ours to install
        shutil.copy(modules / "logmel.py", tmp_path / name)
    for line in commands:
        run_line(line)
    table = (tmp_path / "comparison.md").read_text()
    for model in ("gram-tiny", "hearbaseline", "logmel"):
        assert re.search(rf"^\| {model} \| \**[01]\.\d+ ±", table, re.M), table
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def pretraining_commands():
    """The shell blocks and the script of docs/how-to/pretraining.md; several lines joined."""
    folder = TESTS.parent / "docs" / "how-to"
    text = (folder / "pretraining.md").read_text(encoding="utf-8")
    script = (folder / "pretrain.sbatch").read_text(encoding="utf-8")
    blocks = [*re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S), script]
    joined = re.sub(r"\$SLURM_\w+", "1", "\n".join(blocks).replace("\\\n", " "))
    return [shlex.split(line, comments=True) for line in joined.splitlines()]


def test_launch_lines_of_pretraining_are_understood(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data:\n  clips: clips\n  rirs: rirs\n")
    lines = [words for words in pretraining_commands() if "gram_hear.pretrain" in words]
    assert {words[0] for words in lines} == {"python", "torchrun", "srun"}
    for words in lines:
        given = words[words.index("gram_hear.pretrain") + 1 :]
        shown = [word for word in given if word != "--print_config"]
        monkeypatch.setattr(sys, "argv", ["pretrain", *complete(shown), "--print_config"])
        with pytest.raises(SystemExit) as leaving:
            run_pretraining()
        assert leaving.value.code in (None, 0), f"{words}: {capsys.readouterr().err}"


def test_other_lines_of_pretraining_are_understood():
    for program, app in {"gram-hear": gram_hear_app, "hear-eval": hear_eval_app}.items():
        lines = [words for words in pretraining_commands() if words[:1] == [program]]
        assert lines
        for _, *words in lines:
            group = typer.main.get_command(app)
            command = group.commands.get(words[0])
            context = (command or group).make_context(program, words[1:] if command else words)
            assert not context.args  # raised already for an unknown option, or one too few


def table_of_models(text):
    return re.findall(r"^\| `(gram[\w-]+)`", text, re.MULTILINE)


def test_the_tables_of_models_are_the_registry():
    entries = gram_hear.list_models()
    assert table_of_models(page("reference/models.md")) == [entry.name for entry in entries]
    trained = [entry.name for entry in entries if entry.seed is None]
    assert table_of_models(README) == trained
    hub = re.findall(r"^\| `([\w-]+)`.*huggingface\.co/([\w-]+/[\w-]+)\)", README, re.MULTILINE)
    assert hub == [(entry.name, entry.repository) for entry in entries if entry.repository]


def test_the_table_of_options_is_that_of_load_model():
    options = re.search(r"^\|.*?\n\n", page("reference/options.md"), re.MULTILINE | re.DOTALL)[0]
    named = re.findall(
        r"`(\w+)`", " ".join(line.split("|")[1] for line in options.splitlines()[:-1])
    )
    arguments = set(gram_hear.load_model.__annotations__) - {"model_file_path", "unknown", "return"}
    assert set(named) == arguments


def test_the_readme_is_short():
    assert len(README.split()) < 700


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_to_files(target):
    assert (TESTS.parent / target).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "for/hearing-science",
        "for/bioacoustics",
        "for/machine-learning",
        "for/production",
        "for/teaching",
        "how-to/fine-tuning",
    ],
)
def test_pages_of_each_kind_of_user_run(tmp_path, run_line, page):
    shutil.copytree(TESTS / "data" / "sounds", tmp_path / "recordings")
    shutil.copy(TESTS / "data" / "sounds" / "mono_vowels.mp3", tmp_path / "speech.mp3")
    write_digits(tmp_path / "digits", ("anna", "ben", "cleo"), range(2))
    text = (TESTS.parent / "docs" / f"{page}.md").read_text(encoding="utf-8")
    names = {}
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", text, re.M | re.S):
        if named := re.match(r"# file: (\S+)\n", block):
            (tmp_path / named[1]).write_text(block, encoding="utf-8")
        elif language == "python":
            exec(block, names)
        else:
            for line in block.splitlines():
                run_line(line.replace("--grid fast ", "--grid faster "))  # a fifth of the epochs
