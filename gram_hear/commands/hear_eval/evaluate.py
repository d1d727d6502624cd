"""``hear-eval`` without a command: tasks embedded and predicted in one go."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear.commands.hear_eval.options import (
    FEWEST_STEPS,
    WHICH_MODULE,
    EmbeddingsDir,
    EmptyClips,
    Force,
    Grid,
    GridPoints,
    MinSteps,
    Model,
    ModelOptions,
    ProbeName,
    Seed,
    Shuffle,
    choose_probe,
    is_given,
    parse_options,
)
from gram_hear.console import Device, Tasks, TasksDir, Version, complete, finish, names_in
from gram_hear.start import importing


def evaluate(
    context: typer.Context,
    module: Annotated[
        str, typer.Option(help=WHICH_MODULE, autocompletion=complete("gram_hear"))
    ] = "",
    model: Model = "",
    model_options: ModelOptions = "{}",
    tasks_dir: TasksDir = Path("tasks"),
    task: Tasks = None,
    embeddings_dir: EmbeddingsDir = Path("embeddings"),
    probe: ProbeName = "shallow",
    grid: Grid = "default",
    grid_points: GridPoints = 8,
    seed: Seed = 42,
    shuffle: Shuffle = False,
    min_steps: MinSteps = FEWEST_STEPS,
    empty_clips: EmptyClips = "error",
    device: Device = "auto",
    force: Force = False,
    version: Version = False,
) -> None:
    """Evaluate an embedding module on HEAR tasks.

    The module embeds the clips of each task, small networks predict the labels from the embeddings,
    and a table of the scores is printed. Tasks that are done already are skipped.

    The commands below do parts of this. Type 'hear-eval COMMAND --help' to read about one.

    \b
    Examples:
      hear-eval --module gram_hear
      hear-eval --module gram_hear --tasks-dir tasks --task esc50,fsd50k
      hear-eval --module my_module --model weights.pt --probe knn
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if not module:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    options = parse_options(model_options)
    with importing():
        from gram_hear.commands.hear_eval import tasks_run
        from gram_hear.tasks import find_tasks
    chosen = choose_probe(context, probe, grid, grid_points, seed, shuffle, device)
    folders = find_tasks(tasks_dir, names_in(task))
    loaded = tasks_run.load_module(module, model, options, device)
    embedded, failed = tasks_run.embed_tasks(
        folders, loaded, embeddings_dir, force, empty_clips, chosen.check
    )
    failed += tasks_run.predict_tasks(embedded, chosen, force, min_steps)
    failed += tasks_run.show_results(embeddings_dir / loaded.folder_name)
    finish(failed)


def _refuse_options(context: typer.Context) -> None:
    """Refuse what stands before a command: it would count for nothing."""
    for name in context.params:
        if is_given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(
                f"{option} stands before the command {context.invoked_subcommand!r}; options of a "
                f"command come after it: hear-eval {context.invoked_subcommand} ... {option} ..."
            )
