"""The ``hear-eval`` command: thin over the evaluation."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gram_hear.console import messages, print_table, run, say
from gram_hear.errors import GramError, OptionError
from gram_hear.evaluation.check import check_module
from gram_hear.evaluation.embeddings import embed_task
from gram_hear.evaluation.module import HearModule, find_device, load_model
from gram_hear.evaluation.prediction import Plan, is_predicted, predict_task
from gram_hear.evaluation.report import COLUMNS, rows_of, write_results
from gram_hear.tasks import describe_tasks, find_tasks, read_task

app = typer.Typer(
    name="hear-eval",
    help="The HEAR benchmark, for any embedding module that offers the HEAR API.",
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
    list[str] | None, typer.Option("--task", help="A task; repeat it for more. Default: all.")
]
EmbeddingsDir = Annotated[Path, typer.Option(help="Where embeddings and scores are kept.")]
Grid = Annotated[str, typer.Option(help="default, fast or faster.")]
GridPoints = Annotated[int, typer.Option(help="How many points of the grid are tried.")]
Seed = Annotated[int, typer.Option(help="Of the predictors' weights and dropout.")]
Shuffle = Annotated[
    bool, typer.Option("--shuffle", help="Shuffle training rows, which the protocol does not.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Force = Annotated[bool, typer.Option("--force", help="Predict again what is predicted.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """Run ``hear-eval``."""
    run(app)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"gram-hear {installed_version('gram-hear')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    module: Annotated[str, typer.Option(help="A HEAR module, such as gram_hear.")] = "",
    model: ModelFile = "",
    model_options: ModelOptions = "{}",
    tasks_dir: TasksDir = Path("tasks"),
    task: TaskNames = None,
    embeddings_dir: EmbeddingsDir = Path("embeddings"),
    grid: Grid = "default",
    grid_points: GridPoints = 8,
    seed: Seed = 42,
    shuffle: Shuffle = False,
    device: Device = "auto",
    force: Force = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Embed the tasks with a module, predict them, and print a table of the scores.

    What is done already is skipped.

    Example: hear-eval --module gram_hear --tasks-dir tasks --task esc50
    """
    if context.invoked_subcommand is not None:
        return
    if not module:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    plan = make_plan(grid, grid_points, seed, shuffle, device)
    tasks = find_tasks(tasks_dir, task)
    loaded = load_model(module, model, parse_options(model_options), device=device)
    folders, failed = _embed_tasks(tasks, loaded, embeddings_dir)
    failed += _predict_tasks(folders, plan, force)
    _show_results(embeddings_dir / loaded.folder_name)
    _finish(failed)


@app.command()
def embed(
    module: Annotated[str, typer.Argument(help="A HEAR module, such as gram_hear.")],
    model: ModelFile = "",
    model_options: ModelOptions = "{}",
    tasks_dir: TasksDir = Path("tasks"),
    task: TaskNames = None,
    embeddings_dir: EmbeddingsDir = Path("embeddings"),
    device: Device = "auto",
) -> None:
    """Embed tasks with a module; print the folder of each.

    Example: hear-eval embed gram_hear --tasks-dir tasks --task esc50
    """
    tasks = find_tasks(tasks_dir, task)
    loaded = load_model(module, model, parse_options(model_options), device=device)
    folders, failed = _embed_tasks(tasks, loaded, embeddings_dir)
    for folder in folders:
        typer.echo(folder)
    _finish(failed)


@app.command()
def predict(
    folders: Annotated[
        list[Path], typer.Argument(help="Embeddings of tasks: EMBEDDINGS/MODULE/TASK ...")
    ],
    grid: Grid = "default",
    grid_points: GridPoints = 8,
    seed: Seed = 42,
    shuffle: Shuffle = False,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Predict tasks from their embeddings, made here or by the original kit.

    Example: hear-eval predict embeddings/gram_hear/esc50-v2.0.0-full
    """
    failed = _predict_tasks(folders, make_plan(grid, grid_points, seed, shuffle, device), force)
    for parent in dict.fromkeys(folder.resolve().parent for folder in folders):
        _show_results(parent)
    _finish(failed)


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
        return
    table = Table("task", "type", "metrics", "splits", "rates", "missing or wrong")
    for each in described:
        table.add_row(
            each["name"],
            each.get("type") or "",
            ", ".join(each.get("metrics") or ()),
            ", ".join(f"{name} {count}" for name, count in (each.get("splits") or {}).items()),
            ", ".join(str(rate) for rate in each.get("rates") or ()),
            "; ".join(each.get("faults") or ()),
        )
    print_table(table)


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


def make_plan(grid: str, grid_points: int, seed: int, shuffle: bool, device: str) -> Plan:
    """Return a plan, checked before any work is done."""
    plan = Plan(grid, grid_points, seed, shuffle, str(find_device(device)))
    plan.check()
    return plan


def _embed_tasks(
    folders: Sequence[Path], module: HearModule, embeddings_dir: Path
) -> tuple[list[Path], list[str]]:
    """Embed tasks under a progress bar; return the folders made, and the errors."""
    made, failed = [], []
    output = embeddings_dir / module.folder_name
    for folder in folders:
        try:
            task = read_task(folder)
            with _progress(f"embed {task.name}", "files") as progress:
                made.append(embed_task(task, module, output, progress=progress))
        except GramError as error:
            say(f"failed: {folder.name}: {error}")
            failed.append(folder.name)
    return made, failed


def _predict_tasks(folders: Sequence[Path], plan: Plan, force: bool) -> list[str]:
    """Predict tasks under a progress bar; return the names of those that failed."""
    failed = []
    for folder in folders:
        try:
            if is_predicted(folder, plan, force):
                say(f"{folder.name} is predicted already.")
                continue
            with _progress(f"predict {folder.name}", "grid points and folds") as progress:
                predict_task(folder, plan, progress)
        except GramError as error:
            say(f"failed: {folder.name}: {error}")
            failed.append(folder.name)
    return failed


@contextmanager
def _progress(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr; it is moved by a function (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_results(folder: Path) -> None:
    """Write and print the table of a module's results, where there are any."""
    results = write_results(folder, folder.name)
    if not results:
        return
    table = Table(*COLUMNS)
    for row in rows_of(results):
        table.add_row(*row)
    print_table(table)


def _finish(failed: Sequence[str]) -> None:
    if failed:
        say(f"{len(failed)} failed: {', '.join(failed)}")
        raise typer.Exit(1)
