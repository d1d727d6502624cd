"""How many optimizer steps a predictor needs before its score says something of the embeddings.

    python research/predictor_steps.py [EMBEDDINGS] [--rows 60 250 1000] [--seeds 42 43 44]

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

from gram_hear.evaluation.predict.data import Examples, Rows, TaskData, open_task
from gram_hear.evaluation.predict.grid import GRIDS, Setting, draw_settings, most_steps
from gram_hear.evaluation.predict.scoring import SplitScorer
from gram_hear.evaluation.predict.shallow import point_seed
from gram_hear.evaluation.predict.training import side_by_side, train
from gram_hear.tasks import read_task

GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden" / "hear-eval" / "embeddings"
EPOCHS = (3, 10, 20, 50, 100, 200, 400)
CPU = torch.device("cpu")


def first_rows(examples: Examples, rows: int) -> Examples:
    """Return the first training rows; the order of rows is a shuffled one."""
    return Examples(Rows([examples.features.batch(0, rows)]), examples.targets[:rows])


def score(data: TaskData, training: Examples, settings: list[Setting], seed: int) -> float:
    """Return the test score of the setting that validates best."""
    validation, test = (SplitScorer(data.task, data[split]) for split in ("valid", "test"))
    trained = []
    for group in side_by_side(settings, CPU):
        trained += train(
            [settings[i] for i in group],
            training,
            validation.split.examples,
            validation.objective,
            validation.validate,
            [point_seed(seed, 0, i) for i in group],
            CPU,
        )
    best = max((one for one in trained if one), key=lambda one: one.validation.value)
    prediction, _ = best.predict(test.split.examples.features)
    return test.test(prediction, best.validation.choice)[test.metrics[0].name]


def report(data: TaskData, rows: int, points: int, seeds: list[int]) -> None:
    """Print the scores at one number of training rows."""
    training = first_rows(data["train"].examples, rows)
    plans = {grid: draw_settings(grid, points, data.task.name) for grid in GRIDS}
    for epochs in EPOCHS:
        plans[f"faster, {epochs} epochs, patience 20"] = [
            replace(each, max_epochs=epochs, patience=20) for each in plans["faster"]
        ]
    for name, settings in plans.items():
        scores = [score(data, training, settings, seed) for seed in seeds]
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
        data = open_task(read_task(folder))
        for rows in arguments.rows:
            report(data, rows, arguments.points, arguments.seeds)


if __name__ == "__main__":
    main()
