"""Damaged files of every kind that the package reads, and what it makes of them.

    python benchmarks/mutations.py                        # all kinds, 9,000 inputs
    python benchmarks/mutations.py --kind sofa --count 50
    python benchmarks/mutations.py --kind sofa --show 17  # one input, and what it gave

Good small inputs are made, and changed at random: bits flipped, runs overwritten, cut out, repeated
or put in, numbers of headers and of JSON set to extremes, files cut short or emptied. Each is read
in a process of its own, forked from one that has everything imported, as users read it. Right is a
result, or one of the package's own errors, within 10 s and with at most 300 MB more than a good
input takes. Prints a line for each kind, and each input that was not right; the exit code is 1
where there was one. Needs a system with fork, such as Linux.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import soundfile
import torch
from measure import write_task
from safetensors.torch import save_file

import gram_hear
from gram_hear.audio.files import read_audio
from gram_hear.checkpoints.published import published_name, published_shape
from gram_hear.checkpoints.store import (
    encoder_only,
    load_checkpoint,
    read_tensors,
    save_folder,
)
from gram_hear.errors import GramError
from gram_hear.evaluation.embed.embed_task import embed_task
from gram_hear.evaluation.embed.hear_module import HearModule, load_model
from gram_hear.evaluation.fetch.record import Archive
from gram_hear.evaluation.fetch.unpacking import unpack
from gram_hear.evaluation.predict.knn import NeighbourProbe
from gram_hear.evaluation.predict.prediction import predict_task
from gram_hear.hear import HearModel
from gram_hear.pretrain.clips import open_clips
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.noises import open_noise
from gram_hear.scenes.rendering import Rendered
from gram_hear.scenes.rir_building import RirPlan, build_rirs
from gram_hear.scenes.rirs import open_rirs
from gram_hear.tasks import describe_tasks, read_task

SECONDS, MEGABYTES = 10, 300
KILLED = 20  # seconds after which a reader is killed
ADDRESSES = 4 * 2**30  # bytes of memory that a reader may ask for: greed fails, the machine lives
RATE = 16000
UNITS = 1 if sys.platform == "darwin" else 1024  # of the peak memory that the system tells
EXTREMES = (0, 1, 2, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
TEXTS = ["-1", "0", "1e308", "1e999", "NaN", "9" * 5000, "null", '"x"', '"../x"', "{}"]
TEXTS += ["2147483648", "true", "[]", "[" * 3000 + "]" * 3000]
TEXT_ENDINGS = (".json", ".jsonl", ".csv", ".txt", ".yaml")

# --- good inputs ----------------------------------------------------------------------------


def noise(seconds: float, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise (samples, channels)."""
    shape = (round(seconds * RATE), channels)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape)


def make_sounds(folder: Path) -> None:
    """One second of noise in each container and coding that libsndfile writes."""
    for name, options in {
        "pcm.wav": {},
        "float.wav": {"subtype": "FLOAT"},
        "adpcm.wav": {"subtype": "IMA_ADPCM"},
        "extensible.wav": {"format": "WAVEX"},
        "sound.amb": {"format": "WAVEX"},
        "large.rf64": {"format": "RF64"},
        "sound.w64": {},
        "sound.flac": {},
        "sound.ogg": {},
        "sound.opus": {"format": "OGG", "subtype": "OPUS"},
        "sound.mp3": {},
        "sound.aiff": {},
        "sound.caf": {},
        "sound.au": {},
    }.items():
        channels = 4 if name == "sound.amb" else 1 if "adpcm" in name else 2
        soundfile.write(folder / name, noise(1, channels), RATE, **options)
    # As libsndfile writes it, the header speaks of four loudspeakers.
    ambisonic = bytearray((folder / "sound.amb").read_bytes())
    ambisonic[40:60] = bytes(4) + ambisonic[44:48] + bytes.fromhex("2107d3118644c8c1ca000000")
    (folder / "sound.amb").write_bytes(ambisonic)


