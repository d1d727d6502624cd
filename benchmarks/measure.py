"""What benchmarks share: CPU seconds, alternating runs, models of random weights, options."""

import argparse
import time
from collections.abc import Callable

import torch

from gram_hear.config import ModelConfig
from gram_hear.model import GramModel
from gram_hear.nn.initialise import initialise

Call = Callable[[], object]


def parser_of(doc: str | None, repeats: int | None = None) -> argparse.ArgumentParser:
    """Return a parser that a program's docstring describes, with --repeats where it has a default.

    PyTorch is set to one thread; a program with more reads --threads itself.
    """
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="alternating runs")
    return parser


def cpu_seconds(call: Call, runs: int = 1) -> float:
    """Return the process's CPU seconds of a call, the mean of ``runs``."""
    start = time.process_time()
    for _ in range(runs):
        call()
    return (time.process_time() - start) / runs


def gpu_seconds(call: Call) -> float:
    """Return the seconds until the GPU is done with a call."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    calls: dict[str, Call], repeats: int, clock: Callable[[Call], float] = cpu_seconds
) -> dict[str, list[float]]:
    """Time the calls in turn, after one run of each that does not count; return seconds by name."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(clock(call))
    return times


def random_model(config: ModelConfig) -> GramModel:
    """Return a model of random weights, always the same, for inference."""
    model = GramModel(config).eval()
    initialise(model, seed=0)
    return model
