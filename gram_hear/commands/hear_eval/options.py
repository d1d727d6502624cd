"""What the commands of ``hear-eval`` share: options, and what is checked before any work."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gram_hear.console import complete
from gram_hear.errors import GramError, OptionError
from gram_hear.jobs.writing import write_whole

if TYPE_CHECKING:
    from gram_hear.evaluation.predict.prediction import Probe

SEVERAL_TASKS = "several tasks are given as --task a,b or --task a --task b"
TRACEBACK_LOG = "traceback.log"  # how the name of a file ends that holds other people's tracebacks
LOG = Path(f"hear-eval-{TRACEBACK_LOG}")  # of what fails before there is a folder of embeddings

WHICH_MODULE = (
    "Name a Python module that offers the HEAR API, such as gram_hear. It is imported, from the "
    "current folder too."
)

Module = Annotated[str, typer.Argument(help=WHICH_MODULE, autocompletion=complete("gram_hear"))]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Hand this to the module's load_model: a checkpoint file, or a name that the module "
        "knows.",
        show_default="the module's own",
    ),
]
ModelOptions = Annotated[
    str,
    typer.Option(
        help="Hand these options to the module's load_model too. Write them as JSON, such as "
        '\'{"strategy": "mean"}\'.'
    ),
]
EmbeddingsDir = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        "--embeddings-dir",
        help="Write the embeddings and scores into this folder.",
    ),
]
ProbeName = Annotated[
    Literal["shallow", "knn"],
    typer.Option(
        help="Predict the labels with the shallow networks of the HEAR protocol (shallow), or by a "
        "vote of the 10 nearest neighbours (knn)."
    ),
]
Grid = Annotated[
    Literal["default", "fast", "faster"],
    typer.Option(
        help="Search this grid of hyperparameters. default is that of the HEAR protocol. fast and "
        "faster train for fewer epochs."
    ),
]
GridPoints = Annotated[int, typer.Option(help="Try this many points of the grid.")]
Seed = Annotated[
    int, typer.Option(help="Use this seed for the first weights and the dropout of predictors.")
]
Shuffle = Annotated[
    bool,
    typer.Option(
        "--shuffle", help="Shuffle the training examples. The HEAR protocol does not do this."
    ),
]
MinSteps = Annotated[
    int,
    typer.Option(
        min=0,
        help="Warn if a predictor is trained for fewer optimizer steps than this. With 0, there "
        "are no warnings.",
    ),
]
FEWEST_STEPS = 100  # with fewer, scores say little (docs/decisions.md)
EmptyClips = Annotated[
    Literal["error", "skip", "zero"],
    typer.Option(
        help="If a clip has no samples, let the task fail (error), leave the clip out (skip), or "
        "embed silence (zero)."
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace embeddings that were made by another version or with other options, and "
        "predict tasks again that are predicted already.",
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
) -> "Probe":
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
