"""Whether a GPU computes what the CPU does, and how fast this package is on it.

    python benchmarks/gpu.py -o gpu                         # one GPU, at most 8 minutes
    python benchmarks/gpu.py -o gpu --only training data    # some parts
    python benchmarks/gpu.py -o trial --device cpu --small  # every part at toy size, without a GPU

Weights are random, and the sizes those of base. Every part is a process of its own with a time
limit, so one that fails or hangs leaves the others alone. Each measurement is saved when it is
made: FOLDER/PART.json, and what the part printed in PART.log. After each part FOLDER/gpu.json and
gpu.txt hold all that is known.

    machine     the GPU, and the rate of torch.mm in each type
    equality    embeddings on the GPU against those of the CPU
    tests       the tests that need CUDA
    training    steps of the published recipe, bf16 where the GPU has it
    embedding   sound to embeddings, by type and window_batch
    data        clips a second from the loading processes
    kernels     GRAM-M in plain PyTorch against mamba-ssm's kernels

Shares are of the rate of torch.mm in the same type and process, on the arithmetic that the matrix
products need. Times are medians. On a CPU they are its CPU seconds.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from embed import count_operations as count_encoder
from measure import cpu_seconds, gpu_seconds, parser_of, random_model
from pretrain import count_operations as count_step
from pretrain import load, make_samples, read_config

from gram_hear.checkpoints.store import CheckpointSource
from gram_hear.config import Mamba2Config, ModelConfig, named_config
from gram_hear.devices import matmul_precision
from gram_hear.extras import install_command
from gram_hear.hear import HearModel, Options
from gram_hear.jobs.writing import write_json, write_text
from gram_hear.nn.encoder import make_encoder
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mamba_kernels import PLAIN, find_kernels
from gram_hear.pretrain.batches import collate
from gram_hear.pretrain.module import Pretraining

ROOT = Path(__file__).resolve().parents[1]
WHOLE = 480  # seconds of all parts
LEAST = 5  # seconds that a part is begun with
CLOSE, SIMILAR = 1e-4, 0.99  # wanted: the largest difference in float32, the least cosine in bf16
STEPS = 500_000  # of the published training
REPEATS = 5
Row = dict[str, Any]  # "what" was measured, and figures by name; "right" where it was a check


@dataclass(frozen=True)
class Setup:
    """What is measured on, and how much of it."""

    device: torch.device
    small: bool
    workers: int
    sets: tuple[str | None, str | None, str | None]  # clips, RIRs, noises

    @property
    def size(self) -> str:
        return "tiny" if self.small else "base"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compiler(self) -> dict[str, str]:
        """Options of torch.compile; at toy size nothing but the tracing is tried."""
        return {"backend": "aot_eager"} if self.small else {}

    @property
    def training_type(self) -> torch.dtype:
        supported = not self.on_gpu or torch.cuda.is_bf16_supported(False)
        return torch.bfloat16 if supported else torch.float32

    def seconds(self, call: Callable[[], object], repeats: int = REPEATS) -> float:
        """Return what a call takes, after one that does not count."""
        clock = gpu_seconds if self.on_gpu else cpu_seconds
        call()
        return statistics.median(clock(call) for _ in range(1 if self.small else repeats))

    def matrix_rate(self, dtype: torch.dtype, precision: str = "highest") -> float:
        """Return torch.mm's operations a second."""
        side = 256 if self.small else 8192
        a, b = torch.randn(2, side, side, device=self.device).to(dtype)
        with matmul_precision(precision):
            return 2 * side**3 / self.seconds(lambda: torch.mm(a, b))

    def peak(self) -> dict[str, float]:
        """Return the largest memory of the GPU since the last call, by name; nothing on a CPU."""
        if not self.on_gpu:
            return {}
        found = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return {"peak GiB": found}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def hear_model(config: ModelConfig, dtype: torch.dtype, window_batch: int = 16) -> HearModel:
    options = Options(dtype=name_of(dtype), window_batch=window_batch)
    return HearModel(random_model(config), options, CheckpointSource("random", "seed"))


# --- parts: each yields its measurements one by one ------------------------------------------


