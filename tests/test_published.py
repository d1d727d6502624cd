"""benchmarks/published.py against a Hub on this machine, with small models of random weights."""

import hashlib
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

import gram_hear
from gram_hear.errors import OptionError

ROOT = Path(__file__).parents[1]
PUBLISHED = [entry.name for entry in gram_hear.list_models() if entry.repository]
STAND_IN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import gram_hear

def load_model(path, strategy, use_mwmae_decoder, in_channels):
    assert use_mwmae_decoder == "true" and path.endswith(".ckpt")
    model = gram_hear.load_model(path, parity=True, strategy=strategy)
    assert model.config.front_end.feature_channels == in_channels
    return model

get_scene_embeddings = gram_hear.get_scene_embeddings
get_timestamp_embeddings = gram_hear.get_timestamp_embeddings
"""


@pytest.fixture
def program(hub, monkeypatch, tmp_path):
    """The program's module; every repository of the Hub has a model card."""
    for files in hub.repositories.values():
        files["README.md"] = b"---\nlicense: mit\nlibrary_name: transformers\n---\n# GRAM\n"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("published")


def clone(folder, text):
    """A stand-in for a clone of the authors' code; returns the options that name it."""
    (folder / "hear_configs").mkdir(parents=True)
    (folder / "hear_configs" / "GRAMT.py").write_text(text)
    return ["--authors", sys.executable, "--code", str(folder)]


@pytest.mark.slow
def test_all_published_models_are_checked(program, hub, golden_path, tmp_path, capsys):
    for name, channels in {"binaural": 2, "ambisonics": 7}.items():  # as the authors' code wrote it
        content = golden_path(f"gramt_frame_{channels}ch.safetensors").read_bytes()
        hub.repositories[f"labhamlet/gramt-{name}"]["model.safetensors"] = content
    found = tmp_path / "found.json"
    assert program.main(["--any-size", "--heads", "4", "--output", str(found)]) == 0
    facts = json.loads(found.read_text())
    assert list(facts) == PUBLISHED
    for name, parts in facts.items():
        content = hub.repositories[f"labhamlet/{name}"]["model.safetensors"]
        assert parts["file"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert parts["file"]["bytes"] == f"{len(content):,}"
        assert parts["licence"] == {"stated": "mit"}
        assert parts["tensors"]["decoder"]["windows"][:2] == [2, 5]
        assert len(parts["embeddings"]) == 3 * 3 * 3  # strategy, sound; parity, default, agreement
        assert all("failed" not in part for part in parts.values())
    sound = program.make_sounds(2)["noise"]
    model = gram_hear.load_model("gramt-binaural", parity=True, strategy="mean", heads=4)
    norm = float(gram_hear.get_scene_embeddings(sound[None], model).double().norm())
    told = facts["gramt-binaural"]["embeddings"]["mean, noise, parity"]
    assert f"norm {norm:.4f}" in told
    assert "No part failed." in capsys.readouterr().out


@pytest.mark.slow
def test_what_fails_is_reported_and_the_next_part_begins(program, hub, capsys):
    del hub.repositories["labhamlet/gramt-mono"]
    del hub.repositories["labhamlet/gramt-binaural"]["README.md"]
    hub.repositories["labhamlet/gramt-binaural-frame"]["README.md"] = b"# without a licence"
    assert program.main(PUBLISHED[:3]) == 1
    out = capsys.readouterr().out
    assert "file       FAILED: There is no labhamlet/gramt-mono" in out
    assert "licence    FAILED: the model card states none" in out
    assert "FAILED: sizes are not the published ones: decoder.depth: 1 there, 8 here" in out
    assert out.splitlines()[-1] == (
        "5 parts failed: gramt-mono: file; gramt-binaural: licence; gramt-binaural: tensors; "
        "gramt-binaural-frame: licence; gramt-binaural-frame: tensors"
    )
    assert out.count("mean, noise, agreement") == 2


@pytest.mark.slow
def test_embeddings_are_compared_with_those_of_the_authors_code(
    program, tmp_path, capsys, monkeypatch
):
    options = clone(tmp_path / "GRAM-T", STAND_IN)
    embed, theirs = program.embed_with_authors, {}

    def shifted(*given):
        """What the authors' code makes, and the second time 0.01 more."""
        if theirs:
            return {key: each + np.float32(0.01) for key, each in theirs.items()}
        theirs.update(embed(*given))
        return theirs

    monkeypatch.setattr(program, "embed_with_authors", shifted)
    assert program.main(["gramt-binaural", "--any-size", *options]) == 0
    assert capsys.readouterr().out.count("largest difference 0.00e+00") == 18
    assert program.main(["gramt-binaural", "--any-size", *options]) == 1
    assert "authors    FAILED: embeddings differ by up to 1.00e-02" in capsys.readouterr().out


@pytest.mark.slow
def test_code_of_the_authors_that_fails_is_one_line(program, tmp_path, capsys):
    options = clone(tmp_path / "GRAM-T", "raise ValueError('no such thing')")
    assert program.main(["gramt-binaural", "--any-size", *options]) == 1
    out = capsys.readouterr().out
    assert "FAILED: the authors' code ended with exit code 1: ValueError: no such thing" in out
    options[1] = "nowhere/python"
    assert program.main(["gramt-binaural", "--any-size", *options]) == 1
    assert "authors    FAILED: [Errno 2]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gramt-stereo"], "Unknown published model 'gramt-stereo'"),
        (["gram-tiny"], "Unknown published model 'gram-tiny'"),
        (["--authors", "python"], "belong together"),
    ],
)
def test_options_that_cannot_be(program, options, message):
    with pytest.raises(OptionError, match=message):
        program.main(options)
