"""What a clip of training costs a loading process, against what decoding and stacking alone cost.

    python benchmarks/pretrain_data.py --make /tmp/sets
    python benchmarks/pretrain_data.py --clips clips --rirs rirs --noises noise

``--make`` makes the sets in a new folder: tars of FLAC clips of 10 s, as ``gram-hear prepare`` makes
them; tars of RIRs as published, float16 (6, 2, 96000); and three sets of noise, FLAC files of 10
minutes, WAV files of 10 minutes at 44.1 kHz, and a tar of ``.npy`` arrays. A folder that is there
already is used again. Sets that are named must be of the same kinds.

CPU time of one thread, milliseconds a clip, the median of alternating runs. The plain way decodes
the bytes of the same clip with soundfile, takes the same RIRs with np.frombuffer (the first two as
float32), decodes an excerpt of the same noise, and stacks; it has no levels, fades, draws or checks.
Then both run in a process that loads data, and the CPU time of that process is taken: with them
batches are put into the memory that the processes share.
"""

import argparse
import io
import resource
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from measure import cpu_seconds, parser_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gram_hear.audio.archives import find_members, find_sounds
from gram_hear.audio.synthesis import synthesise_clip, synthesise_noise
from gram_hear.pretrain.batches import collate
from gram_hear.pretrain.clips import open_clips
from gram_hear.pretrain.pools import open_noises, open_rooms
from gram_hear.pretrain.samples import SampleRecipe, SampleSet

RATE, SAMPLES, BATCH = 32000, 320_000, 24
CLIPS, SCENES, ARRAYS, MINUTES = 64, 32, 32, 10
WANTED = 1.6
KINDS = ("flac", "wav", "npy")


# --- sets -----------------------------------------------------------------------------------


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def make_sets(folder: Path) -> None:
    for name in ("clips", "rirs", *KINDS):
        (folder / name).mkdir(parents=True)
    with tarfile.open(folder / "clips" / "00000.tar", "w") as tar:
        for i in range(CLIPS):
            file = io.BytesIO()
            soundfile.write(file, synthesise_clip([i], SAMPLES, RATE).audio, RATE, format="FLAC")
            add(tar, f"{i}.flac", file.getvalue())
    generator = np.random.default_rng(0)
    decay = np.exp(-np.arange(96000) / 4000)
    with tarfile.open(folder / "rirs" / "train-00000.tar", "w") as tar:
        for i in range(SCENES):
            rirs = 0.1 * decay * generator.standard_normal((6, 2, 96000))
            rirs[2 + i % 5 :] = 0
            add(tar, f"{i}.npy", as_npy(rirs.astype(np.float16)))
    with tarfile.open(folder / "npy" / "00000.tar", "w") as tar:
        for i in range(ARRAYS):
            length = round(generator.uniform(1, 2) * SAMPLES)
            add(tar, f"{i}.npy", as_npy(synthesise_noise([i], length, RATE).audio))
    for kind, rate in (("flac", RATE), ("wav", 44100)):
        noise = np.tile(synthesise_noise([0], 60 * rate, rate, "babble").audio, MINUTES)
        for i in range(2):
            soundfile.write(folder / kind / f"{i}.{kind}", np.roll(noise, i), rate)


# --- the plain way --------------------------------------------------------------------------


class Plain:
    """Decoding and stacking alone, in plain lines."""

    def __init__(self, clips: str, rirs: str, noises: str) -> None:
        self.clips = list(find_sounds(Path(clips)))
        tars = sorted(Path(rirs).rglob("*.tar"))
        self.rirs = [member for tar in tars for member in find_members(tar, (".npy",))]
        self.noises = list(find_sounds(Path(noises)))

    def clip(self, i: int) -> Tensor:
        sound = self.clips[i % len(self.clips)]
        data = sound.read_bytes() if isinstance(sound, Path) else bytes(sound.read())
        audio, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        return torch.from_numpy(audio)

    def room(self, i: int) -> Tensor:
        data = bytearray(self.rirs[i % len(self.rirs)].read())
        rirs = np.frombuffer(data, np.float16, offset=128).reshape(6, 2, -1)
        return torch.from_numpy(rirs[:2]).float()

    def noise(self, i: int) -> Tensor:
        sound = self.noises[i % len(self.noises)]
        start = 7919 * i
        if not isinstance(sound, Path):
            array = np.frombuffer(bytearray(sound.read()), np.float32, offset=128)
            return torch.from_numpy(array[: min(SAMPLES, len(array))])
        with soundfile.SoundFile(sound) as file:
            count = SAMPLES * file.samplerate // RATE
            file.seek(start % (file.frames - count))
            audio = file.read(count, dtype="float32")
            return torch.from_numpy(soxr.resample(audio, file.samplerate, RATE)[:SAMPLES])

    def sample(self, i: int) -> dict[str, Tensor]:
        return {"clip": self.clip(i), "rirs": self.room(i), "noise": self.noise(i)}

    @staticmethod
    def stack(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([each[name] for each in samples]) for name in samples[0]}


