"""The ``hear-eval`` command: thin over the evaluation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from typer.core import TyperGroup

from gram_hear.commands.hear_eval.fetch import fetch
from gram_hear.commands.hear_eval.make_task import make_task
from gram_hear.commands.hear_eval.parts import (
    TRACEBACK_LOG,
    finish,
    log_traceback,
    split_names,
)
from gram_hear.commands.hear_eval.report import report
from gram_hear.console import AsJson, Version, print_table, progress_bar, run, say
from gram_hear.devices import find_device
from gram_hear.errors import GramError, ModuleError, OptionError
from gram_hear.evaluation.check import check_module
from gram_hear.evaluation.compare.results import (
    RESULTS_FILE,
    columns_of,
    heading_of,
    notes_of,
    read_results,
    rows_of,
    write_results,
)
from gram_hear.evaluation.embed.embed_task import EmptyClips, embed_task, is_embedded
from gram_hear.evaluation.embed.hear_module import HearModule, load_model, traceback_of
from gram_hear.evaluation.predict.knn import NeighbourProbe
from gram_hear.evaluation.predict.prediction import Probe as TaskProbe
from gram_hear.evaluation.predict.prediction import is_predicted, predict_task
from gram_hear.evaluation.predict.shallow import FEWEST_STEPS, ShallowProbe
from gram_hear.tasks import METADATA, Task, describe_tasks, find_tasks, read_task

LOG = Path(f"hear-eval-{TRACEBACK_LOG}")  # of what fails before there is a folder of embeddings
SEVERAL_TASKS = "several tasks are given as --task a,b or --task a --task b"


class _Commands(TyperGroup):
    """The commands; a word that is none of them may have been meant for ``--task``."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; a usage error where tasks were given before what is none."""
        command = super().get_command(ctx, cmd_name)
        if command is None and ctx.params.get("task"):
            raise typer.BadParameter(f"there is no command {cmd_name!r}; {SEVERAL_TASKS}.")
        return command