def describe_machine(setup: Setup) -> Iterator[Row]:
    row = {"what": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if setup.on_gpu:
        found = torch.cuda.get_device_properties(setup.device)
        row = {"what": found.name, "GiB": found.total_memory / 2**30, "cores": os.cpu_count()}
    yield row | {"torch": torch.__version__, "CUDA": torch.version.cuda or "none"}
    for dtype, precision in (
        (torch.float32, "highest"),
        (torch.float32, "high"),
        (torch.bfloat16, "highest"),
    ):
        rate = setup.matrix_rate(dtype, precision)
        kind = name_of(dtype) + (" with TF32" if precision == "high" else "")
        yield {"what": f"torch.mm in {kind}", "TFLOP/s": rate / 1e12}


MODELS = [  # feature channels, patching, backbone
    (1, "frame", "transformer"),
    (2, "frame", "transformer"),
    (7, "frame", "transformer"),
    (2, "time", "transformer"),
    (2, "frame", "mamba2"),
]
LENGTHS = (0.3, 2.0, 5.3, 10.0)  # seconds


@torch.inference_mode()
def check_embeddings(setup: Setup) -> Iterator[Row]:
    """Compare with the CPU in float32, clip by clip; GRAM-M in plain PyTorch on both."""
    generator = torch.Generator().manual_seed(0)
    for channels, patching, backbone in MODELS[-1:] if setup.small else MODELS:
        config = named_config(setup.size, channels, patching, backbone)
        audio, rate = config.front_end.audio_channels, config.front_end.sample_rate
        lengths = LENGTHS[:2] if setup.small else LENGTHS
        clips = [0.1 * torch.randn(audio, round(s * rate), generator=generator) for s in lengths]
        expected = [hear_model(config, torch.float32).embed([clip])[0] for clip in clips]
        name = f"{config.family} {config.front_end.layout}, {patching} patches"
        for dtype in (torch.float32, torch.bfloat16):
            model = hear_model(config, dtype, window_batch=64).to(setup.device)
            if backbone == "mamba2":
                model.gram.encoder.kernels = PLAIN
            found = [rows.cpu() for rows in model.embed(clips)]
            if dtype == torch.float32:
                pairs = zip(found, expected, strict=True)
                largest = max((a - b).abs().max().item() for a, b in pairs)
                values = {"largest difference": largest, "right": largest <= CLOSE}
            else:
                pairs = zip(found, expected, strict=True)
                least = min(F.cosine_similarity(a, b, dim=1).min().item() for a, b in pairs)
                values = {"smallest cosine of a row": least, "right": least >= SIMILAR}
            yield {"what": f"{name}, {name_of(dtype)}", **values}


def run_tests(setup: Setup) -> Iterator[Row]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "-k", "cuda"]
    files = ["test_gpu.py"] if setup.small else ["test_gpu.py", "test_mixing.py"]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in files)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout, flush=True)
    said = done.stdout.strip().splitlines()[-1].strip("= ")
    yield {"what": f"pytest: {said}", "right": done.returncode == 0}


def measure_training(setup: Setup) -> Iterator[Row]:
    """Time optimizer steps of the published batch, in parts of so many clips."""
    options = read_config("gramt-binaural")["data"]
    options |= {"windows": 2, "batch": 4, "seconds": 4.0} if setup.small else {}
    model = {"size": setup.size} | ({"depth": 1, "decoder_depth": 1} if setup.small else {})
    config = Pretraining("binaural", **model).config
    samples = make_samples(options, config, *setup.sets)
    drawn = [samples[i] for i in range(2)]  # rooms of other lengths would change nothing
    dtype = setup.training_type
    precision = "high" if setup.on_gpu else "highest"
    rate = setup.matrix_rate(dtype, precision)
    for clips in (2, 4) if setup.small else (24, 48):
        for compiled in (False, True):
            torch.compiler.reset()
            setup.peak()
            step = TrainingStep(setup, Pretraining("binaural", **model), dtype)
            if compiled:
                step.module.autoencoder.compile(**setup.compiler)
            batch = {
                name: value.to(setup.device)
                for name, value in collate([drawn[i % 2] for i in range(clips)]).items()
            }
            parts, windows = options["batch"] // clips, options["batch"] * options["windows"]
            with matmul_precision(precision):
                seconds = setup.seconds(partial(step, batch, parts))
            operations = sum(count_step(config, windows, options["masked"]).values())
            yield {
                "what": f"{parts} x {clips} clips x {options['windows']} windows, {name_of(dtype)}"
                + (", compiled" if compiled else ""),
                "windows a second": windows / seconds,
                "clips a second": options["batch"] / seconds,
                "share of torch.mm": operations / seconds / rate,
                **setup.peak(),
                f"hours for {STEPS:,} steps": STEPS * seconds / 3600,
                "loss": step.loss.item(),
                "right": bool(step.loss.isfinite()),
            }


