"""What making a task of many short files costs, beside decoding and resampling alone.

    python benchmarks/make_task.py                 # 10,000 files of one second, 44.1 to 32 kHz
    python benchmarks/make_task.py --files 1000 --rates 16000 32000
    python benchmarks/make_task.py --rates 44100   # files that are copied as they are

The sound is noise, 44.1 kHz mono, 16 bits, of 50 classes and 100 speakers, in folders. Every figure
is CPU time of one process, measured in place while a task is made. Bare is a loop of
soundfile.read, soxr.resample and soundfile.write over the same files, into one folder, at the same
rates.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from measure import Stopwatch, parser_of

from gram_hear.evaluation.make import build, plan, sounds
from gram_hear.evaluation.make.labels import LabelOptions
from gram_hear.evaluation.make.sounds import SoundOptions

RATE = 44100
CLASSES, SPEAKERS = 50, 100
PARTS = {
    "labels": [(plan, "read_labels")],
    "scan (headers)": [(plan, "read_header")],
    "splits": [(plan, "make_splits"), (build, "make_splits")],
    "decode": [(sounds, "decode")],
    "hash": [(sounds, "digest")],
    "resample": [(sounds, "convert")],
    "write": [(sounds, "write_wav"), (sounds, "copy")],
    "assemble": [(build, "_assemble")],
}


def write_files(folder: Path, count: int) -> None:
    """Write files of one second of noise: <class>/<speaker>_<number>.wav."""
    generator = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % CLASSES:02d}" / f"{i // CLASSES % SPEAKERS}_{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, generator.uniform(-0.3, 0.3, RATE), RATE, subtype="PCM_16")


def bare(files: list[Path], target: Path, rates: tuple[int, ...]) -> dict[str, float]:
    """Decode, resample and write; return the CPU seconds of each."""
    watch = Stopwatch({})
    for i, path in enumerate(files):
        with watch.over("decode"):
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        for new_rate in rates:
            with watch.over("resample"):
                made = soxr.resample(audio, rate, new_rate) if new_rate != rate else audio
            with watch.over("write"):
                soundfile.write(target / f"{i}-{new_rate}.wav", made, new_rate, subtype="FLOAT")
    return watch.seconds


def clock(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the CPU seconds and the seconds that a call takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rates", type=int, nargs="+", default=[32000])
    arguments = parser.parse_args()
    options = SoundOptions(tuple(arguments.rates))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "sounds", arguments.files)
        (folder / "bare").mkdir()
        files = sorted((folder / "sounds").rglob("*.wav"))
        bare(files[:64], folder / "bare", options.rates)  # what is loaded on first use
        spent = bare(files, folder / "bare", options.rates)
        watch = Stopwatch(PARTS)
        watch.start()
        labels = LabelOptions(pattern="{speaker}_{}", group_by="speaker")

        def run() -> None:
            task = plan.TaskOptions("mine", labels=labels, sound=options)
            planned = plan.plan_task(folder / "sounds", task)
            made = build.make_task(planned, folder / "tasks", jobs=1)
            assert len(list(made.folder.rglob("*.wav"))) == arguments.files * len(options.rates)

        total, wall = clock(run)
    report(watch.shares(total), total, wall, spent, arguments)


def report(
    parts: dict[str, float],
    total: float,
    wall: float,
    spent: dict[str, float],
    arguments: argparse.Namespace,
) -> None:
    rates = ", ".join(map(str, arguments.rates))
    print(
        f"{arguments.files} files of 1 s, 44100 Hz to {rates} Hz: "
        f"{total:.1f} CPU seconds ({wall:.1f} s), {1000 * total / arguments.files:.2f} ms a file"
    )
    for part, own in parts.items():
        beside = f"   {own / spent[part]:.2f} x bare" if spent.get(part) else ""
        print(f"{part:<16} {own:8.2f} s  {own / total:6.1%}{beside}")
    alone = sum(spent.values())
    print(f"{'bare':<16} {alone:8.2f} s  (decode, resample, write)")
    print(f"{'all / bare':<16} {total / alone:8.2f}")


if __name__ == "__main__":
    main()
