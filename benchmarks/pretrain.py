"""Where the time of a pretraining step goes, and how near it comes to the machine's matrix rate.

    python benchmarks/pretrain.py                 # tiny: as the config tiny trains it
    python benchmarks/pretrain.py --size base     # the published recipe, with fewer clips a step

Binaural GRAM-T with frame patches, float32, one thread; synthetic sounds in simulated rooms, unless
--clips, --rirs and --noises name sets. Parts are CPU seconds of the training process, the median
over steps; data are loaded before them, as processes beside it do. Then the same steps run with
such processes, and the clock on the wall says for which share of the time training waits for them;
a machine that is busy with other things makes that longer.

The arithmetic is that of the matrix products which the step cannot do without: forward, for the
weights' gradients, and for the inputs' gradients except in the patch embedding. Its rate is set
against torch.mm's at 1024 x 1024 x 1024, measured between the steps.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import cpu_seconds, parser_of
from torch import Tensor
from torch.utils.data import DataLoader

import gram_hear.pretrain
from gram_hear.config import ModelConfig, TransformerConfig
from gram_hear.pretrain.batches import EpochSampler, collate
from gram_hear.pretrain.clips import open_clips
from gram_hear.pretrain.datamodule import TimedLoader
from gram_hear.pretrain.memory import keep_freed_memory
from gram_hear.pretrain.module import Pretraining
from gram_hear.pretrain.pools import SyntheticNoises, open_noises, open_rooms
from gram_hear.pretrain.samples import Sample, SampleRecipe, SampleSet

CONFIGS = Path(gram_hear.pretrain.__file__).parent / "configs"
POOL = 4  # rooms, and noises: steps take as long with more
MM = 1024
WARM = 2  # steps that do not count
WANTED_SHARES = {"tiny": 0.5, "base": 0.85}
WANTED_WAIT = 0.05  # at tiny size


def read_config(name: str) -> dict[str, Any]:
    """Return the options of a shipped configuration."""
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


# --- data -----------------------------------------------------------------------------------


def make_samples(
    options: dict, config: ModelConfig, clips: str | None, rirs: str | None, noises: str | None
) -> SampleSet:
    """Return the samples of a config's recipe, and print what simulating a room takes."""
    recipe = SampleRecipe(
        **{name: options[name] for name in ("seconds", "windows", "clip_frames", "masked")},
        tokens=config.tokens,
    )
    rate = recipe.sample_rate
    rooms = open_rooms(rirs, "binaural", rate, count=POOL)
    background = open_noises(noises, rate) if noises else SyntheticNoises(rate, count=POOL)
    if rirs is None:
        seconds = [cpu_seconds(partial(rooms.read_sums, i, 1)) for i in range(POOL)]
        print(f"simulating a room, once: {statistics.median(seconds):.2f} s")
    if noises is None:
        for i in range(8 * POOL):  # until all of the pool are there
            background.draw([0, i], recipe.samples)
    return SampleSet(open_clips(clips), rooms, background, recipe, "binaural", seed=0)


def load(samples: SampleSet, batch: int, steps: int, workers: int) -> DataLoader:
    return TimedLoader(
        samples,
        batch_size=batch,
        sampler=EpochSampler(steps, batch),
        num_workers=workers,
        collate_fn=collate,
    )


# --- the step -------------------------------------------------------------------------------


class Stopwatch:
    """Adds up the time between marks, by part."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.parts: dict[str, float] = defaultdict(float)
        self.last = clock()

    def start(self) -> None:
        self.parts = defaultdict(float)
        self.last = self.clock()

    def mark(self, part: str) -> None:
        now = self.clock()
        self.parts[part] += now - self.last
        self.last = now


class Step:
    """An optimizer step on one batch, its parts on a stopwatch."""

    PARTS = (
        "scene",
        "front-end",
        "windows and patches",
        "encoder",
        "decoder",
        "loss",
        "backward",
        "clipping",
        "optimizer",
    )

    def __init__(self, module: Pretraining) -> None:
        self.module = module
        self.watch = Stopwatch(time.process_time)
        self.optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=module.learning_rate,
            betas=module.betas,
            weight_decay=module.weight_decay,
        )
        model = module.autoencoder
        self._before(module.front_end, "scene")
        self._after(module.front_end, "front-end")
        self._before(model.patches, "windows and patches")
        self._before(model.decoder, "encoder")
        self._after(model.decoder, "decoder")

    def _before(self, layer: torch.nn.Module, part: str) -> None:
        layer.register_forward_pre_hook(lambda *_: self.watch.mark(part))

    def _after(self, layer: torch.nn.Module, part: str) -> None:
        layer.register_forward_hook(lambda *_: self.watch.mark(part))

    def __call__(self, batch: Sample) -> dict[str, float]:
        """Learn from a batch; return seconds by part."""
        self.watch.start()
        loss = self.module(batch).loss
        self.watch.mark("loss")
        loss.backward()
        self.watch.mark("backward")
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self.watch.mark("clipping")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.watch.mark("optimizer")
        assert loss.isfinite()
        return dict(self.watch.parts)


def count_operations(config: ModelConfig, windows: int, masked: int) -> dict[str, float]:
    """Return the floating point operations of a step's matrix products, by part."""
    encoder, decoder, tokens = config.encoder, config.decoder, config.tokens
    assert isinstance(encoder, TransformerConfig)
    assert decoder is not None
    seen, kept = 1 + tokens - masked, tokens - masked
    embedding = kept * config.patch_values * encoder.width
    layer = 4 * encoder.width**2 + 2 * encoder.width * encoder.mlp_width
    encoding = encoder.depth * (seen * layer + 2 * seen**2 * encoder.width)
    layer = 4 * decoder.width**2 + 2 * decoder.width * decoder.mlp_width
    reach = sum(window or tokens for window in decoder.windows) * decoder.width // decoder.heads
    decoding = decoder.depth * (tokens * layer + 2 * tokens * reach)
    decoding += seen * encoder.width * decoder.width
    decoding += tokens * decoder.width * config.patch_values
    each = 2.0 * windows
    return {
        "encoder": each * (embedding + encoding),
        "decoder": each * decoding,
        "backward": each * (embedding + 2 * (encoding + decoding)),
    }


