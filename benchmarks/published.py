"""Load the published checkpoints from the Hub, check them, and print what can be compared.

    python benchmarks/published.py                        # all five; needs the network
    python benchmarks/published.py gramt-mono --output mono.json
    python benchmarks/published.py --authors authors/bin/python --code GRAM-T

For each model it prints, and checks where there is something to check against:

- the file: commit, size and SHA-256, beside what the registry records;
- the licence that the model card states;
- the tensors: how many, of which type, under which prefix. All names and shapes are checked when a
  model loads. Its sizes must be those of the published models, unless --any-size is given;
- embeddings of silence, noise and a sound of this repository, with parity and as by default: their
  norm, sum and first value, and a hash of their bytes, which is the same only with the same version
  of PyTorch on the same kind of machine. Then how well parity and default agree.

With --authors it also compares embeddings with parity with those of the authors' code. PYTHON is
one of an environment of its own:

    git clone https://github.com/labhamlet/GRAM-T
    python3.9 -m venv authors
    authors/bin/pip install -r GRAM-T/requirements.txt

Without a GPU their code is run on the CPU. Nobody has tried this against the authors' code yet,
only against a stand-in for it.

A part that fails is reported, and the next one begins. The exit code is 1 if any failed.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from measure import parser_of

from gram_hear.audio.files import read_audio
from gram_hear.checkpoints import published
from gram_hear.checkpoints.hub import download
from gram_hear.checkpoints.registry import Entry, list_models
from gram_hear.checkpoints.store import (
    Checkpoint,
    build_encoder,
    describe,
    load_checkpoint,
    read_tensors,
)
from gram_hear.config import named_config
from gram_hear.errors import GramError, OptionError, count, require_known
from gram_hear.hear import (
    HearModel,
    Options,
    get_scene_embeddings,
    get_timestamp_embeddings,
)
from gram_hear.jobs.writing import write_json
from gram_hear.pretrain.new_model import differences

SOUNDS = Path(__file__).parent.parent / "tests" / "data" / "sounds"
BUNDLED = {1: "binaural_room.flac", 2: "binaural_room.flac", 4: "ambix_circling.wav"}
SECONDS = 4.2  # no whole number of windows
RATE = 32000
STRATEGIES = ("raw", "mean", "cls")
TOLERANCE = 1e-3  # largest difference from the authors' code
PATIENCE = 1800  # seconds for the authors' code and one model
AUTHORS = Path(__file__).with_name("published_authors.py")


class Failed(Exception):
    """A part found something wrong; the message says what."""


@dataclass
class Report:
    """What was found: printed as it is found, and kept for --output."""

    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def run(self, model: str, part: str, check: Callable[[], Iterator[tuple[str, Any]]]) -> None:
        """Print what a part finds, pair by pair, and how it failed if it did."""
        facts = self.found.setdefault(model, {}).setdefault(part, {})
        try:
            for name, value in check():
                facts[name] = value
                print(f"  {part:10} {name}: {value}", flush=True)
        except (GramError, Failed, OSError, ValueError, BadZipFile) as error:
            facts["failed"] = str(error)
            self.failed.append(f"{model}: {part}")
            print(f"  {part:10} FAILED: {error}", flush=True)


# --- parts ----------------------------------------------------------------------------------


def check_file(entry: Entry, checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    source = checkpoint.source
    assert source.path is not None
    yield "repository", source.repository
    yield "commit", source.commit
    yield "bytes", f"{source.path.stat().st_size:,}"
    yield "sha256", source.sha256()
    # Another one than the registry records would not have loaded.
    yield "registry", "records the same" if entry.sha256 else "records no SHA-256"


def check_licence(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    source = checkpoint.source
    assert source.repository is not None
    card = download(source.repository, "README.md", source.commit).path.read_text("utf-8")
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    licence = re.search(r"^license: *(\S+)", header[1], re.MULTILINE) if header else None
    if licence is None:
        raise Failed("the model card states none")
    yield "stated", licence[1]


def check_tensors(
    entry: Entry, checkpoint: Checkpoint, any_size: bool
) -> Iterator[tuple[str, Any]]:
    config = checkpoint.config
    assert checkpoint.source.path is not None
    tensors, metadata = read_tensors(checkpoint.source.path)
    anchor = next(name for name in tensors if name.endswith(published.ANCHOR))
    yield "number", len(tensors)
    yield "types", ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
    yield "prefix", repr(anchor.removesuffix(published.ANCHOR))
    yield "metadata", metadata
    yield "model", describe(config)
    yield "decoder", "none" if config.decoder is None else asdict(config.decoder)
    wanted = named_config("base", entry.channels, entry.patching, entry.backbone)
    front_end = replace(wanted.front_end, log_floor=config.front_end.log_floor)
    wanted = replace(wanted, front_end=front_end, window_fill=config.window_fill)
    if config.decoder is None:
        wanted = replace(wanted, decoder=None)
    if not any_size and config != wanted:
        raise Failed(f"sizes are not the published ones: {'; '.join(differences(config, wanted))}")


def make_sounds(channels: int) -> dict[str, np.ndarray]:
    """Return the sounds to embed by name, each (channels, samples) float32."""
    samples = round(SECONDS * RATE)
    sound = read_audio(SOUNDS / BUNDLED[channels], RATE).audio[:channels, :samples]
    noise = 0.1 * np.random.default_rng(0).standard_normal((channels, samples))
    silence = np.zeros((channels, samples))
    sounds = {"silence": silence, "noise": noise, "sound": np.asarray(sound)}
    return {name: np.ascontiguousarray(each, dtype=np.float32) for name, each in sounds.items()}


def model_of(checkpoint: Checkpoint, parity: bool, strategy: str) -> HearModel:
    """Return the model; sounds of four channels go in as they are, as in the authors' code."""
    convention = "soundspaces" if checkpoint.config.front_end.layout == "ambisonic" else None
    options = Options(strategy=strategy, parity=parity, convention=convention)
    return HearModel(build_encoder(checkpoint), options, checkpoint.source)


