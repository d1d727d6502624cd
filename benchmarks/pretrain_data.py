"""What a clip of training costs a loading process, against what decoding and stacking alone cost.

    python benchmarks/pretrain_data.py --make sets
    python benchmarks/pretrain_data.py --clips clips --rirs rirs --noises noise

``--make`` makes the sets in a new folder: tars of FLAC clips of 10 s, as ``gram-hear prepare``
makes them; tars of RIRs as published, float16 (6, 2, 96000); and three sets of noise, FLAC files of
10 minutes, WAV files of 10 minutes at 44.1 kHz, and a tar of ``.npy`` arrays. A folder that is
there is used again. Sets that are named must be of the same kinds.

Milliseconds of CPU time a clip, on one thread, the median of alternating runs. The plain way
decodes the bytes of the same clips with soundfile, takes the same RIRs with np.frombuffer (the
first two as float32), decodes an excerpt of the same noises, and stacks. It has no levels, fades,
draws or checks. "In a process" is the CPU time of a process that loads batches for another.
"""

import io
import resource
import statistics
import tarfile
from collections import defaultdict
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

from gram_hear.audio.archives import add_member, find_members, find_sounds
from gram_hear.audio.synthesis import synthesise_clip, synthesise_noise
from gram_hear.pretrain.batches import collate
from gram_hear.pretrain.clips import open_clips
from gram_hear.pretrain.pools import open_noises, open_rooms
from gram_hear.pretrain.samples import SampleRecipe, SampleSet

RATE, SAMPLES, BATCH = 32000, 320_000, 24
CLIPS, SCENES, ARRAYS, MINUTES = 64, 32, 32, 10
LOADED = 4  # batches that a process loads
PROCESS = "in a process"
WANTED = 1.6
KINDS = ("flac", "wav", "npy")


# --- sets -----------------------------------------------------------------------------------


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
            add_member(tar, f"{i}.flac", file.getvalue())
    generator = np.random.default_rng(0)
    decay = np.exp(-np.arange(96000) / 4000)
    with tarfile.open(folder / "rirs" / "train-00000.tar", "w") as tar:
        for i in range(SCENES):
            rirs = 0.1 * decay * generator.standard_normal((6, 2, 96000))
            rirs[2 + i % 5 :] = 0
            add_member(tar, f"{i}.npy", as_npy(rirs.astype(np.float16)))
    with tarfile.open(folder / "npy" / "00000.tar", "w") as tar:
        for i in range(ARRAYS):
            length = round(generator.uniform(1, 2) * SAMPLES)
            add_member(tar, f"{i}.npy", as_npy(synthesise_noise([i], length, RATE).audio))
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
        if not self.rirs:
            raise SystemExit(
                f"error: {rirs} has no tars of .npy arrays (float16, 6 x 2 x samples). That is the "
                "published layout of RIRs, and gram-hear rirs has another: use --make FOLDER."
            )
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


class Side:
    """One way to draw samples: by parts, whole, and stacked."""

    def __init__(
        self,
        parts: dict[str, Callable[[int], object]],
        draw: Callable[[int], Any],
        stack: Callable[[list[Any]], Any],
    ) -> None:
        self.parts, self.draw, self.stack = parts, draw, stack
        self.times: dict[str, list[float]] = defaultdict(list)

    def measure(self, numbers: range) -> None:
        """Add the milliseconds a clip of each part, for the samples of these numbers."""
        for part, draw in self.parts.items():
            self._add(part, lambda draw=draw: [draw(i) for i in numbers] and None)
        drawn = [self.draw(i) for i in numbers]
        self._add("collation", lambda: self.stack(drawn))
        self._add("whole", lambda: self.stack([self.draw(i) for i in numbers]))

    def _add(self, part: str, call: Callable[[], object]) -> None:
        self.times[part].append(1000 * cpu_seconds(call) / BATCH)

    def median(self, part: str) -> float | None:
        return statistics.median(self.times[part]) if part in self.times else None

    def in_a_process(self, batches: int) -> None:
        """Add the milliseconds a clip of a process that loads batches, without its start."""

        def seconds(count: int) -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            loader = DataLoader(
                Samples(self.draw, count * BATCH), BATCH, num_workers=1, collate_fn=self.stack
            )
            for _ in loader:
                pass
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        self.times[PROCESS].append(1000 * (seconds(1 + batches) - seconds(1)) / (batches * BATCH))


def ours(clips: str, rirs: str, noises: str) -> Side:
    samples = SampleSet(
        open_clips(clips),
        open_rooms(rirs, "binaural", RATE),
        open_noises(noises, RATE),
        SampleRecipe(),
        "binaural",
        seed=0,
    )
    generator, rooms = np.random.default_rng(0), len(samples.rooms or ())
    parts: dict[str, Callable[[int], object]] = {
        "clip": samples._draw_clip,
        "RIRs": lambda i: samples._read_room(i % rooms),
        "noise": lambda i: samples._draw_noise(generator, i, False),
        "windows and masks": samples._draw_windows,
    }
    return Side(parts, samples.__getitem__, collate)


def measure(clips: str, rirs: str, noises: str, repeats: int) -> None:
    plain = Plain(clips, rirs, noises)
    peer = Side(
        {"clip": plain.clip, "RIRs": plain.room, "noise": plain.noise}, plain.sample, plain.stack
    )
    sides = (ours(clips, rirs, noises), peer)
    for turn in range(1 + repeats):
        for side in sides:
            if turn == 1:
                side.times.clear()  # the first does not count
            side.measure(range(turn * BATCH, (turn + 1) * BATCH))
    for _ in range(repeats):
        for side in sides:
            side.in_a_process(LOADED)
    print(f"{'':22}{'ours, ms':>10}{'plain, ms':>11}{'ratio':>8}")
    for part in sides[0].times:
        mine, its = (side.median(part) for side in sides)
        assert mine is not None
        print(f"{part:22}{mine:>10.2f}" + (f"{its:>11.2f}{mine / its:>8.2f}" if its else ""))
    rates = ", plain ".join(f"{1000 / (side.median(PROCESS) or 1):.0f}" for side in sides)
    print(f"Clips a second from a process that loads data: {rates}.\n", flush=True)


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--make", type=Path, help="make the sets in this folder, and use them")
    parser.add_argument("--clips", help="tars or a folder of clips")
    parser.add_argument("--rirs", help="RIRs in the published layout")
    parser.add_argument("--noises", nargs="*", default=[], help="sets of noise")
    options = parser.parse_args()
    clips, rirs, noises = options.clips, options.rirs, options.noises
    if options.make:
        if not options.make.exists():
            make_sets(options.make)
        clips, rirs = clips or str(options.make / "clips"), rirs or str(options.make / "rirs")
        noises = noises or [str(options.make / kind) for kind in KINDS]
    if not (clips and rirs and noises):
        parser.error("give --make FOLDER, or --clips, --rirs and --noises")
    for noise in noises:
        print(f"noise: {noise}")
        measure(clips, rirs, noise, options.repeats)
    print(f"Wanted: a ratio of at most {WANTED} for the whole and for the process.")


if __name__ == "__main__":
    main()
