"""What benchmarks share: CPU seconds, alternating runs, random models, tasks, options."""

import argparse
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from gram_hear.checkpoints.store import CheckpointSource
from gram_hear.config import ModelConfig, named_config
from gram_hear.hear import HearModel, Options
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


def alternate(calls: dict[str, Call], repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of calls by name, made in turn. The first of each does not count."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(cpu_seconds(call))
    return times


class Stopwatch:
    """Adds up the CPU seconds spent in named functions while a program runs as it is.

    ``parts`` are the names under which seconds are added up -> owners of functions, and their
    names. Seconds are those of the thread that calls.
    """

    def __init__(self, parts: Mapping[str, Sequence[tuple[Any, str]]]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.parts = parts

    def start(self) -> None:
        """Replace the functions, and methods that are generators, with ones that are timed."""
        for part, functions in self.parts.items():
            for owner, name in functions:
                setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.over(part):
                result = function(*args, **kwargs)
            return self._steps(part, result) if isinstance(result, Iterator) else result

        return timed

    @contextlib.contextmanager
    def over(self, part: str) -> Iterator[None]:
        start = time.thread_time()
        try:
            yield
        finally:
            self.seconds[part] += time.thread_time() - start

    def _steps(self, part: str, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.over(part):
                try:
                    value = next(iterator)
                except StopIteration:
                    return
            yield value

    def shares(self, total: float) -> dict[str, float]:
        """Return the seconds of each part, and of the rest of so many in all."""
        found = {part: self.seconds[part] for part in self.parts}
        return {**found, "the rest": total - sum(found.values())}


def random_model(config: ModelConfig) -> GramModel:
    """Return a model of random weights, always the same, for inference."""
    model = GramModel(config).eval()
    initialise(model, seed=0)
    return model


def random_hear_model(size: str, channels: int, **options: Any) -> HearModel:
    """Return such a model of a named size, with options of load_model."""
    gram = random_model(named_config(size, channels))
    return HearModel(gram, Options(**options), CheckpointSource(f"random {size}", "seed"))


def write_task(
    folder: Path,
    annotations: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    sound: Callable[[], np.ndarray] | None = None,
    rate: int = 16000,
    **metadata: Any,
) -> None:
    """Write a HEAR task: split -> file -> what is annotated; with audio where ``sound`` makes it.

    It is one of scenes of one class each, unless the metadata say otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, files in annotations.items():
        (folder / f"{split}.json").write_text(json.dumps(files))
        if sound is not None:
            (folder / str(rate) / split).mkdir(parents=True)
            for file in files:
                soundfile.write(folder / str(rate) / split / file, sound(), rate)
    rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    (folder / "labelvocabulary.csv").write_text(f"idx,label\n{rows}")
    common = {
        "task_name": folder.name.partition("-")[0],
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "sample_duration": 1.0,
        "split_mode": "trainvaltest",
        "evaluation": ["top1_acc"],
        "splits": list(annotations),
    }
    (folder / "task_metadata.json").write_text(json.dumps(common | metadata))