class Samples(Dataset[Any]):
    """A function of a sample's number as a data set."""

    def __init__(self, draw: Callable[[int], Any], count: int) -> None:
        self.draw, self.count = draw, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.draw(i)


# --- measuring ------------------------------------------------------------------------------


def parts_of(samples: SampleSet) -> dict[str, Callable[[int], object]]:
    """Return what a sample is made of, by name, as functions of its number."""
    generator = np.random.default_rng(0)
    return {
        "clip": samples._draw_clip,
        "RIRs": lambda i: samples._draw_room(generator, False),
        "noise": lambda i: samples._draw_noise(generator, i, False),
        "windows, masks": samples._draw_windows,
    }


def in_a_process(draw: Callable[[int], Any], stack: Callable[..., Any], batches: int) -> float:
    """Return the CPU seconds a batch of a process that loads batches, without its start."""

    def seconds(count: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        loader = DataLoader(
            Samples(draw, count * BATCH), BATCH, num_workers=1, collate_fn=stack, prefetch_factor=2
        )
        for _ in loader:
            pass
        del loader
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return (seconds(1 + batches) - seconds(1)) / batches


def measure(clips: str, rirs: str, noises: str, repeats: int) -> float:
    """Print the table of one set of noises; return how often a sample costs the plain way."""
    samples = SampleSet(
        open_clips(clips),
        open_rooms(rirs, "binaural", RATE),
        open_noises(noises, RATE),
        SampleRecipe(),
        "binaural",
        seed=0,
    )
    plain = Plain(clips, rirs, noises)
    ours = parts_of(samples)
    theirs = {"clip": plain.clip, "RIRs": plain.room, "noise": plain.noise}
    times: dict[tuple[str, str], list[float]] = {}

    def clock(who: str, part: str, call: Callable[[], object]) -> Any:
        kept: list[object] = []
        seconds = cpu_seconds(lambda: kept.append(call()))
        times.setdefault((who, part), []).append(1000 * seconds / BATCH)
        return kept[0]

    for turn in range(1 + repeats):
        numbers = range(turn * BATCH, (turn + 1) * BATCH)
        if turn == 1:
            times.clear()  # the first does not count
        for who, parts in (("ours", ours), ("plain", theirs)):
            for part, draw in parts.items():
                clock(who, part, lambda draw=draw: run(draw, numbers))
        for who, draw, stack in (
            ("ours", samples.__getitem__, collate),
            ("plain", plain.sample, plain.stack),
        ):
            drawn = [draw(i) for i in numbers]
            clock(who, "collation", lambda stack=stack, drawn=drawn: stack(drawn))
            del drawn
            clock(who, "whole", lambda draw=draw, stack=stack: stack([draw(i) for i in numbers]))
    rows = [*ours, "collation", "whole"]
    medians = {key: statistics.median(each) for key, each in times.items()}
    for who, draw, stack in (
        ("ours", samples.__getitem__, collate),
        ("plain", plain.sample, plain.stack),
    ):
        found = [in_a_process(draw, stack, repeats) for _ in range(3)]
        medians[who, "in a process"] = 1000 * statistics.median(found) / BATCH
    print(f"{'':18}{'ours, ms':>10}{'plain, ms':>11}{'ratio':>8}")
    for part in [*rows, "in a process"]:
        mine, its = medians["ours", part], medians.get(("plain", part))
        tail = f"{its:>11.2f}{mine / its:>8.2f}" if its else ""
        print(f"{part:18}{mine:>10.2f}{tail}")
    whole = medians["ours", "in a process"]
    print(f"{1000 / whole:.0f} clips a second and core; plain {1000 / medians['plain', 'in a process']:.0f}")
    return whole / medians["plain", "in a process"]


def run(draw: Callable[[int], object], numbers: range) -> None:
    for i in numbers:
        draw(i)


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--make", type=Path, help="make the sets in this folder, and use them")
    parser.add_argument("--clips", help="tars or a folder of clips")
    parser.add_argument("--rirs", help="RIRs in the published layout")
    parser.add_argument("--noises", nargs="*", default=[], help="sets of noise")
    options: argparse.Namespace = parser.parse_args()
    clips, rirs, noises = options.clips, options.rirs, options.noises
    if options.make:
        if not options.make.exists():
            make_sets(options.make)
        clips, rirs = clips or str(options.make / "clips"), rirs or str(options.make / "rirs")
        noises = noises or [str(options.make / kind) for kind in KINDS]
    if not (clips and rirs and noises):
        parser.error("give --make FOLDER, or --clips, --rirs and --noises")
    for noise in noises:
        start = time.perf_counter()
        print(f"noise: {noise}")
        ratio = measure(clips, rirs, noise, options.repeats)
        print(f"{ratio:.2f} times the plain way (aim: at most {WANTED}), ", end="")
        print(f"measured in {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