# --- measuring ------------------------------------------------------------------------------


def mm_rate(a: Tensor, b: Tensor, out: Tensor) -> float:
    """Return torch.mm's operations a second."""
    return 2 * MM**3 / cpu_seconds(lambda: torch.mm(a, b, out=out))


def measure_parts(
    step: Step, batches: list[Sample], operations: dict[str, float], size: str
) -> None:
    a, b, out = torch.randn(3, MM, MM)
    for batch in batches[:WARM]:
        mm_rate(a, b, out)
        step(batch)
    rates, found = [], []
    for batch in batches[WARM:]:
        rates += [mm_rate(a, b, out) for _ in range(3)]
        found.append(step(batch))
    rates += [mm_rate(a, b, out) for _ in range(3)]
    rate = statistics.median(rates)
    whole = statistics.median(sum(parts.values()) for parts in found)
    print(f"torch.mm: {rate / 1e9:.1f} GFLOP/s ({min(rates) / 1e9:.1f} to {max(rates) / 1e9:.1f})")
    print("part                     seconds     share   of torch.mm's rate")
    for part in Step.PARTS:
        seconds = statistics.median(parts[part] for parts in found)
        line = f"{part:<22}{seconds:>10.4f}{seconds / whole:>10.1%}"
        print(line + (f"{operations[part] / seconds / rate:>14.2f}" if part in operations else ""))
    shares = [sum(operations.values()) / sum(parts.values()) / rate for parts in found]
    print(
        f"{'step':<22}{whole:>10.4f}{1:>10.1%}{statistics.median(shares):>14.2f}"
        f"   ({min(shares):.2f} to {max(shares):.2f})"
        + (f"   aim: {WANTED_SHARES[size]}" if size in WANTED_SHARES else "")
    )


def measure_wait(step: Step, loader: DataLoader) -> None:
    """Print the share of the time on the wall in which training waits for data."""
    waits, wholes = [], []
    start = time.perf_counter()
    for batch in loader:
        loaded = time.perf_counter()
        step(batch)
        end = time.perf_counter()
        waits.append(loaded - start)
        wholes.append(end - start)
        start = end
    share = sum(waits[WARM:]) / sum(wholes[WARM:])
    print(
        f"waiting for data, {loader.num_workers} loading processes: {share:.1%} of "
        f"{sum(wholes[WARM:]):.1f} s, {len(wholes) - WARM} steps   aim at tiny scale: below "
        f"{WANTED_WAIT:.0%}"
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--batch", type=int, help="clips of a step: 4 for tiny, else 1")
    parser.add_argument("--steps", type=int, help="that count: 15 for tiny, else 5")
    parser.add_argument("--workers", type=int, default=1)
    for name in ("--clips", "--rirs", "--noises"):
        parser.add_argument(name, help="as in training; default: synthetic")
    arguments = parser.parse_args()
    tiny = arguments.size == "tiny"
    batch = arguments.batch or (4 if tiny else 1)
    steps = WARM + (arguments.steps or (15 if tiny else 5))
    torch.manual_seed(0)
    keep_freed_memory()  # as training does
    name = "tiny" if tiny else "gramt-binaural"
    config = read_config(name)
    options = config["data"]
    module = Pretraining("binaural", arguments.size, depth=config["model"].get("depth"))
    windows = batch * options["windows"]
    print(
        f"{arguments.size}: {batch} clips of {options['seconds']:g} s x {options['windows']} "
        f"windows a step"
    )
    sets = (arguments.clips, arguments.rirs, arguments.noises)
    samples = make_samples(options, module.config, *sets)
    drawn: list[Sample] = []
    loading = iter(load(samples, batch, steps, workers=0))
    seconds = [cpu_seconds(lambda: drawn.append(next(loading))) for _ in range(steps)]
    each = statistics.median(seconds) / batch
    print(f"drawing a clip and its scene takes a loading process {each:.4f} s")
    step = Step(module)
    operations = count_operations(module.config, windows, options["masked"])
    print(f"matrix products of a step: {sum(operations.values()) / 1e9:.1f} GFLOP")
    measure_parts(step, drawn, operations, arguments.size)
    measure_wait(step, load(samples, batch, steps, arguments.workers))


if __name__ == "__main__":
    main()