def make_checkpoints(folder: Path) -> None:
    """A small encoder, in every container and layout that is read."""
    whole = encoder_only(load_checkpoint("gram-tiny-untrained"))
    save_folder(whole, folder / "folder")
    source = folder / "folder" / "model.safetensors"
    tensors, metadata = read_tensors(source)
    save_file(tensors, folder / "ours.safetensors", metadata)
    published = {
        published_name(name, whole.config): tensor.reshape(published_shape(name, tensor.shape))
        for name, tensor in whole.tensors.items()
    }
    save_file(published, folder / "published.safetensors")
    torch.save({"state_dict": published, "epoch": 3}, folder / "lightning.ckpt")


def make_tasks(folder: Path) -> None:
    """A task of scenes and one of events, with audio; and embeddings of the first."""
    beep = [{"label": "low", "start": 100.0, "end": 300.0}]
    for kind in ("scene", "event"):
        splits = {
            split: {
                f"{split}{i}.wav": beep if kind == "event" else ["high" if i % 2 else "low"]
                for i in range(4)
            }
            for split in ("train", "valid", "test")
        }
        metadata: dict[str, Any] = {"version": "v1"}
        if kind == "event":
            metadata |= {"embedding_type": "event", "prediction_type": "multilabel"}
            metadata |= {"evaluation": ["event_onset_200ms_fms"]}
        task = folder / kind / f"{kind}-v1-full"
        write_task(task, splits, ["low", "high"], lambda: noise(0.1), RATE, **metadata)
    made = folder / "embedded"
    embed_task(read_task(folder / "scene" / "scene-v1-full"), MODULE[0], made)


def make_sofa(folder: Path) -> None:
    """The sphere, as a plain SOFA file and as a compressed one."""
    head = load_head("sphere", 32000)
    degrees = np.degrees(np.arctan2(head.directions[:, 1], head.directions[:, 0])) % 360
    elevations = np.degrees(np.arcsin(head.directions[:, 2]))
    fields = {
        "Data.IR": head.responses[:, :, :128],
        "Data.SamplingRate": np.array([32000.0]),
        "Data.Delay": np.zeros((1, 2)),
        "SourcePosition": np.stack([degrees, elevations, np.full(len(degrees), 1.4)], axis=1),
        "ReceiverPosition": np.array([[[0.0], [0.09], [0.0]], [[0.0], [-0.09], [0.0]]]),
        "ListenerPosition": np.zeros((1, 3)),
        "ListenerView": np.array([[1.0, 0.0, 0.0]]),
        "ListenerUp": np.array([[0.0, 0.0, 1.0]]),
    }
    for name, packing in {"plain": {}, "packed": {"compression": "gzip"}}.items():
        with h5py.File(folder / f"{name}.sofa", "w") as file:
            file.attrs["SOFAConventions"] = np.bytes_("SimpleFreeFieldHRIR")
            for field, values in fields.items():
                file.create_dataset(field, data=values, **packing)
            file["SourcePosition"].attrs["Type"] = np.bytes_("spherical")
            file["SourcePosition"].attrs["Units"] = np.bytes_("degree, degree, metre")
            file["Data.SamplingRate"].attrs["Units"] = np.bytes_("hertz")


def make_sets(folder: Path) -> None:
    """Tars of clips and of noise, each read once so that its index is there."""
    for name, ending in {"clips": ".flac", "arrays": ".npy"}.items():
        (folder / name).mkdir()
        sounds = folder / f"sounds-{name}"
        sounds.mkdir()
        for i in range(3):
            audio = noise(0.2, seed=i)
            if ending == ".npy":
                np.save(sounds / f"{i}.npy", audio.T.astype(np.float32))
            else:
                soundfile.write(sounds / f"{i}.flac", audio, RATE)
        with tarfile.open(folder / name / "set.tar", "w") as tar:
            for path in sorted(sounds.iterdir()):
                tar.add(path, path.name)
        shutil.rmtree(sounds)
        read_set(folder / name)