def check_embeddings(
    checkpoint: Checkpoint, sounds: dict[str, np.ndarray]
) -> Iterator[tuple[str, Any]]:
    for strategy in STRATEGIES:
        models = {parity: model_of(checkpoint, parity, strategy) for parity in (True, False)}
        for name, sound in sounds.items():
            scenes = {}
            for parity, model in models.items():
                scenes[parity] = scene = get_scene_embeddings(sound[None], model)[0]
                yield f"{strategy}, {name}, {'parity' if parity else 'default'}", facts_of(scene)
            cosine = float(torch.cosine_similarity(scenes[True], scenes[False], dim=0))
            largest = float((scenes[True] - scenes[False]).abs().max())
            yield (
                f"{strategy}, {name}, agreement",
                f"cosine {cosine:.4f}, largest difference {largest:.4f}",
            )


def facts_of(embedding: torch.Tensor) -> str:
    values = embedding.double()
    digest = hashlib.sha256(embedding.numpy().tobytes()).hexdigest()[:12]
    return (
        f"{len(values)} values, norm {float(values.norm()):.5f}, sum {float(values.sum()):.5f}, "
        f"first {float(values[0]):.5f}, bytes {digest}"
    )


def check_authors(
    checkpoint: Checkpoint, sounds: dict[str, np.ndarray], python: str, code: str
) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        theirs = embed_with_authors(checkpoint, sounds, python, code, Path(folder))
    worst = 0.0
    for strategy in STRATEGIES:
        model = model_of(checkpoint, True, strategy)
        for name, sound in sounds.items():
            ours = {
                "scene": get_scene_embeddings(sound[None], model)[0],
                "rows": get_timestamp_embeddings(sound[None], model)[0][0],
            }
            for kind, embedding in ours.items():
                key = f"{strategy}-{name}-{kind}"
                if key not in theirs or theirs[key].shape != embedding.shape:
                    shape = theirs[key].shape if key in theirs else "nothing"
                    raise Failed(f"{key} is {tuple(embedding.shape)} here and {shape} there")
                difference = float(np.abs(theirs[key] - embedding.numpy()).max())
                yield f"{strategy}, {name}, {kind}", f"largest difference {difference:.2e}"
                worst = max(worst, difference) if difference == difference else float("inf")
    if worst > TOLERANCE:
        raise Failed(f"embeddings differ by up to {worst:.2e}; at most {TOLERANCE:g} was expected")


