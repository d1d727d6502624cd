"""What models are called in tables and pictures: as a person would write them."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gram_hear.errors import TaskError
from gram_hear.evaluation.compare.comparison import Comparison
from gram_hear.evaluation.embed.embeddings import DONE
from gram_hear.tasks import read_json


def shown_names(comparison: Comparison) -> dict[str, str]:
    """Return what each model of a comparison is called where people read it.

    A model's own name is that of its folder, such as ``gram_hear-model=gram-tiny-strategy=mean``.
    It is shown as ``gram-tiny (mean)``, by what its embeddings say of it. A folder that was renamed
    keeps its name. Models that would be shown alike are told apart by the first digits of their
    weights' hash, or else by their own names.

    Returns:
        The shown names, all different, by the models' own names.
    """
    folders = {model: score.runs[0].folder for (model, _), score in comparison.scores.items()}
    names = {model: _candidates(model, folders[model]) for model in comparison.models}
    while True:
        shown = {model: candidates[0] for model, candidates in names.items()}
        alike = [
            model
            for model, name in shown.items()
            if list(shown.values()).count(name) > 1 and len(names[model]) > 1
        ]
        if not alike:
            return shown
        for model in alike:
            del names[model][0]


def _candidates(model: str, task_folder: Path) -> list[str]:
    """Return what a model may be called, the shortest first; its own name last."""
    folder = task_folder.resolve().parent.name
    predicted = model[len(folder) :].strip(" ()")  # options of prediction, where they differ
    made = _made_by(task_folder)
    options = made.get("options") or {}
    words = [_word(key, value) for key, value in options.items()] if options else []
    brackets = ", ".join([*words, predicted] if predicted else words)
    rest = "".join(_plain(f"{key}{value}") for key, value in options.items())
    module, path = str(made.get("module") or ""), str(made.get("model") or "")
    found = []
    for called in (Path(path).name, Path(path).stem) if path else (module,):
        head = _plain(f"{module}model{called}") if path else _plain(module)
        if called and (match := re.fullmatch(f"{head}([0-9a-f]{{8}})?{rest}", _plain(folder))):
            hashes = ["", f"-{match[1]}"] if match[1] else [""]
            found = [f"{called}{each}{f' ({brackets})' if brackets else ''}" for each in hashes]
            break
    return [*dict.fromkeys([*found, model])]


def _made_by(task_folder: Path) -> Mapping[str, Any]:
    """Return what a task's embeddings say of their module; nothing where they do not."""
    try:
        made = read_json(task_folder / DONE) if (task_folder / DONE).is_file() else {}
    except TaskError:
        return {}
    if not isinstance(made, dict) or not isinstance(made.get("options") or {}, dict):
        return {}
    return made


def _word(key: str, value: object) -> str:
    """Return an option of a model in words: ``mean`` of the strategy, ``layer 6``."""
    return str(value) if key == "strategy" else f"{key.replace('_', ' ')} {value}"


def _plain(text: str) -> str:
    """Return letters and digits in lower case, which are what a folder's name keeps of a text."""
    kept = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "", kept.lower())
