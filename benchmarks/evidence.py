"""What a model is worth, measured by the project's own tools: docs/evidence/results.md.

    python benchmarks/evidence.py RECORDINGS MODEL [MODEL ...] --rirs RIRS

RECORDINGS is a folder of {digit}_{speaker}_{index}.wav (the Free Spoken Digit Dataset), RIRS a set
of binaural RIRs with training, validation and test rooms (gram-hear rirs), MODEL what load_model
takes. The models are set beside the first one's network untrained and a log-mel baseline
(logmel_module.py).

Made in --work: HEAR tasks (digits by held-out speaker, speakers, kinds of synthetic sound), their
versions in the test rooms, a localisation task whose splits share no room and no speaker,
embeddings and predictions. What is there is not made again: the same command goes on after an
interruption. Replaced in --results: a block of results.md, the rest of which stays, and
results.json. Printed: the table of docs/reference/models.md.
"""

import argparse
import dataclasses
import hashlib
import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence_report import LOCALISATION, NATURAL, describe, replace_block, short_table
from evidence_scores import (
    AHEAD,
    Contender,
    Embedding,
    Prediction,
    accuracies,
    always_ahead,
    averages,
    directions_of,
    embed,
    linear_probe,
    predict,
)
from evidence_tasks import (
    DIGITS,
    DIRECTIONS,
    DRY,
    KINDS,
    Sizes,
    make_directions,
    make_dry_tasks,
    make_natural_tasks,
)

from gram_hear.checkpoints.store import load_checkpoint, save_model
from gram_hear.console import progress_bar, say
from gram_hear.errors import GramError, OptionError
from gram_hear.evaluation.embed.hear_module import load_model
from gram_hear.evaluation.predict.shallow import ShallowProbe
from gram_hear.jobs.workers import cores, work
from gram_hear.jobs.writing import write_json, write_text
from gram_hear.model import GramModel
from gram_hear.nn.initialise import initialise

EVALUATED = (*DRY, *(f"{name}{NATURAL}" for name in DRY), DIRECTIONS, f"{KINDS}{LOCALISATION}")
BLOCK = "evidence"


