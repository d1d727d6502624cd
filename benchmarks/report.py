"""How long hear-eval report takes over 100 results: reading, testing, writing.

    python benchmarks/report.py                 # 5 models, 10 tasks, 2 seeds
    python benchmarks/report.py --clips 2000 --classes 50

Results are made in a temporary folder: score files as hear-eval predict writes them, and the
predictions of every test clip. Wall-clock times, the best of several runs, files in the cache.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import parser_of, write_task

from gram_hear.evaluation.compare.comparison import compare, read_runs
from gram_hear.evaluation.compare.report import Report, write_report
from gram_hear.evaluation.compare.significance import compare_models

LIMIT = 2.0  # seconds in which 100 results are to be read


def write_result(folder: Path, seed: int, clips: int, classes: int, skill: float) -> None:
    """Write one task's results, of a model that is right about as often as ``skill``."""
    folder.mkdir(parents=True)
    random = np.random.default_rng([seed, int(100 * skill), len(folder.name)])
    truth = np.random.default_rng(0).integers(0, classes, clips)
    wrong = random.random(clips) > skill
    guess = np.where(wrong, random.integers(0, classes, clips), truth)
    prediction = (
        np.eye(classes, dtype=np.float32)[guess] * 0.9 + random.random((clips, classes)) / 20
    )
    target = np.eye(classes, dtype=np.float32)[truth]
    arrays = {"target": target, "prediction": prediction.astype(np.float32)}
    np.savez_compressed(folder / "test.predictions.npz", **arrays)
    score = float((guess == truth).mean())
    test = {
        "test_score": score,
        "test_top1_acc": score,
        "test_loss": 1.0,
        "validation_score": score,
    }
    done = {"time": 60.0, "grid": "default", "grid_points": 8, "seed": seed, "shuffle": False}
    splits = {
        split: {f"{split}{i}.wav": [str(label)] for i, label in enumerate(truth)}
        for split in ("train", "valid", "test")
    }
    write_task(folder, splits, [str(i) for i in range(classes)])
    for name, content in {
        "test.predicted-scores.json": {"test": test},
        "prediction-done.json": done,
    }.items():
        (folder / name).write_text(json.dumps(content))


def timed(call: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """Return the least seconds of several runs, and what the last one returned."""
    seconds, found = [], None
    for _ in range(runs):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), found


def main() -> None:
    parser = parser_of(__doc__)
    for name, default in (("models", 5), ("tasks", 10), ("seeds", 2), ("clips", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for seed in range(given.seeds):
            for model in range(given.models):
                for task in range(given.tasks):
                    folder = root / f"seed{seed}" / f"model{model}" / f"task{task}-v1-full"
                    write_result(folder, seed, given.clips, given.classes, 0.7 + 0.02 * model)
        reading, comparison = timed(lambda: compare(read_runs([root])), given.runs)
        testing, tests = timed(lambda: compare_models(comparison), given.runs)
        report = Report(comparison, tests)
        writing, _ = timed(lambda: write_report(report, root / "report"), given.runs)
    results = given.models * given.tasks * given.seeds
    print(f"{results} results read and compared:   {reading:6.2f} s")
    print(f"{len(tests)} pairs of models tested:    {testing:6.2f} s ({given.clips} clips each)")
    print(f".md, .csv and .json written:     {writing:6.2f} s")
    if results == 100:
        print(f"reading {'reaches' if reading < LIMIT else 'MISSES'} the aim of {LIMIT} s")


if __name__ == "__main__":
    main()
