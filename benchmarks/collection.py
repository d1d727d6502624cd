"""How much of the time a collection of short files spends outside the model.

    python benchmarks/collection.py                # 10,000 files of one second, through tiny
    python benchmarks/collection.py --files 1000

Weights are random, the sound is noise, 44.1 kHz mono. The model is its front-end and its encoder.
Every figure is CPU time, by default on one thread, measured in place while a collection is
embedded; a part is counted in the thread that does it.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from measure import Stopwatch, cpu_seconds, parser_of, random_hear_model

from gram_hear.embed import collection
from gram_hear.embed import files as embed
from gram_hear.frontend import FrontEnd
from gram_hear.model import GramModel

RATE = 44100
MODEL = ("front-end", "encoder")
PARTS = {
    "search": [(collection, "plan_files")],
    "what is done": [(collection, "find_done")],
    "headers": [(collection, "group_files")],
    "decoding and resampling": [(embed._FileStream, "_decode")],
    "front-end": [(FrontEnd, "transform")],
    "encoder": [(GramModel, "forward")],
    "writing": [(collection.PartWriter, name) for name in ("__init__", "add", "finish", "close")],
    "assembling": [(collection, "assemble_parquet")],
}


def write_files(folder: Path, count: int) -> None:
    """Write files of one second of noise."""
    generator = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, generator.uniform(-0.3, 0.3, RATE).astype(np.float32), RATE)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "base"))
    parser.add_argument("--parquet", action="store_true", help="into one dataset, not .npz files")
    parser.add_argument("--jobs", type=int, default=1, help="threads that decode")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = random_hear_model(arguments.size, 1)
    suffix = ".parquet" if arguments.parquet else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "first", 64)  # what is loaded or built on first use
        collection.embed_collection([folder / "first"], folder / f"warm{suffix}", model)
        write_files(folder / "sounds", arguments.files)
        watch = Stopwatch(PARTS)
        watch.start()

        def run() -> None:
            outcomes = collection.embed_collection(
                [folder / "sounds"], folder / f"output{suffix}", model, jobs=arguments.jobs
            )
            assert len(outcomes) == arguments.files
            assert all(outcome.error is None for outcome in outcomes)

        total = cpu_seconds(run)
    report(watch.shares(total), total, arguments)


def report(parts: dict[str, float], total: float, arguments: argparse.Namespace) -> None:
    print(
        f"{arguments.files} files of 1 s, {arguments.size}, {arguments.jobs} decoding threads, "
        f"{arguments.threads} threads: {total:.1f} CPU seconds, "
        f"{1000 * total / arguments.files:.2f} ms for each file"
    )
    for part, spent in parts.items():
        print(f"{part:<25} {spent:8.2f} s  {spent / total:6.1%}")
    outside = 1 - sum(parts[part] for part in MODEL) / total
    print(f"{'outside the model':<25} {outside * total:8.2f} s  {outside:6.1%}   (wanted: < 20 %)")


if __name__ == "__main__":
    main()
