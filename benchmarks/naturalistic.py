"""How fast tasks are put into scenes, and where the time goes.

    python benchmarks/naturalistic.py                       # 1,000 clips of one second, binaural
    python benchmarks/naturalistic.py --clips 200 --format ambisonics --jobs 4

The clips are noise bursts at 16 kHz. First they are made by several processes, and timed by the
clock: clips per second. Then a part of them is made by this process alone, on one thread, and its
CPU time is shared out: a part of the work is counted while it runs as it is.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from measure import Stopwatch, cpu_seconds, parser_of, write_task

from gram_hear.jobs.workers import cores
from gram_hear.scenes import naturalistic, recipes
from gram_hear.scenes.naturalistic import naturalise_task
from gram_hear.scenes.recipes import SceneSettings
from gram_hear.tasks import Task, read_task

PARTS = {
    "drawing and tuning rooms": [(naturalistic, "draw_recipe")],
    "simulating RIRs": [(recipes, "_room")],
    "noise": [(recipes, "_noise")],
    "mixing": [(recipes, "_mix"), (recipes, "below_full_scale")],
    "reading": [(recipes, "_read")],
    "writing": [(naturalistic, "write_wav")],
}


def write_bursts(folder: Path, clips: int, rate: int, seconds: float) -> Task:
    """Write a task of noise bursts, a tenth of them to validate and a tenth to test."""
    generator = np.random.default_rng(0)
    counts = {"valid": max(1, clips // 10), "test": max(1, clips // 10)}
    counts = {"train": max(1, clips - sum(counts.values())), **counts}

    def burst() -> np.ndarray:
        samples = round(seconds * rate)
        return generator.uniform(-0.3, 0.3, samples) * np.linspace(1, 0, samples)

    splits = {
        split: {f"{i:05d}.wav": ["burst"] for i in range(count)} for split, count in counts.items()
    }
    write_task(folder, splits, ["burst"], burst, rate, sample_duration=seconds)
    return read_task(folder)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=100, help="clips for the shares of time")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=int, default=16000)
    parser.add_argument("--format", default="binaural", choices=("binaural", "ambisonics"))
    parser.add_argument("--rirs", type=Path, help="a set of RIRs, in place of simulated rooms")
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--jobs", type=int, default=cores())
    arguments = parser.parse_args()
    settings = SceneSettings(arguments.format, rirs=arguments.rirs, noise=arguments.noise)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many, few, first = (
            write_bursts(folder / f"task{count}", count, arguments.rate, arguments.seconds)
            for count in (arguments.clips, arguments.alone, 3)
        )
        start = time.perf_counter()
        naturalise_task(many, folder / "many", settings, jobs=arguments.jobs)
        wall = time.perf_counter() - start
        naturalise_task(first, folder / "first", settings)  # what is loaded or built on first use
        watch = Stopwatch(PARTS)
        watch.start()
        total = cpu_seconds(lambda: naturalise_task(few, folder / "few", settings))
    print(
        f"{arguments.clips} clips of {arguments.seconds:g} s at {arguments.rate} Hz, "
        f"{arguments.format}, {arguments.jobs} processes: {wall:.1f} s, "
        f"{arguments.clips / wall:.1f} clips per second"
    )
    print(
        f"{arguments.alone} of them by one process: {total:.1f} CPU seconds, "
        f"{1000 * total / arguments.alone:.1f} ms for each clip"
    )
    for part, spent in watch.shares(total).items():
        print(f"{part:<25} {spent:8.2f} s  {spent / total:6.1%}")


if __name__ == "__main__":
    main()