def read_command(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recordings", type=Path)
    parser.add_argument("models", nargs="+", metavar="model")
    parser.add_argument("--rirs", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("evidence"))
    parser.add_argument("--results", type=Path, default=Path("docs/evidence"))
    parser.add_argument("--model-options", type=json.loads, default={}, help="JSON, as hear-eval's")
    parser.add_argument("--grid", default="faster")
    parser.add_argument("--grid-points", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--jobs", type=int, default=cores())
    for size in dataclasses.fields(Sizes):
        parser.add_argument(f"--{size.name}", type=int, default=size.default)
    return parser.parse_args(arguments)


# --- who is compared ------------------------------------------------------------------------


def contenders_of(given: argparse.Namespace) -> list[Contender]:
    """Return the models, the first one's network untrained, and the baseline."""
    options = tuple(given.model_options.items())
    titles = [_title(model) for model in given.models]
    if len(set(titles)) < len(titles):
        raise OptionError(f"Two models are called {titles[0]}; rename one of the files.")
    untrained = save_untrained(given.models[0], given.work)
    return [
        *(
            Contender(title, "gram_hear", model, options)
            for title, model in zip(titles, given.models, strict=True)
        ),
        Contender("untrained", "gram_hear", str(untrained), options),
        Contender("log-mel", "logmel_module"),
    ]


def _title(model: str) -> str:
    return Path(model).stem if Path(model).exists() else model


def save_untrained(model: str, folder: Path) -> Path:
    """Save the encoder of a model as training begins with it, of seed 0; return the file.

    It is named by its configuration and kept: the order of the words in a safetensors file's
    header, and so the file's hash, is not the same every time.
    """
    network = GramModel(dataclasses.replace(load_checkpoint(model).config, decoder=None))
    initialise(network, 0)
    digest = hashlib.sha256(network.config.to_json().encode()).hexdigest()[:8]
    path = folder / f"untrained-{digest}.safetensors"
    if not path.exists():
        save_model(network, path)
    return path


# --- the work -------------------------------------------------------------------------------


def make_tasks(given: argparse.Namespace) -> Path:
    """Make all tasks below the folder of work; return where they are."""
    tasks = given.work / "tasks"
    sizes = sizes_of(given)
    make_dry_tasks(tasks, given.recordings, sizes)
    say("The dry tasks are made.")
    make_directions(tasks / DIRECTIONS, given.recordings, given.rirs, sizes, given.jobs)
    say("The directions are made.")
    make_natural_tasks(tasks, tasks, given.rirs, given.jobs)
    say("Their versions in scenes are made.")
    return tasks


def sizes_of(given: argparse.Namespace) -> Sizes:
    """Return how much of everything is used."""
    return Sizes(**{size.name: getattr(given, size.name) for size in dataclasses.fields(Sizes)})


def embed_all(
    contenders: Sequence[Contender], tasks: Path, given: argparse.Namespace
) -> dict[str, Path]:
    """Embed all tasks with all contenders; return each one's folder of embeddings, by title."""
    pieces = [
        Embedding(who, tasks / name, given.work / "embeddings")
        for who in contenders
        for name in EVALUATED
    ]
    folders = {}
    with progress_bar("embed", "tasks") as progress:
        for done, (piece, folder) in enumerate(work(embed, pieces, given.jobs), 1):
            folders[piece.contender.title] = folder.parent
            progress(done, len(pieces))
    return folders


def predict_all(folders: Mapping[str, Path], given: argparse.Namespace) -> dict[str, list[Path]]:
    """Predict all embeddings with all seeds; return each one's folders of scores, by title."""
    scored: dict[str, list[Path]] = {title: [] for title in folders}
    pieces = []
    for seed in given.seeds:
        probe = ShallowProbe(given.grid, given.grid_points, seed)
        place = given.work / "predictions" / f"{given.grid}-{given.grid_points}-seed{seed}"
        for title, folder in folders.items():
            scored[title].append(place / folder.name)
            pieces += [
                Prediction(folder / name, place / folder.name / name, probe) for name in EVALUATED
            ]
    with progress_bar("predict", "tasks") as progress:
        for done, _ in enumerate(work(predict, pieces, given.jobs), 1):
            progress(done, len(pieces))
    return scored


def measure(scored: Mapping[str, Sequence[Path]], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return accuracies, their averages, the linear probe and the errors of directions."""
    accuracy = {title: accuracies(seeds) for title, seeds in scored.items()}
    localisation: dict[str, dict[str, Any]] = {}
    for task in (DIRECTIONS, f"{KINDS}{LOCALISATION}"):
        by_title = {
            title: directions_of([seed / task for seed in seeds]) for title, seeds in scored.items()
        }
        first = next(iter(scored.values()))[0]
        localisation[task] = {**by_title, AHEAD: always_ahead(first / task)}
    return {
        "contenders": list(scored),
        "accuracy": accuracy,
        "averages": {title: averages(each, DRY, NATURAL) for title, each in accuracy.items()},
        "probe": {
            title: {name: linear_probe(folder / name) for name in (DIGITS, f"{DIGITS}{NATURAL}")}
            for title, folder in folders.items()
        },
        "localisation": localisation,
    }


# --- the results ----------------------------------------------------------------------------


def command_of(given: argparse.Namespace) -> str:
    """Return the command that computes this again, with names in place of paths."""
    models = [_title(model) for model in given.models]
    words = ["python benchmarks/evidence.py recordings", *models, "--rirs rirs"]
    defaults = vars(read_command(["recordings", "model", "--rirs", "rirs"]))
    for name in (
        "grid",
        "grid_points",
        "seeds",
        *(each.name for each in dataclasses.fields(Sizes)),
    ):
        value = getattr(given, name)
        if value != defaults[name]:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{name.replace('_', '-')} {text}")
    if given.model_options:
        words.append(f"--model-options '{json.dumps(given.model_options)}'")
    return " ".join(words)


def settings_of(given: argparse.Namespace, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Return what the results depend on."""
    weights = {
        who.title: load_model(who.module, who.model, dict(who.options), device="cpu").weights
        for who in contenders
        if who.model
    }
    return {
        "command": command_of(given),
        "weights": weights,
        "options": given.model_options,
        "grid": given.grid,
        "grid_points": given.grid_points,
        "seeds": given.seeds,
        "sizes": dataclasses.asdict(sizes_of(given)),
    }


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Replace the block of results.md, and results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "results.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Results\n"
    try:
        made = replace_block(text, BLOCK, f"## The scores\n\n{describe(results)}")
    except ValueError as error:
        raise OptionError(f"{page} cannot be brought up to date: {error}") from error
    write_json(folder / "results.json", {BLOCK: results})
    write_text(page, made)


def collect(given: argparse.Namespace) -> dict[str, Any]:
    """Do all that is left to do, and return the results."""
    (given.work / "tasks").mkdir(parents=True, exist_ok=True)
    contenders = contenders_of(given)
    settings = settings_of(given, contenders)
    tasks = make_tasks(given)
    folders = embed_all(contenders, tasks, given)
    scored = predict_all(folders, given)
    order = [who.title for who in contenders]  # pieces of work end in any order
    scored = {title: scored[title] for title in order}
    return {**settings, **measure(scored, {title: folders[title] for title in order})}


def _cpu_minutes() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) / 60


def main() -> None:
    given = read_command()
    try:
        results = collect(given)
        write_results(given.results, results)
    except GramError as error:
        say(f"error: {error}")
        sys.exit(1)
    print(short_table(results))
    say(f"{_cpu_minutes():.1f} minutes of CPU time; the results are in {given.results}.")


if __name__ == "__main__":
    main()
