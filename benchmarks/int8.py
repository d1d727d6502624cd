"""How much faster int8 embeds than float32 on the CPU, and how far it is off.

    python benchmarks/int8.py
    python benchmarks/int8.py --engines     # every engine that this PyTorch and processor have

Weights are random, the sound is noise. Times are CPU time on one thread, the median of alternating
runs of the two; closeness is the cosine of embeddings, the smallest over all rows and clips.
"""

import argparse
import copy
import statistics

import torch
import torch.nn.functional as F
from measure import alternate, parser_of, random_model
from torch import Tensor

from gram_hear.checkpoints.store import CheckpointSource
from gram_hear.config import named_config
from gram_hear.hear import HearModel, Options
from gram_hear.model import GramModel

CLIPS = 2  # that the windows of a batch belong to, for the scene vectors


def wrap(gram: GramModel, dtype: str, size: str) -> HearModel:
    return HearModel(
        copy.deepcopy(gram), Options(dtype=dtype), CheckpointSource(f"random {size}", "seed")
    )


def smallest_cosine(ours: Tensor, theirs: Tensor) -> float:
    return F.cosine_similarity(ours.double(), theirs.double(), dim=-1).min().item()


@torch.inference_mode()
def measure(gram: GramModel, arguments: argparse.Namespace, size: str, engine: str) -> None:
    config = gram.config
    torch.backends.quantized.engine = engine
    exact, fast = wrap(gram, "float32", size), wrap(gram, "int8", size)
    samples = config.window_frames * config.front_end.hop * arguments.windows // CLIPS
    generator = torch.Generator().manual_seed(1)
    shape = (CLIPS, config.front_end.audio_channels, samples)
    # Louder and softer from second to second, so that windows differ by more than their noise.
    seconds = -(-samples // config.front_end.sample_rate)
    level = 10 ** (-3 * torch.rand(CLIPS, 1, seconds, generator=generator))
    level = level.repeat_interleave(config.front_end.sample_rate, dim=-1)[..., :samples]
    audio = (torch.rand(shape, generator=generator) * 2 - 1) * level
    starts = exact.plan(samples).window_starts()
    windows = exact.gram.windows_of(audio, starts, exact.window_fill)

    calls = {"float32": lambda: exact.encode(windows), "int8": lambda: fast.encode(windows)}
    times = alternate(calls, arguments.repeats)
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratios = [a / b for a, b in zip(times["float32"], times["int8"], strict=True)]

    ours, theirs = fast.encode(windows), exact.encode(windows)
    scenes = [rows.unflatten(0, (CLIPS, -1)).mean(dim=(1, 2)) for rows in (ours, theirs)]
    print(
        f"{size:<6}{engine:<9}{1000 * medians['float32'] / arguments.windows:9.1f}"
        f"{1000 * medians['int8'] / arguments.windows:8.1f}"
        f"{medians['float32'] / medians['int8']:8.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
        f"{smallest_cosine(ours, theirs):11.5f}{smallest_cosine(*scenes):10.5f}",
        flush=True,
    )


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--engines", action="store_true", help="all of them, not the default alone")
    parser.add_argument("--channels", type=int, default=2, choices=(1, 2, 7))
    parser.add_argument("--patching", default="frame", choices=("frame", "time"))
    parser.add_argument("--windows", type=int, default=8, help="windows of 2 s in a batch, even")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    default = torch.backends.quantized.engine
    available = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    print(
        f"PyTorch {torch.__version__}, {arguments.threads} threads; engines "
        f"{', '.join(available)}, default {default}"
    )
    print("                  ms for a window                        smallest cosine")
    print("size  engine     float32    int8 speed-up                   rows     scene")
    for size in ("tiny", "base"):
        gram = random_model(named_config(size, arguments.channels, arguments.patching))
        for engine in available if arguments.engines else [default]:
            measure(gram, arguments, size, engine)
    print("Wanted: 1.5 and 0.99.")


if __name__ == "__main__":
    main()
