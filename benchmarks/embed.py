"""How fast a model embeds, as ratios taken in one run.

    python benchmarks/embed.py    # against torch.mm and torch.bmm

Weights are random. Every figure is CPU time of the process (by default on one thread), the median
of alternating runs of the model and of its peers. For a GPU there is benchmarks/gpu.py.
"""

import statistics
import time
from collections import defaultdict

import torch
import torch.nn.functional as F
from measure import cpu_seconds, parser_of, random_model
from torch.overrides import TorchFunctionMode

from gram_hear.config import ModelConfig, named_config
from gram_hear.windows import corrected_plan, reference_plan


class OperationTimer(TorchFunctionMode):
    """Adds up the CPU seconds spent in chosen functions while the model runs as it is."""

    def __init__(self):
        super().__init__()
        self.names = {F.linear: "linear", F.scaled_dot_product_attention: "attention"}
        self.seconds = defaultdict(float)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        start = time.process_time()
        result = function(*args, **(kwargs or {}))
        if function in self.names:
            self.seconds[self.names[function]] += time.process_time() - start
        return result


def count_operations(config: ModelConfig, windows: int) -> float:
    """Return the floating point operations of a Transformer's blocks."""
    encoder, tokens = config.encoder, config.tokens + 1
    layer = 2 * tokens * encoder.width * (4 * encoder.width + 2 * encoder.mlp_width)
    return windows * encoder.depth * (layer + 4 * tokens**2 * encoder.width)


def matrix_calls(config: ModelConfig, windows: int):
    """Return the linear layers and the attention products of one pass, as bare products."""
    encoder, tokens = config.encoder, config.tokens + 1
    rows, width, hidden = windows * tokens, encoder.width, encoder.mlp_width
    sizes = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    layers = [
        (torch.randn(rows, inputs), torch.randn(outputs, inputs)) for inputs, outputs in sizes
    ]
    patches = (
        torch.randn(windows * config.tokens, config.patch_values),
        torch.randn(width, config.patch_values),
    )
    heads, head_width = windows * encoder.heads, width // encoder.heads
    query, key, value = torch.randn(3, heads, tokens, head_width)
    weights = torch.rand(heads, tokens, tokens)

    def linear():
        torch.mm(patches[0], patches[1].T)
        for _ in range(encoder.depth):
            for inputs, matrix in layers:
                torch.mm(inputs, matrix.T)

    def attention():
        for _ in range(encoder.depth):
            torch.bmm(query, key.transpose(1, 2))
            torch.bmm(weights, value)

    def softmax():
        for _ in range(encoder.depth):
            torch.softmax(weights, dim=-1)

    return linear, attention, softmax


@torch.inference_mode()
def measure(config: ModelConfig, windows: int, repeats: int) -> None:
    model = random_model(config)
    channels = config.front_end.audio_channels
    samples = config.window_frames * config.front_end.hop
    waveform = torch.rand(windows, channels, samples) * 2 - 1
    features = model.windows_of(waveform, [0], "zero")
    linear, attention, softmax = matrix_calls(config, windows)
    model(features)
    rows = []
    for _ in range(repeats):
        mm, bmm, soft = cpu_seconds(linear), cpu_seconds(attention), cpu_seconds(softmax)
        with OperationTimer() as timer:
            encoder = cpu_seconds(lambda: model(features))
        front_end = cpu_seconds(lambda: model.windows_of(waveform, [0], "zero"))
        ours = timer.seconds
        rows.append(
            {
                "linear layers: torch.mm time / ours": mm / ours["linear"],
                "attention: torch.bmm time / ours (softmax included in ours)": (
                    bmm / ours["attention"]
                ),
                "attention: torch.bmm and softmax time / ours": (bmm + soft) / ours["attention"],
                "linear layers and attention: mm and bmm time / ours": (
                    (mm + bmm) / (ours["linear"] + ours["attention"])
                ),
                "whole encoder: mm and bmm time / ours": (mm + bmm) / encoder,
                "front-end: share of all": front_end / (front_end + encoder),
                "CPU seconds for one second of audio": (
                    (encoder + front_end) / (windows * samples / config.front_end.sample_rate)
                ),
            }
        )
    for name in rows[0]:
        values = sorted(row[name] for row in rows)
        median = statistics.median(values)
        print(f"{name:<62} {median:7.3f}   ({values[0]:.3f} to {values[-1]:.3f})")


def compare_windows(config: ModelConfig) -> None:
    """Print the windows that each rule computes."""
    print("clip seconds: windows computed / by the authors' rule")
    for seconds in (1, 2, 4, 5, 10):
        samples = seconds * config.front_end.sample_rate
        ours = corrected_plan(samples, config).windows
        authors = reference_plan(samples, config, per_window=False).windows
        print(f"{seconds:12d}: {ours} / {authors}")


def main() -> None:
    parser = parser_of(__doc__, repeats=5)
    parser.add_argument("--size", default="base", choices=("tiny", "small", "base"))
    parser.add_argument("--channels", type=int, default=2, choices=(1, 2, 7))
    parser.add_argument("--patching", default="frame", choices=("frame", "time"))
    parser.add_argument("--windows", type=int, default=8, help="windows of 2 s in a batch")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    config = named_config(arguments.size, arguments.channels, arguments.patching)
    print(
        f"{arguments.size}, {arguments.channels} channels, {arguments.patching} patches, "
        f"{arguments.windows} windows, {arguments.threads} threads"
    )
    measure(config, arguments.windows, arguments.repeats)
    compare_windows(config)


if __name__ == "__main__":
    main()