def embed_with_authors(
    checkpoint: Checkpoint, sounds: dict[str, np.ndarray], python: str, code: str, folder: Path
) -> dict[str, np.ndarray]:
    """Return what the authors' code makes of sounds, by the keys of published_authors.py."""
    assert checkpoint.source.path is not None
    config = checkpoint.config
    tensors = published.strip_names(read_tensors(checkpoint.source.path)[0])
    torch.save({"state_dict": tensors}, folder / "model.ckpt")
    np.savez(folder / "sounds.npz", **sounds)
    windowed = any(".wmha." in name for name in tensors)
    arguments = [
        *(python, AUTHORS, Path(code).resolve()),
        "GRAMTTime" if config.patching == "time" else "GRAMT",
        folder / "model.ckpt",
        config.front_end.feature_channels,
        str(windowed).lower(),
        *(folder / "sounds.npz", folder / "embeddings.npz"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [str(each) for each in arguments],
            cwd=code,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"the authors' code did not end within {PATIENCE} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Failed(f"the authors' code ended with exit code {done.returncode}: {last}")
    with np.load(folder / "embeddings.npz", allow_pickle=False) as found:
        return {key: found[key] for key in found}


# --- the program ----------------------------------------------------------------------------


def check_model(report: Report, entry: Entry, given: argparse.Namespace) -> None:
    """Run all parts on one model."""
    name = entry.name
    print(f"{name} ({entry.description})", flush=True)
    loaded: list[Checkpoint] = []

    def load() -> Iterator[tuple[str, Any]]:
        loaded.append(load_checkpoint(name, heads=given.heads))
        yield from check_file(entry, loaded[0])

    report.run(name, "file", load)
    if not loaded:
        return
    checkpoint, sounds = loaded[0], make_sounds(entry.audio_channels)
    report.run(name, "licence", lambda: check_licence(checkpoint))
    report.run(name, "tensors", lambda: check_tensors(entry, checkpoint, given.any_size))
    report.run(name, "embeddings", lambda: check_embeddings(checkpoint, sounds))
    if given.authors:
        report.run(
            name, "authors", lambda: check_authors(checkpoint, sounds, given.authors, given.code)
        )


def options() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="registered names; else all")
    parser.add_argument("--authors", metavar="PYTHON", help="a Python with their requirements")
    parser.add_argument("--code", metavar="FOLDER", help="a clone of their code")
    parser.add_argument("--output", metavar="FILE", help="write what was found as JSON")
    parser.add_argument("--any-size", action="store_true", help="accept models of other sizes")
    parser.add_argument("--heads", type=int, help="attention heads, if they are not 64 wide")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Check the models, and return the exit code."""
    given = options().parse_args(arguments)
    entries = {entry.name: entry for entry in list_models() if entry.repository}
    for name in given.models:
        require_known("published model", name, entries)
    if bool(given.authors) != bool(given.code):
        raise OptionError("--authors and --code belong together: their Python and their code.")
    report = Report()
    for name in given.models or entries:
        check_model(report, entries[name], given)
    if given.output:
        write_json(Path(given.output), report.found)
    failed = report.failed
    said = f"{count(len(failed), 'part')} failed: {'; '.join(failed)}"
    print(said if failed else "No part failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GramError as error:
        sys.exit(f"error: {error}")
