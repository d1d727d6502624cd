"""How many optimizer steps a predictor needs before its score says something of the embeddings.

    python benchmarks/predictor_steps.py [EMBEDDINGS] [--rows 60 250 1000] [--seeds 42 43 44]

Each line is a number of training rows, with a grid as it is or with other numbers of epochs: the
steps that a predictor takes at most, and the mean test score over the seeds with its deviation.
EMBEDDINGS is a folder with the embeddings of one task of clips with train, valid and test; by
default spoken digits of tests/data, as the original kit wrote them.
"""

import argparse
import statistics
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from gram_hear.evaluation.predict.grid import GRIDS, Setting, draw_settings, most_steps
from gram_hear.evaluation.predict.prediction import Scoring, load_examples, objective_of, point_seed
from gram_hear.evaluation.predict.probe import Examples, Rows, side_by_side, train
from gram_hear.tasks import Task, read_task

GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden" / "hear-eval" / "embeddings"
EPOCHS = (3, 10, 20, 50, 100, 200, 400)
CPU = torch.device("cpu")


def first_rows(examples: Examples, rows: int) -> Examples:
    """Return the first training rows; the order of rows is a shuffled one."""
    return Examples(Rows([examples.features.batch(0, rows)]), examples.targets[:rows])


def score(task: Task, training: Examples, settings: list[Setting], seed: int) -> float:
    """Return the test score of the setting that validates best."""
    validation, test = Scoring(task, "valid"), Scoring(task, "test")
    best = None
    for group in side_by_side(settings, CPU):
        found = train(
            [settings[i] for i in group],
            training,
            validation.examples,
            objective_of(task),
            validation.judge,
            [point_seed(seed, 0, i) for i in group],
            CPU,
        )
        for one in found:
            if one is not None and (best is None or one.judgement.score > best.judgement.score):
                best = one
    assert best is not None
    prediction, _ = best.predict(test.examples.features)
    return test.score(prediction, best.judgement.details)[test.metrics[0].name]


def report(task: Task, rows: int, points: int, seeds: list[int]) -> None:
    """Print the scores at one number of training rows."""
    training = first_rows(load_examples(task, ("train",)), rows)
    plans = {grid: draw_settings(grid, points, task.name) for grid in GRIDS}
    for epochs in EPOCHS:
        plans[f"faster, {epochs} epochs, patience 20"] = [
            replace(each, max_epochs=epochs, patience=20) for each in plans["faster"]
        ]
    for name, settings in plans.items():
        scores = [score(task, training, settings, seed) for seed in seeds]
        print(
            f"{len(training.features):6d} rows  {most_steps(settings, rows):5d} steps  "
            f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}  {name}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 250, 1000])
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        folder = arguments.embeddings
        if folder is None:
            with tarfile.open(GOLDEN / "fsdd-v1-full.tar.xz") as archive:
                archive.extractall(work, filter="data")
            folder = Path(work) / "fsdd-v1-full"
        for rows in arguments.rows:
            report(read_task(folder), rows, arguments.points, arguments.seeds)


if __name__ == "__main__":
    main()