def make_rirs(folder: Path) -> None:
    """A set of three rooms in our layout, and in both of those that the authors publish."""
    indexed, tars, regions = (folder / name for name in ("indexed", "webdataset", "soundspaces"))
    plan = RirPlan(3, 1, ("binaural",), 0, valid=0.3, test=0.3, rate=RATE)
    build_rirs(indexed, plan, jobs=1, simulator=simulate)
    rirs = open_rirs(indexed)
    tars.mkdir()
    regions.mkdir()
    for i in range(len(rirs)):
        responses, metadata = rirs.read(i)
        np.save(regions / f"{i}.npy", responses)
        with tarfile.open(tars / f"train-{i}.tar", "w") as tar:
            tar.add(regions / f"{i}.npy", f"{i}.npy")
        sounds = [{"rir": {"binaural_rir_path": f"{i}-{k}.npy"}} for k in range(len(responses))]
        for k, rir in enumerate(responses):
            np.save(regions / f"{i}-{k}.npy", rir)
        (regions / f"{i}.npy").unlink()
        angles = {"azimuth": -metadata["azimuth"], "elevation": metadata["elevation"]}
        scene = {"source": sounds[0] | angles, "noise": sounds[1:]}
        house = {"sampled_regions": [{"region": {"scene": scene}}]}
        (regions / f"train-{i}.json").write_text(json.dumps(house))


