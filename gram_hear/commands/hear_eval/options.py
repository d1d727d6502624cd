"""What the commands of ``hear-eval`` share: options, and what is checked before any work."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gram_hear.errors import GramError, OptionError
from gram_hear.jobs.writing import write_whole

if TYPE_CHECKING:
    from gram_hear.evaluation.predict.prediction import Probe as TaskProbe

SEVERAL_TASKS = "several tasks are given as --task a,b or --task a --task b"
TRACEBACK_LOG = "traceback.log"  # how the name of a file ends that holds other people's tracebacks
LOG = Path(f"hear-eval-{TRACEBACK_LOG}")  # of what fails before there is a folder of embeddings

Module = Annotated[str, typer.Argument(help="Name of a HEAR module, such as gram_hear.")]
Model = Annotated[
    str, typer.Option(help="What the module's load_model is given: a file or a name.")
]
ModelOptions = Annotated[
    str, typer.Option(help='Keywords of load_model as JSON, such as \'{"strategy": "mean"}\'.')
]
EmbeddingsDir = Annotated[Path, typer.Option(help="Folder of embeddings and scores.")]
Probe = Annotated[
    Literal["shallow", "knn"],
    typer.Option(
        help="What predicts: shallow (the protocol's predictors), or knn (the 10 nearest "
        "neighbours)."
    ),
]
Grid = Annotated[str, typer.Option(help="Grid of the predictors: default, fast or faster.")]
GridPoints = Annotated[int, typer.Option(help="How many points of the grid are tried.")]
Seed = Annotated[int, typer.Option(help="Seed of the predictors' weights and dropout.")]
Shuffle = Annotated[
    bool, typer.Option("--shuffle", help="Shuffle training examples, which the protocol does not.")
]
MinSteps = Annotated[
    int,
    typer.Option(
        min=0, help="Warn where predictors take fewer optimizer steps; 0 switches that off."
    ),
]
FEWEST_STEPS = 100  # the default of --min-steps
EmptyClips = Annotated[
    Literal["error", "skip", "zero"],
    typer.Option(
        help="What is done with clips without samples: error, skip (leave them out), or zero "
        "(embed silence)."
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Redo embeddings of another version or with other options, and predict all again.",
    ),
]


def parse_options(text: str) -> dict[str, Any]:
    """Return the keywords of ``load_model`` from JSON.

    Raises:
        OptionError: for what is no JSON object.
    """
    example = '\'{"strategy": "mean"}\''
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(
            f"--model-options {text!r} is not JSON ({error}); it must be an object, such as "
            f"{example}."
        ) from error
    if not isinstance(options, dict):
        raise OptionError(f"--model-options {text!r} must be a JSON object, such as {example}.")
    return options


def choose_probe(
    context: typer.Context,
    name: str,
    grid: str,
    grid_points: int,
    seed: int,
    shuffle: bool,
    device: str,
) -> "TaskProbe":
    """Return a probe; options that it has no use for must not be given.

    Raises:
        OptionError: for values that cannot be.
        typer.BadParameter: for options of another probe.
    """
    from gram_hear.devices import find_device
    from gram_hear.evaluation.predict.knn import NeighbourProbe
    from gram_hear.evaluation.predict.shallow import ShallowProbe

    found = str(find_device(device))
    if name == "shallow":
        return ShallowProbe(grid, grid_points, seed, shuffle, found)
    for parameter in ("grid", "grid_points", "seed", "shuffle", "min_steps"):
        if is_given(context, parameter):
            raise typer.BadParameter(
                f"--{parameter.replace('_', '-')} is for the shallow predictors; nearest "
                "neighbours have nothing to train. Leave it out, or use --probe shallow."
            )
    return NeighbourProbe(found)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def log_traceback(text: str, path: Path) -> str:
    """Write a traceback to a file; return a sentence that names it, "" where there is none."""
    if not text:
        return ""
    write = partial(Path.write_text, data=text, encoding="utf-8", errors="backslashreplace")
    try:
        write_whole(path, write)
    except (OSError, GramError) as error:
        return f" The traceback cannot be written to {path}: {error}"
    return f" The traceback is in {path}."
