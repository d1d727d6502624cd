"""How much CPU time prediction takes beside the original kit, and what both score.

    python benchmarks/hear_eval.py [EMBEDDINGS] [--kit PYTHON] [--seeds 42 43 44] [--task fsdd ...]

Everything runs on one thread. EMBEDDINGS is a folder with the embeddings of the three tasks, as the
original kit wrote them; by default those of tests/data. PYTHON is one that has the kit (heareval
2021.1.3) and an old Lightning: for each seed it predicts the same task right before hear-eval does,
on the same machine. Without it there is nothing to compare times with. It is made so:

    python -m venv kit
    kit/bin/pip install torch numpy scipy pandas scikit-learn librosa six future pyyaml click tqdm
    kit/bin/pip install validators pydot-ng titlecase colorama "setuptools<80" "torchmetrics<0.12"
    kit/bin/pip install --no-deps heareval==2021.1.3 pytorch-lightning==1.9.5
    kit/bin/pip install --no-deps lightning-fabric==1.9.5 lightning-utilities dcase-util sed-eval
    kit/bin/pip install --no-deps intervaltree sortedcontainers more-itertools python-slugify
    kit/bin/pip install --no-deps text-unidecode torchinfo spotty pynvml

The arithmetic is what training by the protocol cannot do without: the matrix products forward, of
the weights' gradients, and of the inputs' gradients except in the first layer. It is counted as it
is trained, and its rate over the whole CPU time of prediction is set against torch.mm's at
1024 x 1024 x 1024, measured between the tasks and, while a task is trained, between grid points.
"""

import json
import os
import shutil
import statistics
import subprocess
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
    """A task and grid, how much of the kit's CPU time is allowed, and the kit's scores.

    ``scores`` are those of the seeds 42, 43 and 44, once measured (of the events: 42 alone).
    """

    task: str
    grid: str
    limit: float
    scores: dict[str, tuple[float, ...]]
    tolerance: float  # of the mean score; the kit's range where that is more


CASES = (
    Case("fsdd", "fast", 0.65, {"test_top1_acc": (0.970, 0.970, 0.9767)}, 0.01),
    Case("tonepitch", "default", 0.55, {"test_pitch_acc": (0.9792, 0.9792, 0.9722)}, 0.01),
    Case(
        "esc10events",
        "fast",
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


def predict_with_kit(
    python: str, folder: Path, case: Case, seed: int
) -> tuple[float, dict[str, float]]:
    """Let the kit predict a task; return its CPU seconds, without its start, and its scores."""
    program = Path(__file__).resolve().parent / "kit.py"
    command = [python, program, folder, case.grid, str(seed)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **one_thread},
    )
    if done.returncode:
        raise SystemExit(f"The kit failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["scores"]


def report(folder: Path, case: Case, seeds: list[int], python: str | None) -> None:
    """Predict a task with each seed, and print times, rates and scores."""
    meter = Meter()
    meter.measure()
    runs, kits = [], []
    for seed in seeds:
        if python is not None:
            kits.append(predict_with_kit(python, folder, case, seed))
        runs.append(predict(folder, case, seed, meter))
    seconds = statistics.mean(each for each, _ in runs)
    rate = meter.operations / (seconds * len(runs))
    mm = statistics.median(meter.rates)
    print(f"{case.task}, {case.grid}, seeds {', '.join(map(str, seeds))}")
    print(f"  CPU time     {', '.join(f'{each:.1f}' for each, _ in runs)} s")
    if kits:
        ratios = [here / there for (here, _), (there, _) in zip(runs, kits, strict=True)]
        print(
            f"  the kit's    {', '.join(f'{each:.1f}' for each, _ in kits)} s; "
            f"here / the kit's {', '.join(f'{each:.2f}' for each in ratios)} "
            f"(wanted: at most {case.limit})"
        )
    print(
        f"  arithmetic   {rate / 1e9:6.1f} GFLOP/s, {rate / mm:.2f} of torch.mm's {mm / 1e9:.1f} "
        f"({min(meter.rates) / 1e9:.1f} to {max(meter.rates) / 1e9:.1f}) "
        f"(wanted: at least {WANTED_SHARE})"
    )
    for name, once in case.scores.items():
        ours = [scores[name] for _, scores in runs]
        theirs = [scores[name] for _, scores in kits] or list(once)
        mean, kit = statistics.mean(ours), statistics.mean(theirs)
        allowed = max(max(theirs) - min(theirs), case.tolerance)
        print(
            f"  {name}: {', '.join(f'{each:.4f}' for each in ours)}; mean {mean:.4f}; the kit's "
            f"{', '.join(f'{each:.4f}' for each in theirs)}; mean {kit:.4f}, difference "
            f"{mean - kit:+.4f} (wanted: within {allowed:.4f})",
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
    parser.add_argument("--kit", metavar="PYTHON", help="a Python that has the original kit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--task", choices=names, nargs="+", default=names)
    arguments = parser.parse_args()
    python = shutil.which(arguments.kit) if arguments.kit else None
    if arguments.kit and python is None:
        raise SystemExit(f"{arguments.kit} is no program.")
    if python is not None:
        python = os.path.abspath(python)  # a link is kept: it tells Python its environment
    with tempfile.TemporaryDirectory() as work:
        for case in CASES:
            if case.task in arguments.task:
                folder = find(arguments.embeddings, case.task, Path(work))
                report(folder, case, arguments.seeds, python)


if __name__ == "__main__":
    main()
