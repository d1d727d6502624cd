"""How much CPU time prediction takes against the original kit, and what it scores.

    python benchmarks/hear_eval.py [EMBEDDINGS] [--seeds 42 43 44] [--task fsdd ...]

Everything runs on one thread. EMBEDDINGS is a folder with the embeddings of the three tasks, as the
original kit wrote them; by default those of tests/data. The kit's seconds are process CPU time on
one thread of another machine, so that a ratio is only as good as the machines are alike.

The arithmetic is what training by the protocol cannot do without: the matrix products forward, of
the weights' gradients, and of the inputs' gradients except in the first layer. It is counted as it
is trained, and its rate over the whole CPU time of prediction is set against torch.mm's at
1024 x 1024 x 1024, measured between the tasks and, while a task is trained, between grid points.
"""

import shutil
import statistics
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from measure import parser_of
from torch import Tensor

from gram_hear.evaluation.predict.prediction import predict_task
from gram_hear.evaluation.predict.shallow import ShallowProbe
from gram_hear.evaluation.predict.training import Trainer

GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden" / "hear-eval" / "embeddings"
SIZE = 1024  # of torch.mm
WANTED_SHARE = 0.75  # of torch.mm's rate


@dataclass(frozen=True)
class Case:
    """A task and grid: the kit's CPU seconds (least and most), the limit, and the kit's scores."""

    task: str
    grid: str
    seconds: tuple[float, float]
    limit: float
    scores: dict[str, tuple[float, ...]]
    tolerance: float  # of the mean score; the kit's range where that is more


CASES = (
    Case("fsdd", "fast", (107, 109), 0.65, {"test_top1_acc": (0.970, 0.970, 0.9767)}, 0.01),
    Case(
        "tonepitch", "default", (56, 66), 0.55, {"test_pitch_acc": (0.9792, 0.9792, 0.9722)}, 0.01
    ),
    Case(
        "esc10events",
        "fast",
        (157, 157),
        0.5,
        {"test_event_onset_200ms_fms": (0.2617,), "test_segment_1s_er": (0.5614,)},
        0.06,
    ),
)


@dataclass
class Meter:
    """Counts the arithmetic of training while it runs, and torch.mm's rate in between.

    ``operations`` are floating point operations, ``rates`` operations a second, ``overhead`` the
    CPU seconds that measuring took.
    """

    operations: float = 0.0
    rates: list[float] = field(default_factory=list)
    overhead: float = 0.0

    def count(self, trainer: Trainer, rows: int) -> None:
        """Add what one batch of training needs."""
        layers = list(pairwise(trainer.predictors.widths))
        products = 3 * sum(a * b for a, b in layers) - layers[0][0] * layers[0][1]
        self.operations += 2.0 * rows * products * len(trainer.settings)

    def measure(self) -> None:
        """Measure torch.mm once more."""
        start = time.process_time()
        a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
        out = torch.mm(a, b)
        begun = time.process_time()
        for _ in range(4):
            torch.mm(a, b, out=out)
        end = time.process_time()
        self.rates.append(4 * 2.0 * SIZE**3 / (end - begun))
        self.overhead += end - start


def predict(folder: Path, case: Case, seed: int, meter: Meter) -> tuple[float, dict[str, float]]:
    """Predict one task; return its CPU seconds and its test scores."""
    step = Trainer.step

    def counted(trainer: Trainer, features: Tensor, targets: Tensor) -> None:
        meter.count(trainer, len(features))
        step(trainer, features, targets)

    Trainer.step = counted  # type: ignore
    try:
        start, before = time.process_time(), meter.overhead
        scores = predict_task(
            folder, ShallowProbe(case.grid, seed=seed), lambda done, total: meter.measure()
        )
        seconds = time.process_time() - start - (meter.overhead - before)
    finally:
        Trainer.step = step  # type: ignore
    return seconds, scores["test"]


def report(folder: Path, case: Case, seeds: list[int]) -> None:
    """Predict a task with each seed, and print times, rates and scores."""
    meter = Meter()
    meter.measure()
    runs = [predict(folder, case, seed, meter) for seed in seeds]
    seconds = statistics.mean(each for each, _ in runs)
    low, high = (seconds / theirs for theirs in reversed(case.seconds))
    rate = meter.operations / (seconds * len(runs))
    mm = statistics.median(meter.rates)
    print(f"{case.task}, {case.grid}, seeds {', '.join(map(str, seeds))}")
    print(
        f"  CPU time     {seconds:6.1f} s, {low:.2f} to {high:.2f} of the kit's "
        f"{case.seconds[0]:g} to {case.seconds[1]:g} s (wanted: at most {case.limit})"
    )
    print(
        f"  arithmetic   {rate / 1e9:6.1f} GFLOP/s, {rate / mm:.2f} of torch.mm's {mm / 1e9:.1f} "
        f"({min(meter.rates) / 1e9:.1f} to {max(meter.rates) / 1e9:.1f}) "
        f"(wanted: at least {WANTED_SHARE})"
    )
    for name, theirs in case.scores.items():
        ours = [scores[name] for _, scores in runs]
        mean, kits = statistics.mean(ours), statistics.mean(theirs)
        allowed = max(max(theirs) - min(theirs), case.tolerance)
        print(
            f"  {name}: {', '.join(f'{each:.4f}' for each in ours)}; mean {mean:.4f}, the kit's "
            f"{kits:.4f}, difference {mean - kits:+.4f} (wanted: within {allowed:.4f})",
            flush=True,
        )


def find(embeddings: Path, task: str, work: Path) -> Path:
    """Copy a task's embeddings to where scores may be written; return the folder."""
    archives = sorted(embeddings.glob(f"{task}-*.tar.xz"))
    if archives:
        with tarfile.open(archives[0]) as archive:
            archive.extractall(work, filter="data")
        return work / archives[0].name.removesuffix(".tar.xz")
    found = next(iter(sorted(embeddings.glob(f"{task}-*/task_metadata.json"))), None)
    if found is None:
        raise SystemExit(f"{embeddings} has no embeddings of {task}.")
    folder = work / found.parent.name
    folder.mkdir()
    for file in found.parent.iterdir():
        shutil.copyfile(file, folder / file.name)  # without the modes, which may forbid writing
    return folder


def main() -> None:
    names = [case.task for case in CASES]
    parser = parser_of(__doc__)
    parser.add_argument("embeddings", type=Path, nargs="?", default=GOLDEN)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--task", choices=names, nargs="+", default=names)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        for case in CASES:
            if case.task in arguments.task:
                report(find(arguments.embeddings, case.task, Path(work)), case, arguments.seeds)


if __name__ == "__main__":
    main()