class TrainingStep:
    """An optimizer step as Lightning makes it on one device."""

    def __init__(self, setup: Setup, module: Pretraining, dtype: torch.dtype) -> None:
        self.module = module.to(setup.device)
        self.autocast = torch.autocast(
            setup.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False
        )
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=2e-4, fused=setup.on_gpu)
        self.loss = torch.zeros(())

    def __call__(self, batch: dict[str, torch.Tensor], parts: int) -> None:
        self.optimizer.zero_grad()
        for _ in range(parts):
            with self.autocast:
                loss = self.module(batch).loss
            (loss / parts).backward()
            self.loss = loss.detach()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self.optimizer.step()


@torch.inference_mode()
def measure_embedding(setup: Setup) -> Iterator[Row]:
    """Time binaural GRAM-T from a waveform in main memory to rows on the device."""
    config = named_config(setup.size, 2)
    samples = config.window_frames * config.front_end.hop
    batches = (2, 4) if setup.small else (16, 64, 256)
    runs = [(dtype, size, False) for dtype in (torch.bfloat16, torch.float32) for size in batches]
    runs += [(dtype, batches[1], True) for dtype in (torch.bfloat16, torch.float32)]
    rates = {dtype: setup.matrix_rate(dtype) for dtype in (torch.bfloat16, torch.float32)}
    for dtype, windows, compiled in runs:
        setup.peak()
        model = hear_model(config, dtype, windows).to(setup.device)
        if compiled:
            model.gram.encoder.compile(**setup.compiler)
        clip = 0.1 * torch.randn(2, windows * samples)
        seconds = setup.seconds(partial(model.embed, [clip]))
        hours = windows * samples / config.front_end.sample_rate / 3600
        yield {
            "what": f"{name_of(dtype)}, window_batch {windows}" + (", compiled" * compiled),
            "audio-hours a minute": 60 * hours / seconds,
            "share of torch.mm": count_encoder(config, windows) / seconds / rates[dtype],
            **setup.peak(),
        }


def measure_data(setup: Setup) -> Iterator[Row]:
    """Count the clips that loading processes bring, on the wall clock."""
    options = read_config("gramt-binaural")["data"]
    config = named_config("base", 2)
    samples = make_samples(options | ({"seconds": 4.0} if setup.small else {}), config, *setup.sets)
    batch = 2 if setup.small else 24
    for workers in sorted({1, setup.workers}):
        before, counted = 3 * workers, 3 * workers  # those that were loaded ahead do not count
        start = 0.0
        for i, _ in enumerate(load(samples, batch, before + counted, workers), start=1):
            start = time.perf_counter() if i == before else start
        seconds = time.perf_counter() - start
        clips = counted * batch / seconds
        yield {
            "what": f"{workers} loading processes" if workers > 1 else "one loading process",
            "clips a second": clips,
            "each": clips / workers,
        }


def compare_kernels(setup: Setup) -> Iterator[Row]:
    kernels = find_kernels()
    if not setup.on_gpu or kernels.ssd is None:
        yield {"what": f"nothing to compare: {kernels.description}; {install_command('mamba')}"}
        return
    yield {"what": kernels.description}
    config = Mamba2Config()
    encoder = make_encoder(config).eval()
    initialise(encoder, seed=0)
    encoder.to(setup.device)
    for dtype in (torch.float32, torch.bfloat16):
        encoder.to(dtype)
        tokens = torch.randn(16, 201, config.width, device=setup.device, dtype=dtype)

        def forward(chosen, tokens=tokens):
            encoder.kernels = chosen
            with torch.inference_mode():
                return encoder(tokens).float()

        def both(chosen, tokens=tokens):
            encoder.kernels = chosen
            encoder.zero_grad()
            encoder(tokens).float().square().mean().backward()

        one, other = forward(kernels), forward(PLAIN)
        cosine = F.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()
        yield {
            "what": f"{name_of(dtype)}: the two outputs",
            "cosine": cosine,
            "largest difference": (one - other).abs().max().item(),
            "right": cosine > SIMILAR,
        }
        for name, call in (("forward", forward), ("forward and backward", both)):
            plain, fast = (setup.seconds(partial(call, each)) for each in (PLAIN, kernels))
            what = f"{name_of(dtype)}, 16 x 201 tokens, {name}"
            yield {"what": what, "plain time / kernels": plain / fast}


@dataclass(frozen=True)
class Part:
    measure: Callable[[Setup], Iterator[Row]]
    limit: float  # seconds at full size


