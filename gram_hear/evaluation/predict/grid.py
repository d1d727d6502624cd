"""The hyper-parameter grids of the HEAR protocol, and which of their points are tried."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gram_hear.errors import OptionError, TaskError, allowed, short

# Names and values as the original kit writes them; each value is a list of choices.
DEFAULT: dict[str, list] = {
    "batch_size": [1024],
    "check_val_every_n_epoch": [3],
    "dropout": [0.1],
    "embedding_norm": ["Identity"],
    "hidden_dim": [1024],
    "hidden_layers": [1, 2],
    "hidden_norm": ["BatchNorm1d"],
    "initialization": ["xavier_uniform_", "xavier_normal_"],
    "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
    "max_epochs": [500],
    "norm_after_activation": [False],
    "optim": ["Adam"],
    "patience": [20],
}
GRIDS: dict[str, dict[str, list]] = {
    "default": DEFAULT,
    "fast": DEFAULT | {"max_epochs": [10, 50], "check_val_every_n_epoch": [3, 10]},
    "faster": DEFAULT
    | {
        "hidden_layers": [0, 1],
        "hidden_dim": [64, 128],
        "patience": [1, 3],
        "max_epochs": [10],
        "check_val_every_n_epoch": [1],
    },
}
TASK_GRIDS: dict[str, dict[str, list]] = {"dcase2016_task2": {"check_val_every_n_epoch": [10]}}
FIXED = ("embedding_norm", "hidden_norm", "norm_after_activation", "optim")  # one choice each
LARGEST = {  # what a task may choose at most
    "batch_size": 2**16,
    "check_val_every_n_epoch": 10_000,
    "dropout": 1 - 1e-6,
    "hidden_dim": 2**13,
    "hidden_layers": 16,
    "lr": 1e6,
    "max_epochs": 10_000,
    "patience": 10_000,
}
MOST_POINTS = 100_000  # of a grid
DRAW_SEED = 42  # of the original kit; weights have a seed of their own


@dataclass(frozen=True)
class Setting:
    """One grid point: the shape of the predictor and how it is trained."""

    batch_size: int
    check_val_every_n_epoch: int
    dropout: float
    hidden_dim: int
    hidden_layers: int
    initialization: str  # xavier_uniform_ or xavier_normal_
    lr: float
    max_epochs: int
    patience: int

    def to_dict(self) -> dict[str, Any]:
        """Return the point under the names of the kit, in their alphabetical order."""
        return {name: getattr(self, name, DEFAULT[name][0]) for name in sorted(DEFAULT)}


def draw_settings(
    grid: str, points: int, task_name: str, task_grid: Mapping[str, Sequence] | None = None
) -> list[Setting]:
    """Return the grid points that the protocol tries for a task.

    All combinations, the names in alphabetical order and the last running fastest, are shuffled
    with the standard library's generator at seed 42, anew for each task; the first ``points`` are
    taken.

    Args:
        grid: ``"default"``, ``"fast"`` or ``"faster"``.
        points: how many to try; all of them where the grid has fewer.
        task_name: the name in the metadata; the protocol has own choices for some tasks.
        task_grid: choices of the task's metadata (``task_specific_param_grid``).

    Raises:
        OptionError: for an unknown grid, or fewer than one point.
        TaskError: for choices of the task that this predictor does not have.
    """
    if grid not in GRIDS:
        raise OptionError(f"There is no grid {grid!r}; {allowed(grid, GRIDS)}")
    if points < 1:
        raise OptionError(f"{points} grid points were asked for; give 1 or more.")
    choices = GRIDS[grid] | TASK_GRIDS.get(task_name, {}) | _checked(task_name, task_grid or {})
    if (count := math.prod(map(len, choices.values()))) > MOST_POINTS:
        raise TaskError(
            f"{task_name}: task_specific_param_grid makes {count} points; at most {MOST_POINTS} "
            "are allowed."
        )
    names = sorted(choices)
    every = [
        dict(zip(names, values, strict=True))
        for values in product(*(choices[name] for name in names))
    ]
    random.Random(DRAW_SEED).shuffle(every)
    return [
        Setting(**{name: value for name, value in point.items() if name not in FIXED})
        for point in every[:points]
    ]


def most_steps(settings: Sequence[Setting], rows: int) -> int:
    """Return how many optimizer steps a predictor takes where it does not stop early.

    Args:
        settings: the grid points that are tried.
        rows: how many are trained on.
    """
    return max(each.max_epochs * -(-rows // each.batch_size) for each in settings)


def _checked(task_name: str, task_grid: Mapping[str, Sequence]) -> dict[str, list]:
    """Return a task's own choices; refuse unknown names, and values of another type or range."""
    checked = {}
    for name, values in task_grid.items():
        if name not in DEFAULT or name in FIXED:
            names = [each for each in DEFAULT if each not in FIXED]
            raise TaskError(
                f"{task_name}: task_specific_param_grid has {short(name)}; {allowed(name, names)}"
            )
        known = DEFAULT[name][0]
        numbers = (int, float) if isinstance(known, float) else type(known)
        if not isinstance(values, list) or not values:
            raise TaskError(
                f"{task_name}: {name} is {short(values)}; it must be a list of choices."
            )
        for value in values:
            good = isinstance(value, numbers) and not isinstance(value, bool)
            if not good or (isinstance(known, str) and value not in DEFAULT[name]):
                raise TaskError(
                    f"{task_name}: {name} has the choice {short(value)}; it must be like {known!r}."
                )
            least = 0 if name in ("hidden_layers", "dropout") else 1e-12
            if not isinstance(known, str) and not (least <= value <= LARGEST[name]):
                raise TaskError(f"{task_name}: {name} has the choice {short(value)}, out of range.")
        checked[name] = list(values)
    return checked