def simulate(plan: RirPlan, place: Any) -> list[Rendered]:
    """A scene of noise that decays, in place of a simulated room: what is tried are its files."""
    rirs = noise(0.1, 2, seed=place.room).T * np.exp(-np.arange(RATE // 10) / 300)
    metadata = {"azimuth": 0.0, "elevation": 0.0, "direction": [1.0, 0.0, 0.0]}
    return [Rendered(rirs[None].astype(np.float32), plan.rate, "binaural", metadata)]


def make_archives(folder: Path) -> None:
    """A task as an archive, packed and not."""
    make_tasks(folder)
    for name, mode in {"task.tar.gz": "w:gz", "task.tar": "w"}.items():
        with tarfile.open(folder / name, mode) as tar:
            tar.add(folder / "scene" / "scene-v1-full", "tasks/scene-v1-full")
    for kind in ("scene", "event", "embedded"):
        shutil.rmtree(folder / kind)


# --- readers --------------------------------------------------------------------------------

# Loaded once, before processes are forked.
MODEL: list[HearModel] = []
MODULE: list[HearModule] = []


def read_sound(path: Path) -> None:
    """Read and embed."""
    model = MODEL[0]
    audio = read_audio(path, model.sample_rate).audio[:, : 4 * model.sample_rate]
    gram_hear.get_scene_embeddings([audio[:2]], model)


def read_checkpoint(path: Path) -> None:
    """Load and build."""
    gram_hear.load_model(path)


def read_tasks(path: Path) -> None:
    """Describe and embed a task; score embeddings."""
    if path.name == "embedded":
        predict_task(path / "scene-v1-full", NeighbourProbe())
        return
    faults = [fault for each in describe_tasks(path) for fault in each["faults"]]
    if faults:
        raise GramError(faults[0])
    for task in path.iterdir():
        embed_task(read_task(task), MODULE[0], path.parent / "embedded")


def read_head(path: Path) -> None:
    """Load the head and render a direction."""
    load_head(path, 32000).response(np.array([0.0, 1.0, 0.0]))


def read_set(path: Path) -> None:
    """Read every clip, and draw a noise."""
    clips = open_clips(path)
    for i in range(len(clips)):
        clips.read(i, RATE, RATE, [0])
    open_noise(path, RATE).draw([0], RATE)


def read_rirs(path: Path) -> None:
    """Read every scene."""
    rirs = open_rirs(path)
    for i in range(len(rirs)):
        rirs.read(i)


def read_archive(path: Path) -> None:
    """Unpack the archive as the fetcher does."""
    archive = Archive(path.name, "scene-v1-full", RATE, path.stat().st_size, ("md5", "0" * 32), "")
    stored = archive.stored(path.parent)
    stored.parent.mkdir()
    shutil.copy(path, stored)
    unpack(archive, path.parent)


@dataclass(frozen=True)
class Kind:
    """A kind of input: how good ones are made, how one is read, and how many are tried."""

    make: Callable[[Path], None]
    read: Callable[[Path], None]
    count: int


KINDS = {
    "sound": Kind(make_sounds, read_sound, 2000),
    "checkpoint": Kind(make_checkpoints, read_checkpoint, 2000),
    "task": Kind(make_tasks, read_tasks, 1000),
    "sofa": Kind(make_sofa, read_head, 1000),
    "tar": Kind(make_sets, read_set, 1000),
    "rir": Kind(make_rirs, read_rirs, 1000),
    "archive": Kind(make_archives, read_archive, 1000),
}

# --- mutations ------------------------------------------------------------------------------


def flip(data: bytearray, draw: np.random.Generator) -> None:
    """Flip one to eight bits."""
    for _ in range(draw.integers(1, 9)):
        data[_where(data, draw)] ^= 1 << int(draw.integers(8))


def overwrite(data: bytearray, draw: np.random.Generator) -> None:
    """Overwrite a run with zeros, ones or noise."""
    start, count = _where(data, draw), int(draw.integers(1, 65))
    kinds = (bytes(count), b"\xff" * count, draw.bytes(count))
    data[start : start + count] = kinds[draw.integers(3)]


def cut(data: bytearray, draw: np.random.Generator) -> None:
    """Cut the end off."""
    del data[int(draw.integers(len(data) + 1)) :]


def drop(data: bytearray, draw: np.random.Generator) -> None:
    """Take a run out."""
    start = _where(data, draw)
    del data[start : start + int(draw.integers(1, 513))]


def repeat(data: bytearray, draw: np.random.Generator) -> None:
    """Put a run in again somewhere else."""
    start, to = _where(data, draw), _where(data, draw)
    data[to:to] = data[start : start + int(draw.integers(1, 513))]


def put_number(data: bytearray, draw: np.random.Generator) -> None:
    """Set a number of a header to an extreme."""
    size = (1, 2, 4, 8)[draw.integers(4)]
    order = "<" if draw.random() < 0.5 else ">"
    value = EXTREMES[draw.integers(len(EXTREMES))] % 256**size
    start = _where(data, draw)
    data[start : start + size] = struct.pack(order + "BHIQ"[(1, 2, 4, 8).index(size)], value)


def put_text(data: bytearray, draw: np.random.Generator) -> None:
    """Set a value of JSON, or of what looks like it, to an extreme; or take a name away."""
    found = list(re.finditer(rb"-?\d[\d.e+-]*|\"[^\"]*\"|true|null", data[:65536]))
    if found:
        match = found[draw.integers(len(found))]
        data[match.start() : match.end()] = TEXTS[draw.integers(len(TEXTS))].encode()


def put_member(data: bytearray, draw: np.random.Generator) -> None:
    """Set a field of a tar's member to an extreme, with a right checksum."""
    headers = [i for i in range(0, len(data) - 511, 512) if data[i + 257 : i + 262] == b"ustar"]
    if not headers:
        return
    start = headers[draw.integers(len(headers))]
    field, size = ((0, 100), (124, 12), (156, 1), (157, 100), (345, 155))[draw.integers(5)]
    texts = (b"\0", b"../x", b"/x", b"-1", b"77777777777", b"\x80" + b"\xff" * 11, b"L", b"x")
    texts += (b"a/" * 49, b"1", b"2", b"5", b"S", b"\xff\xfe")
    value = texts[draw.integers(len(texts))][:size]
    data[start + field : start + field + size] = value.ljust(size, b"\0")
    data[start + 148 : start + 156] = b" " * 8
    total = sum(data[start : start + 512])
    data[start + 148 : start + 156] = b"%06o\0 " % total


def _where(data: bytearray, draw: np.random.Generator) -> int:
    """A byte of the file: half of the time one of its first 2,048."""
    most = min(2048, len(data)) if draw.random() < 0.5 else len(data)
    return int(draw.integers(max(1, most)))


def mutate(path: Path, draw: np.random.Generator) -> str:
    """Change one file of an input, and return what was done."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    file = files[draw.integers(len(files))]
    data = bytearray(file.read_bytes())
    kinds = [flip, overwrite, cut, drop, repeat, put_number]
    if file.suffix in TEXT_ENDINGS:
        kinds = [put_text] * 4 + [flip, cut, drop]
    elif file.suffix == ".safetensors":
        kinds += [put_text] * 4
    elif file.suffix == ".tar":
        kinds += [put_member] * 6
    done = []
    for _ in range(draw.integers(1, 4)):
        if data:
            kind = kinds[draw.integers(len(kinds))]
            kind(data, draw)
            done.append(kind.__name__)
    file.write_bytes(data)
    return f"{file.name}: {', '.join(done)}"


# --- running --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What reading an input gave: "read", "refused" or what was wrong; and what it took."""

    outcome: str
    message: str
    seconds: float
    megabytes: float


def _read(read: Callable[[Path], None], path: Path, answer: Connection) -> None:
    """Read an input and answer with what it gave; the body of a process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        most = pages * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, outcome, message = time.monotonic(), "read", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except GramError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:  # whatever it is, it is told
        outcome, message = type(error).__name__, traceback.format_exc()
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.send(Seen(outcome, message, seconds, peak * UNITS / 2**20))


def observe(read: Callable[[Path], None], path: Path) -> Seen:
    """Read an input in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(read, path, there))
    process.start()
    there.close()
    try:
        seen = here.recv() if here.poll(KILLED) else Seen("killed", "it took too long", KILLED, 0.0)
    except EOFError:
        process.join()
        seen = Seen("crashed", f"exit code {process.exitcode}", 0.0, 0.0)
    process.kill()
    process.join()
    return seen


def try_kind(name: str, count: int | None, seed: int, show: int | None) -> bool:
    """Try mutated inputs of a kind; return whether all were right."""
    kind = KINDS[name]
    right, outcomes = True, {"read": 0, "refused": 0}
    slowest = most = 0.0
    with tempfile.TemporaryDirectory() as place:
        good = Path(place) / "good"
        good.mkdir()
        kind.make(good)
        bases = sorted(good.iterdir())
        allowed = 0.0
        for base in bases:
            shutil.rmtree(Path(place) / "case", ignore_errors=True)
            plain = observe(kind.read, _copy(base, Path(place) / "case"))
            allowed = max(allowed, plain.megabytes)
            if plain.outcome != "read":
                sys.exit(f"the good {base.name} could not be read: {plain.message}")
        numbers = range(kind.count if count is None else count) if show is None else [show]
        for i in numbers:
            draw = np.random.default_rng([seed, i])
            shutil.rmtree(Path(place) / "case")
            path = _copy(bases[i % len(bases)], Path(place) / "case")
            done = mutate(path, draw)
            seen = observe(kind.read, path)
            beyond = seen.megabytes - allowed
            slowest, most = max(slowest, seen.seconds), max(most, beyond)
            is_right = seen.outcome in outcomes and seen.seconds <= SECONDS and beyond <= MEGABYTES
            outcomes[seen.outcome] = outcomes.get(seen.outcome, 0) + 1
            right &= is_right
            if not is_right or show is not None:
                print(f"{name} {i} ({done}): {seen.outcome}, {seen.seconds:.1f} s, {beyond:.0f} MB")
                print("    " + seen.message.strip().replace("\n", "\n    "), flush=True)
            if show is not None:
                kept = Path(f"{name}-{show}{path.suffix}")
                (shutil.copytree if path.is_dir() else shutil.copy)(path, kept)
                print(f"    kept as {kept}")
    told = ", ".join(f"{each} {number}" for each, number in outcomes.items())
    print(f"{name}: {told}; slowest {slowest:.1f} s, most memory {most:.0f} MB more than good ones")
    return right


def _copy(base: Path, folder: Path) -> Path:
    """Copy a good input into a folder of its own."""
    folder.mkdir()
    copy = shutil.copytree if base.is_dir() else shutil.copy
    return Path(copy(base, folder / base.name))


def main() -> None:
    """Try all kinds, or the one that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, help="one kind alone")
    parser.add_argument("--count", type=int, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, help="one input, kept in this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    MODEL.append(gram_hear.load_model("gram-tiny-untrained", window_batch=1))
    MODULE.append(load_model("gram_hear", "gram-tiny-untrained", device="cpu"))
    names = [options.kind] if options.kind else list(KINDS)
    right = [try_kind(name, options.count, options.seed, options.show) for name in names]
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
