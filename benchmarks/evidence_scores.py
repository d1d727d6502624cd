"""What evidence.py computes: embeddings and predictions by hear-eval, and measures of them."""

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gram_hear.evaluation.compare.results import read_results
from gram_hear.evaluation.embed.embed_task import embed_task
from gram_hear.evaluation.embed.embeddings import DONE
from gram_hear.evaluation.embed.hear_module import load_model
from gram_hear.evaluation.predict.data import Examples, open_task
from gram_hear.evaluation.predict.folds import folds_of
from gram_hear.evaluation.predict.metrics import angular_errors
from gram_hear.evaluation.predict.prediction import is_predicted, predict_task
from gram_hear.evaluation.predict.score_files import FILES
from gram_hear.evaluation.predict.shallow import ShallowProbe
from gram_hear.scenes.geometry import angles
from gram_hear.tasks import read_task

DIRECTIONS = FILES["shallow"].directions
CLEAR = 15.0  # degrees off the interaural axis from which on front and back are told apart
AHEAD = "straight ahead"  # what answers so always
DECAYS = (1e-4, 1e-3, 1e-2)  # of the linear probe
ITERATIONS = 60


@dataclass(frozen=True)
class Contender:
    """What is compared: its title in tables, its HEAR module, model and options."""

    title: str
    module: str
    model: str = ""
    options: tuple[tuple[str, Any], ...] = ()


# --- hear-eval ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedding:
    """A task to be embedded by a contender, below a folder."""

    contender: Contender
    task: Path
    output: Path


def embed(piece: Embedding) -> tuple[Embedding, Path]:
    """Embed a task, unless it is done; return its folder of embeddings."""
    who = piece.contender
    module = load_model(who.module, who.model, dict(who.options), device="cpu")
    return piece, embed_task(read_task(piece.task), module, piece.output / module.folder_name)


@dataclass(frozen=True)
class Prediction:
    """Embeddings to be scored by a probe, and the folder that the scores go to."""

    embeddings: Path
    output: Path
    probe: ShallowProbe


def predict(piece: Prediction) -> Path:
    """Predict from embeddings, unless that is done since they were made; return the folder.

    Each probe has a folder of its own, with links to the embeddings: hear-eval keeps the scores of
    one probe beside them.
    """
    done = piece.output / FILES["shallow"].marker
    made = piece.embeddings / DONE
    if piece.output.exists() and not (
        done.is_file() and done.stat().st_mtime >= made.stat().st_mtime
    ):
        shutil.rmtree(piece.output)
    piece.output.mkdir(parents=True, exist_ok=True)
    if not is_predicted(piece.output, piece.probe):
        for path in piece.embeddings.iterdir():
            if path.is_file() and path.suffix != ".lock":
                (piece.output / path.name).symlink_to(path.resolve())
        predict_task(piece.output, piece.probe)
    return piece.output


# --- measures -------------------------------------------------------------------------------


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return values, one for each seed, with their mean and deviation (n - 1)."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "deviation": deviation, "values": list(values)}


def accuracies(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return the accuracy of every task that is no localisation, over folders of other seeds."""
    by_seed = [
        {
            result.task: result.score
            for result in read_results(folder)
            if result.score is not None
            and not (folder / result.task / FILES["shallow"].directions).is_file()
        }
        for folder in folders
    ]
    return {task: summary([scores[task] for scores in by_seed]) for task in by_seed[0]}


def direction_errors(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return what is wrong with directions, (n, 3) each: degrees (medians), and confusions.

    ``angle`` is that between the vectors; ``azimuth`` goes over the full circle; ``folded`` takes
    azimuths mirrored into the front half; ``confusions`` is the share of sources in the wrong half,
    of those at least :data:`CLEAR` off the axis through the ears; ``elevation`` is by itself.
    """
    heard, height = angles(prediction)
    true, true_height = angles(target)
    clear = np.abs(np.abs(true) - 90) >= CLEAR
    confused = (np.abs(heard) > 90) != (np.abs(true) > 90)
    return {
        "angle": float(np.median(angular_errors(prediction, target))),
        "azimuth": float(np.median(np.abs((heard - true + 180) % 360 - 180))),
        "folded": float(np.median(np.abs(_fold(heard) - _fold(true)))),
        "confusions": float(confused[clear].mean()) if clear.any() else math.nan,
        "elevation": float(np.median(np.abs(height - true_height))),
    }


def _fold(azimuth: np.ndarray) -> np.ndarray:
    """Mirror azimuths of the back half into the front, at the axis through the ears."""
    return np.where(np.abs(azimuth) > 90, np.copysign(180, azimuth) - azimuth, azimuth)


def directions_of(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return the errors of a localisation task, over folders of other seeds."""
    errors = [direction_errors(*_predictions(folder)) for folder in folders]
    return {name: summary([each[name] for each in errors]) for name in errors[0]}


def always_ahead(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the errors of one who says that all sources are straight ahead."""
    _, target = _predictions(folder)
    ahead = np.broadcast_to([1.0, 0.0, 0.0], target.shape)
    return {name: summary([value]) for name, value in direction_errors(ahead, target).items()}


def _predictions(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and targets of all tests of a task, (n, 3) each."""
    found = []
    for path in sorted(folder.glob("*.predictions.npz")):
        with np.load(path) as arrays:
            found.append((arrays["prediction"], arrays["target"]))
    predictions, targets = zip(*found, strict=True)
    return np.concatenate(predictions), np.concatenate(targets)


def accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], decay: float) -> float:
    """Return the share of test clips that a logistic regression gets right.

    Both are embeddings (clips, d) and classes (clips,).
    """
    mean, deviation = train[0].mean(dim=0), train[0].std(dim=0) + 1e-6
    inputs, tests = ((x - mean) / deviation for x in (train[0], test[0]))
    classes = int(max(train[1].max(), test[1].max())) + 1
    weight = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight + bias, train[1]) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(((tests @ weight + bias).argmax(dim=1) == test[1]).float().mean())


def linear_probe(folder: Path) -> float:
    """Return the accuracy of a logistic regression on embeddings, the mean over folds.

    It takes standardised embeddings; each fold's weight decay is that of the best validation.
    """
    data = open_task(read_task(folder))
    scores = []
    for fold in folds_of(data.task):
        splits = {"train": fold.training, "valid": (fold.validation,), "test": (fold.test,)}
        rows = {name: _rows(data.examples(each)) for name, each in splits.items()}
        validated = [accuracy(rows["train"], rows["valid"], decay) for decay in DECAYS]
        best = DECAYS[int(np.argmax(validated))]
        scores.append(accuracy(rows["train"], rows["test"], best))
    return statistics.mean(scores)


def _rows(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    return examples.features.batch(0, len(examples.features)), examples.targets.argmax(dim=1)


def averages(
    accuracy_of: Mapping[str, Mapping[str, Any]], dry: Sequence[str], suffix: str
) -> dict[str, dict[str, Any]]:
    """Return the means over tasks, seed by seed: dry, in scenes, and how much is lost."""

    def mean_over(names: Sequence[str]) -> list[float]:
        return [
            statistics.mean(each)
            for each in zip(*(accuracy_of[name]["values"] for name in names), strict=True)
        ]

    before, after = mean_over(dry), mean_over([f"{name}{suffix}" for name in dry])
    return {
        "dry": summary(before),
        "natural": summary(after),
        "difference": summary([b - a for a, b in zip(before, after, strict=True)]),
        "kept": summary([b / a for a, b in zip(before, after, strict=True)]),
    }
