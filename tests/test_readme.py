"""The examples of the documentation run, in their order, as one reader would run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gram_hear

TESTS = Path(__file__).parent
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")


def script(text):
    """Every Python block, and every gram-hear line of the shell blocks, as one program."""
    lines = ["import shlex, subprocess"]
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for language, block in blocks:
        if language == "python":
            lines.append(block)
        else:
            commands = [line for line in block.splitlines() if line.startswith("gram-hear")]
            lines += [f"subprocess.run(shlex.split({line!r}), check=True)" for line in commands]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("document", "commands", "result"),
    [
        ("README.md", 5, "embeddings/circling.wav.npz"),
        ("docs/embedding.md", 1, "embeddings.parquet"),
    ],
)
def test_examples_run(tmp_path, hub, document, commands, result):
    sounds = {
        "speech.mp3": "mono_vowels.mp3",
        "street.flac": "binaural_passing.flac",
        "circling.wav": "ambix_circling.wav",
        "recordings/street.flac": "binaural_passing.flac",
    }
    (tmp_path / "recordings").mkdir()
    for name, source in sounds.items():
        shutil.copy(TESTS / "data" / "sounds" / source, tmp_path / name)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    program = script((TESTS.parent / document).read_text(encoding="utf-8"))
    assert program.count("subprocess.run(") == commands
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / result).exists()


def test_the_table_of_models_is_the_registry():
    rows = re.findall(r"^\| `(gram[\w-]+)`", README, re.MULTILINE)
    assert rows == [entry.name for entry in gram_hear.list_models()]


def test_the_table_of_options_is_that_of_load_model():
    options = re.search(r"### Options.*?\n\n(\|.*?)\n\n", README, re.DOTALL)[1]
    named = re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in options.splitlines()))
    arguments = set(gram_hear.load_model.__annotations__) - {"model_file_path", "unknown", "return"}
    assert set(named) - {"load_model"} == arguments


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_to_files(target):
    assert (TESTS.parent / target).exists()
