"""Scores that others have published, each with its source, to stand beside measured ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from gram_hear.errors import OptionError, TaskError, nearest
from gram_hear.evaluation.predict.metrics import METRICS
from gram_hear.tasks import read_json

ALL = "all"


@dataclass(frozen=True)
class Published:
    """A model's published scores.

    ``scores`` are by task, the name of its folder, by the first metric of ``metrics``; ``source``
    says where they were published, ``url`` where it can be read.
    """

    name: str
    source: str
    url: str
    scores: dict[str, float]
    metrics: dict[str, str]

    def score(self, task: str, metric: str) -> float | None:
        """Return the score of a task by a metric; None where it is not published."""
        return self.scores.get(task) if self.metrics.get(task) == metric else None


def read_published(path: Path | None = None) -> list[Published]:
    """Return the published scores of a file, or of the one that comes with the package.

    The file is a JSON object of ``sources`` (key -> {title, url}), ``tasks`` (folder name ->
    {metric}) and ``models``: a list of {name, source: a key of ``sources``, scores: {task:
    number}}. Other keys are for readers.

    Raises:
        OptionError: for a file that cannot be read, or lacks a source, a metric or a number.
    """
    source = path or Path(str(files("gram_hear.evaluation.compare") / "data" / "published.json"))
    try:
        content = read_json(source)
        metrics = {task: about["metric"] for task, about in content["tasks"].items()}
        models = [_model(each, content["sources"], metrics) for each in content["models"]]
    except TaskError as error:
        raise OptionError(f"--published-file: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(
            f"{source} is no file of published scores ({error!r}); it must have sources, tasks "
            "with their metric, and models with name, source and scores, as "
            "docs/how-to/comparing.md says."
        ) from error
    if unknown := set(metrics.values()) - set(METRICS):
        raise OptionError(
            f"{source} names the metric {', '.join(sorted(map(str, unknown)))}; known are "
            f"{', '.join(METRICS)}."
        )
    return models


def _model(content: Any, sources: Any, metrics: dict[str, str]) -> Published:
    source = sources[content["source"]]
    scores = {task: float(score) for task, score in content["scores"].items()}
    if unknown := set(scores) - set(metrics):
        raise ValueError(f"{content['name']} has {', '.join(sorted(unknown))}, no task of the file")
    if not all(map(math.isfinite, scores.values())):
        raise ValueError(f"{content['name']} has a score that is no finite number")
    return Published(str(content["name"]), str(source["title"]), source["url"], scores, metrics)


def choose_published(models: Sequence[Published], names: Sequence[str]) -> list[Published]:
    """Return the models of these names, all for ``"all"``; letters' case does not count.

    Raises:
        OptionError: for a name that none of them has.
    """
    if any(name.lower() == ALL for name in names):
        return list(models)
    by_name = {model.name.lower(): model for model in models}
    for name in names:
        if name.lower() not in by_name:
            known = [model.name for model in models]
            raise OptionError(
                f"No scores of {name!r} are known as published; there are {', '.join(known)}, or "
                f"{ALL}.{nearest(name, known)}"
            )
    return list({name.lower(): by_name[name.lower()] for name in names}.values())