PARTS = {
    "machine": Part(describe_machine, 30),
    "equality": Part(check_embeddings, 70),
    "tests": Part(run_tests, 60),
    "training": Part(measure_training, 150),
    "embedding": Part(measure_embedding, 70),
    "data": Part(measure_data, 50),
    "kernels": Part(compare_kernels, 40),
}


# --- running them ---------------------------------------------------------------------------


def line_of(row: Row) -> str:
    """Return a measurement as text."""
    figures = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name not in ("what", "right")
    ]
    wrong = "" if row.get("right", True) else "   WRONG"
    return ": ".join([row["what"], *filter(None, [", ".join(figures)])]) + wrong


def save(path: Path, rows: list[Row]) -> None:
    """Write what a part has measured; JSON has neither NaN nor infinity."""
    finite = [
        {k: str(v) if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
    write_json(path, finite)


def measure(name: str, setup: Setup, folder: Path) -> None:
    """Measure one part in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1 if setup.small else os.cpu_count() or 1)
    rows: list[Row] = []
    for row in PARTS[name].measure(setup):
        rows.append(row)
        print(line_of(row), flush=True)
        save(folder / f"{name}.json", rows)


def run(name: str, limit: float, folder: Path) -> Row:
    """Measure one part in a process of its own; return what became of it."""
    start = time.monotonic()
    (folder / f"{name}.json").unlink(missing_ok=True)
    log = folder / f"{name}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--part", name],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            code = process.wait(limit)
            state = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            state = f"stopped after its {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    file = folder / f"{name}.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    if state.startswith("failed"):
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        state += f": {said[-1]}" if said else ""
    elif not all(row.get("right", True) for row in rows):
        state += ", and something is wrong"
    return {"part": name, "state": state, "seconds": time.monotonic() - start, "rows": rows}


def conclude(found: list[Row]) -> list[str]:
    """Return what several parts say together."""
    rows = {part["part"]: part["rows"] for part in found}
    steps = [row for row in rows.get("training", []) if row["right"]]
    loaded = rows.get("data", [])
    if not steps:
        return []
    best = max(steps, key=lambda row: row["clips a second"])
    hours = best[f"hours for {STEPS:,} steps"]
    lines = [f"fastest step: {best['what']}; {STEPS:,} steps would take {hours:.0f} hours"]
    if loaded:
        most, needed = loaded[-1]["clips a second"], best["clips a second"]
        verdict = "the data side keeps up" if most >= needed else "training would wait for data"
        lines.append(
            f"{loaded[-1]['what']}: {most:.0f} clips a second of the {needed:.0f} that the step "
            f"takes; {verdict}"
        )
    return lines


def report(found: list[Row], folder: Path) -> None:
    """Write what is known so far."""
    lines = []
    for part in found:
        lines += [f"{part['part']} ({part['seconds']:.0f} s): {part['state']}"]
        lines += [f"  {line_of(row)}" for row in part["rows"]]
    ends = conclude(found)
    write_json(folder / "gpu.json", {"parts": found, "conclusions": ends})
    write_text(folder / "gpu.txt", "\n".join([*lines, *ends]) + "\n")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--small", action="store_true", help="toy sizes, to try every part")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--workers", type=int, help="loading processes: 8, or as many as cores")
    for name in ("--clips", "--rirs", "--noises"):
        parser.add_argument(name, help="as in training; default: synthetic")
    parser.add_argument("--part", help="measure one part in this process; for the program itself")
    arguments = parser.parse_args()
    workers = arguments.workers or min(8, os.cpu_count() or 1)
    sets = (arguments.clips, arguments.rirs, arguments.noises)
    setup = Setup(arguments.device, arguments.small, workers, sets)
    folder: Path = arguments.output
    if arguments.part:
        measure(arguments.part, setup, folder)
        return 0
    if setup.on_gpu and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA here; to try the parts: --device cpu --small")
    folder.mkdir(parents=True, exist_ok=True)
    patience = 3 if setup.small else 1  # a machine to try it on may be slow, and busy
    end, found = time.monotonic() + patience * WHOLE, []
    for name in arguments.only:
        limit = min(patience * PARTS[name].limit, end - time.monotonic())
        if limit < LEAST:
            found.append({"part": name, "state": "no time was left", "seconds": 0.0, "rows": []})
        else:
            found.append(run(name, limit, folder))
        report(found, folder)
        print(f"{name}: {found[-1]['state']}", flush=True)
    print((folder / "gpu.txt").read_text(encoding="utf-8"), end="")
    return 0 if all(part["state"] == "done" for part in found) else 1


if __name__ == "__main__":
    sys.exit(main())
