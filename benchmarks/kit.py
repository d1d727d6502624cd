"""Let the original kit (heareval 2021.1.3) predict one task, and print what that took as JSON.

    PYTHON benchmarks/kit.py FOLDER GRID SEED

hear_eval.py --kit PYTHON runs this file with a Python that has the kit; it imports nothing of
gram_hear. The kit itself always takes the seed 42. Here weights and dropout have a seed that is
given, and the grid points are drawn as the kit draws them. What stops the kit today is mended:
names that NumPy 2 has dropped, checkpoints of which PyTorch would load tensors alone, and the epoch
that a test counts as, for events: the kit sets it where Lightning 1.5 looked for it.
"""

import json
import logging
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

GONE = {"Inf": np.inf, "NaN": np.nan, "float": float, "int": int}  # with NumPy 2
load = torch.load


def load_all(*arguments: Any, **options: Any) -> Any:
    """Load a checkpoint that this very run has written."""
    return load(*arguments, **{**options, "weights_only": False})


def main() -> None:
    folder, grid, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name, value in GONE.items():
        setattr(np, name, value)
    torch.load = load_all  # type: ignore
    from heareval.predictions import task_predictions as kit  # type: ignore

    seed_everything = kit.seed_everything

    def seeded(draw_seed: int, workers: bool = False) -> None:
        seed_everything(seed, workers=workers)
        random.seed(draw_seed)

    test = kit.task_predictions_test

    def test_at_epoch(grid_point: Any, **options: Any) -> Any:
        grid_point.trainer.fit_loop.epoch_progress.current.completed = grid_point.epoch
        return test(grid_point=grid_point, **options)

    kit.seed_everything = seeded
    kit.task_predictions_test = test_at_epoch
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    dimensions = json.loads((folder / "test.embedding-dimensions.json").read_text())
    start = time.process_time()
    kit.task_predictions(
        embedding_path=folder,
        embedding_size=dimensions[1],
        grid_points=8,
        gpus=None,
        in_memory=True,
        deterministic=True,
        grid=grid,
        logger=logging.getLogger("kit"),
    )
    seconds = time.process_time() - start
    scores = json.loads((folder / "test.predicted-scores.json").read_text())["test"]
    print()
    print(json.dumps({"seconds": seconds, "scores": scores}))


if __name__ == "__main__":
    main()
