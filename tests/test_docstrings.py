"""The examples in docstrings run, each in the module that it stands in."""

import ast
import importlib
import re
import shutil
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from hear_tasks import write_embeddings

import gram_hear
from gram_hear.pretrain.clips import open_clips
from gram_hear.pretrain.pools import open_noises, open_rooms
from gram_hear.scenes.geometry import unit_vector
from gram_hear.scenes.rooms import draw_room_and_scene
from gram_hear.tasks import read_task

PACKAGE = Path(gram_hear.__file__).parent
SOUNDS = Path(__file__).parent / "data" / "sounds"
EXAMPLE = re.compile(r"^( *)Example::\n\n((?:\1    .*\n|\n)+)", re.MULTILINE)


def examples():
    """Yield each module's name, the line of the docstring, and the program of its example."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if "commands" in parts:
            continue  # they show shell commands
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for _, code in EXAMPLE.findall((ast.get_docstring(node) or "") + "\n"):
                    name = getattr(node, "name", "module")
                    yield pytest.param(
                        ".".join(parts), textwrap.dedent(code), id=f"{path.stem}-{name}"
                    )


FOUND = list(examples())


def test_examples_are_found():
    assert len(FOUND) >= 12


@pytest.mark.parametrize(("module", "code"), FOUND)
def test_the_example_runs(module, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noises").mkdir()
    (tmp_path / "clips").mkdir()
    shutil.copy(SOUNDS / "binaural_room.flac", "noises/room.flac")
    shutil.copy(SOUNDS / "binaural_room.flac", "clips/room.flac")
    for name in ("bell.flac", "hour.flac", "scene.wav"):
        soundfile.write(name, *soundfile.read(SOUNDS / "binaural_room.flac", frames=32000))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3200, generator=random)
    given = {
        "gram_hear": gram_hear,
        "torch": torch,
        "Path": Path,
        "unit_vector": unit_vector,
        "open_clips": open_clips,
        "open_rooms": open_rooms,
        "open_noises": open_noises,
        "read_task": read_task,
        "draw_room_and_scene": draw_room_and_scene,
        "write_text": lambda path, text: path.write_text(text),
        "output": tmp_path / "output",
        "predictor": SimpleNamespace(fit=lambda vectors, labels: None),
        "sound": noise[0].numpy(),
        # of scenes.mixing: a batch of two
        "clips": noise,
        "noises": noise.flip(0)[:, :1600],
        "rirs": torch.randn(2, 2, 2, 800, generator=random) / 10,
        "starts": torch.tensor([0, 100]),
        "lengths": torch.tensor([1600, 1600]),
        "whole": torch.tensor([True, False]),
        "snr": torch.tensor([10.0, 20.0]),
    }
    if "folder" in code:
        write_embeddings(tmp_path / "embeddings", rows=4)
        given["folder"] = tmp_path / "embeddings"
    exec(compile(code, module, "exec"), {**vars(importlib.import_module(module)), **given})