app = typer.Typer(
    name="hear-eval",
    help="The HEAR benchmark, for any embedding module that offers the HEAR API.",
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ModelFile = Annotated[str, typer.Option("--model", help="Goes to load_model: a file or a name.")]
ModelOptions = Annotated[
    str, typer.Option(help='Keywords of load_model as JSON, such as \'{"strategy": "mean"}\'.')
]
TasksDir = Annotated[Path, typer.Option(help="The folder that holds the task directories.")]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        "--task", help="A task, or several: --task a,b or --task a --task b. Default: all."
    ),
]
EmbeddingsDir = Annotated[Path, typer.Option(help="Where embeddings and scores are kept.")]
Grid = Annotated[str, typer.Option(help="default, fast or faster.")]
GridPoints = Annotated[int, typer.Option(help="How many points of the grid are tried.")]
MinSteps = Annotated[
    int,
    typer.Option(
        min=0, help="Warn where predictors take fewer optimizer steps; 0 switches that off."
    ),
]
EmptyClipsOption = Annotated[
    EmptyClips,
    typer.Option(
        "--empty-clips",
        help="Of clips without samples: error, skip (leave them out), or zero (embed silence).",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the predictors' weights and dropout.")]
Shuffle = Annotated[
    bool, typer.Option("--shuffle", help="Shuffle training rows, which the protocol does not.")
]
Probe = Annotated[
    Literal["shallow", "knn"],
    typer.Option(help="shallow, the protocol's predictors, or knn, the 10 nearest neighbours."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace what another version or plan made; predict again what is done."
    ),
]


def main() -> None:
    """Run ``hear-eval``."""
    run(app)


@app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    module: Annotated[str, typer.Option(help="A HEAR module, such as gram_hear.")] = "",
    model: ModelFile = "",
    model_options: ModelOptions = "{}",
    tasks_dir: TasksDir = Path("tasks"),
    task: TaskNames = None,
    embeddings_dir: EmbeddingsDir = Path("embeddings"),
    probe: Probe = "shallow",
    grid: Grid = "default",
    grid_points: GridPoints = 8,
    seed: Seed = 42,
    shuffle: Shuffle = False,
    min_steps: MinSteps = FEWEST_STEPS,
    empty_clips: EmptyClipsOption = "error",
    device: Device = "auto",
    force: Force = False,
    version: Version = False,
) -> None:
    """Embed the tasks with a module, predict them, and print a table of the scores.

    What is done already is skipped.

    Example: hear-eval --module gram_hear --tasks-dir tasks --task esc50
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if not module:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    chosen = _choose_probe(context, probe, grid, grid_points, seed, shuffle, device)
    tasks = find_tasks(tasks_dir, split_names(task))
    loaded = _load(module, model, model_options, device)
    folders, failed = _embed_tasks(tasks, loaded, embeddings_dir, force, empty_clips, chosen.check)
    failed += _predict_tasks(folders, chosen, force, min_steps)
    failed += _show_results(embeddings_dir / loaded.folder_name)
    finish(failed)


@app.command(context_settings={"allow_extra_args": True})
def embed(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="A HEAR module, such as gram_hear.")],
    model: ModelFile = "",
    model_options: ModelOptions = "{}",
    tasks_dir: TasksDir = Path("tasks"),
    task: TaskNames = None,
    embeddings_dir: EmbeddingsDir = Path("embeddings"),
    empty_clips: EmptyClipsOption = "error",
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Embed tasks with a module; print the folder of each.

    Example: hear-eval embed gram_hear --tasks-dir tasks --task esc50
    """
    if context.args:
        raise typer.BadParameter(
            f"unexpected: {' '.join(context.args)}; one module is embedded, and {SEVERAL_TASKS}."
        )
    tasks = find_tasks(tasks_dir, split_names(task))
    loaded = _load(module, model, model_options, device)
    folders, failed = _embed_tasks(
        tasks, loaded, embeddings_dir, force, empty_clips, _warn_of_metadata
    )
    for folder in folders:
        typer.echo(folder)
    finish(failed)


@app.command()
def predict(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(help="EMBEDDINGS/MODULE/TASK ..., or EMBEDDINGS/MODULE for all its tasks."),
    ],
    probe: Probe = "shallow",
    grid: Grid = "default",
    grid_points: GridPoints = 8,
    seed: Seed = 42,
    shuffle: Shuffle = False,
    min_steps: MinSteps = FEWEST_STEPS,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Predict tasks from their embeddings, made here or by the original kit.

    Example: hear-eval predict embeddings/gram_hear/esc50-v2.0.0-full
    """
    chosen = _choose_probe(context, probe, grid, grid_points, seed, shuffle, device)
    tasks = find_embeddings(folders)
    failed = _predict_tasks(tasks, chosen, force, min_steps)
    for parent in dict.fromkeys(task.resolve().parent for task in tasks):
        failed += _show_results(parent)
    finish(failed)


@app.command()
def check(
    module: Annotated[str, typer.Argument(help="A HEAR module, such as gram_hear.")],
    model: ModelFile = "",
    model_options: ModelOptions = "{}",
    device: Device = "cpu",
) -> None:
    """Check that a module offers the HEAR API, and explain what it does not.

    Example: hear-eval check gram_hear --model gram-tiny-untrained
    """
    findings = check_module(module, model, parse_options(model_options), device)
    for finding in findings:
        typer.echo(f"{finding.level}: {finding.text}")
    tracebacks = dict.fromkeys(finding.traceback for finding in findings if finding.traceback)
    if logged := log_traceback("\n".join(tracebacks), LOG):
        say(logged.strip())
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def tasks(
    tasks_dir: Annotated[Path, typer.Argument(help="The folder that holds the tasks.")],
    as_json: AsJson = False,
) -> None:
    """Show what a folder of tasks holds, in which sample rates, and what is missing.

    Example: hear-eval tasks tasks/
    """
    described = describe_tasks(tasks_dir)
    if as_json:
        typer.echo(json.dumps(described, indent=2))
    else:
        _show_tasks(described)
    if broken := [each["name"] for each in described if each["faults"]]:
        say(f"{len(broken)} broken: {', '.join(broken)}")
        raise typer.Exit(1)


app.command()(fetch)
app.command(name="make-task")(make_task)
app.command()(report)


def _show_tasks(described: Sequence[dict[str, Any]]) -> None:
    """Print what :func:`gram_hear.tasks.describe_tasks` returns, a broken task's parts left out."""
    table = Table("task", "type", "metrics", "splits", "rates", "missing or wrong")
    for each in described:
        table.add_row(
            each["name"],
            each.get("type") or "",
            ", ".join(each.get("metrics") or ()),
            ", ".join(f"{name} {count}" for name, count in (each.get("splits") or {}).items()),
            ", ".join(
                f"{rate} (made)" if rate in each["made"] else str(rate)
                for rate in each.get("rates") or ()
            ),
            "; ".join([*_missing(each), *each["faults"]]),
        )
    print_table(table)


def _missing(described: dict[str, Any]) -> list[str]:
    """Say how many files each rate lacks; those of a rate that was made are made when needed."""
    return [
        f"{rate}: {files} {'file' if files == 1 else 'files'} missing"
        for rate, files in (described.get("missing") or {}).items()
        if files and rate not in described["made"]
    ]


# --- parts ----------------------------------------------------------------------------------


def parse_options(text: str) -> dict[str, Any]:
    """Return the keywords of ``load_model`` from JSON.

    Raises:
        OptionError: for what is no JSON object.
    """
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(
            f"--model-options {text!r} is not JSON ({error}); it must be an object, such as "
            '\'{"strategy": "mean"}\'.'
        ) from error
    if not isinstance(options, dict):
        raise OptionError(
            f'--model-options {text!r} must be a JSON object, such as \'{{"strategy": "mean"}}\'.'
        )
    return options


def find_embeddings(folders: Sequence[Path]) -> list[Path]:
    """Return the embeddings of tasks: the folders given, or, of a module's folder, those in it."""
    found = []
    for folder in folders:
        inside = [] if (folder / METADATA).is_file() else sorted(folder.glob(f"*/{METADATA}"))
        found += [path.parent for path in inside] or [folder]
    # The name of "." is wanted in messages.
    return [each if each.name not in ("", "..") else each.resolve() for each in found]


def _refuse_options(context: typer.Context) -> None:
    """Refuse what stands before a command: it would count for nothing."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(
                f"{option} stands before the command {context.invoked_subcommand!r}; options of a "
                f"command come after it: hear-eval {context.invoked_subcommand} ... {option} ..."
            )


def _warn_of_metadata(task: Task) -> None:
    """Warn of what would keep a task from being predicted once it is embedded."""
    try:
        ShallowProbe().check(task)
    except GramError as error:
        say(f"warning: {task.name} can be embedded, but not be predicted: {error}")


def _load(module: str, model: str, model_options: str, device: str) -> HearModule:
    """Load a module; the traceback of one that fails is kept."""
    options = parse_options(model_options)
    try:
        return load_model(module, model, options, device=device)
    except ModuleError as error:
        raise ModuleError(f"{error}{log_traceback(traceback_of(error), LOG)}") from error


def _embed_tasks(
    folders: Sequence[Path],
    module: HearModule,
    embeddings_dir: Path,
    force: bool,
    empty_clips: EmptyClips,
    check: Callable[[Task], object],
) -> tuple[list[Path], list[str]]:
    """Embed tasks that pass a check, under a progress bar.

    Returns:
        The folders made, and the names of the tasks that failed.
    """
    made, failed = [], []
    output = embeddings_dir / module.folder_name
    for folder in folders:
        log = output / f"{folder.name}-{TRACEBACK_LOG}"
        try:
            task = read_task(folder)
            check(task)
            if is_embedded(task, module, output, force, empty_clips):
                say(f"{task.name} is embedded already.")
                made.append(output / task.name)
                continue
            with progress_bar(f"embed {task.name}", "files") as progress:
                made.append(
                    embed_task(
                        task,
                        module,
                        output,
                        progress=progress,
                        force=force,
                        empty_clips=empty_clips,
                    )
                )
            log.unlink(missing_ok=True)  # of a run that failed
        except GramError as error:
            say(f"failed: {folder.name}: {error}{log_traceback(traceback_of(error), log)}")
            failed.append(folder.name)
    return made, failed


def _choose_probe(
    context: typer.Context,
    name: str,
    grid: str,
    grid_points: int,
    seed: int,
    shuffle: bool,
    device: str,
) -> TaskProbe:
    """Return a probe; options that it has no use for must not be given."""
    found = str(find_device(device))
    if name == "shallow":
        return ShallowProbe(grid, grid_points, seed, shuffle, found)
    for parameter in ("grid", "grid_points", "seed", "shuffle", "min_steps"):
        source = context.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"--{parameter.replace('_', '-')} is for the shallow predictors; nearest "
                "neighbours have nothing to train. Leave it out, or use --probe shallow."
            )
    return NeighbourProbe(found)


def _tell_steps(folder: Path, probe: ShallowProbe, min_steps: int) -> None:
    """Say how many optimizer steps a predictor takes, and warn where they are few."""
    task = read_task(folder)
    steps = probe.optimizer_steps(task)
    said = f"{task.name}: a predictor takes at most {steps} optimizer steps"
    if steps >= min_steps:
        say(f"{said}.")
    else:
        say(
            f"warning: {said}, fewer than {min_steps}: it is undertrained, and its score says "
            "little about the embeddings. Take --grid default, or give the task a smaller "
            "batch_size (task_specific_param_grid). --min-steps moves this limit."
        )


def _predict_tasks(
    folders: Sequence[Path], probe: TaskProbe, force: bool, min_steps: int
) -> list[str]:
    """Predict tasks under a progress bar; return the names of those that failed."""
    failed = []
    for folder in folders:
        try:
            if is_predicted(folder, probe, force):
                say(f"{folder.name} is predicted already.")
                continue
            if isinstance(probe, ShallowProbe):
                _tell_steps(folder, probe, min_steps)
            with progress_bar(f"predict {folder.name}", "grid points and folds") as progress:
                predict_task(folder, probe, progress)
        except GramError as error:
            say(f"failed: {folder.name}: {error}")
            failed.append(folder.name)
    return failed


def _show_results(folder: Path) -> list[str]:
    """Print and write the table of a module's results, where there are any.

    Returns:
        The name of what failed: the file, where it cannot be written.
    """
    results = read_results(folder)
    if not results:
        return []
    failed = []
    try:
        write_results(folder, folder.name, results)
    except GramError as error:
        say(f"failed: {error}")
        failed.append(RESULTS_FILE)
    typer.echo(heading_of(results))
    table = Table(*columns_of(results))
    for row in rows_of(results):
        table.add_row(*row)
    print_table(table)
    for note in notes_of(results):
        typer.echo(note)
    return failed
