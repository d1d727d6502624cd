"""How much memory embedding long recordings takes, above the loaded model.

    python benchmarks/memory.py            # base: 5, 10, 20 minutes; tiny: 2 hours
    python benchmarks/memory.py --quick    # a fifth of these lengths

Weights are random, the sound is noise, 44.1 kHz stereo. Every case runs in a process of its own,
through ``embed_collection``. "Loaded" is what the process holds with its model loaded and one
second embedded, "peak" the most that it held after that (Linux: VmRSS and VmHWM).
"""

import argparse
import multiprocessing
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from measure import cpu_seconds, random_hear_model

from gram_hear.embed.collection import embed_collection
from gram_hear.hear import Options

RATE = 44100
CHANNELS = 2
MB = 1e6
CASES = (("base", 300, ""), ("base", 600, ""), ("base", 1200, ""))
CASES += (("tiny", 7200, ""), ("tiny", 7200, ".parquet"))


@dataclass(frozen=True)
class Memory:
    """Of one case, in MB, and what it took."""

    loaded: float
    peak: float
    cpu_seconds: float


def write_noise(path: Path, seconds: int) -> None:
    """Write noise as a WAV file, second by second."""
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, CHANNELS, "PCM_16") as file:
        for _ in range(seconds):
            file.write(generator.uniform(-0.3, 0.3, (RATE, CHANNELS)).astype(np.float32))


def resident(name: str) -> float:
    """Return a line of the process's memory, ``VmRSS`` (now) or ``VmHWM`` (its peak), in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(name))
    return int(line.split()[1]) * 1024 / MB


def forget_peak() -> None:
    """Let the peak begin again at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(folder: Path, size: str, seconds: int, suffix: str, threads: int, batch: int) -> Memory:
    """Embed one recording, in a process that has done nothing else."""
    torch.set_num_threads(threads)
    model = random_hear_model(size, CHANNELS, window_batch=batch)
    second, recording = folder / "second.wav", folder / "recording.wav"
    write_noise(second, 1)
    embed_collection([second], folder / f"second{suffix}", model)
    write_noise(recording, seconds)
    loaded = resident("VmRSS")
    forget_peak()

    def embed() -> None:
        outcomes = embed_collection([recording], folder / f"recording{suffix}", model)
        assert [outcome.error for outcome in outcomes] == [None], outcomes

    spent = cpu_seconds(embed)
    return Memory(loaded, resident("VmHWM"), spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the lengths")
    parser.add_argument("--size", choices=("tiny", "base"), help="the cases of one model alone")
    parser.add_argument("--seconds", type=int, help="one length instead of the usual ones")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--window-batch", type=int, default=Options().window_batch)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    print(f"{arguments.threads} threads, batches of {arguments.window_batch} windows; memory in MB")
    print(
        f"{'model':<6}{'seconds':>8} {'output':<9}{'loaded':>8}{'peak':>8}{'above':>8}{'CPU s':>8}"
    )
    above = []
    for size, seconds, suffix in CASES:
        if arguments.size not in (None, size):
            continue
        length = arguments.seconds or (seconds // 5 if arguments.quick else seconds)
        with tempfile.TemporaryDirectory() as folder, spawn.Pool(1) as pool:
            settings = (arguments.threads, arguments.window_batch)
            memory = pool.apply(measure, (Path(folder), size, length, suffix, *settings))
        above.append(memory.peak - memory.loaded)
        print(
            f"{size:<6}{length:8d} {suffix or 'npz':<9}{memory.loaded:8.0f}{memory.peak:8.0f}"
            f"{above[-1]:8.0f}{memory.cpu_seconds:8.0f}",
            flush=True,
        )
    print(f"Above the loaded model: at most {max(above):.0f} MB; {max(above) - min(above):.0f} MB")
    print("between the cases. Wanted: 500 and 300.")


if __name__ == "__main__":
    main()
