"""``hear-eval embed``: the tasks' embeddings, to be predicted later."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear.commands.hear_eval.options import (
    SEVERAL_TASKS,
    EmbeddingsDir,
    EmptyClips,
    Model,
    ModelOptions,
    Module,
    parse_options,
)
from gram_hear.console import Device, Tasks, TasksDir, finish, names_in
from gram_hear.start import importing


def embed(
    context: typer.Context,
    module: Module,
    model: Model = "",
    model_options: ModelOptions = "{}",
    tasks_dir: TasksDir = Path("tasks"),
    task: Tasks = None,
    embeddings_dir: EmbeddingsDir = Path("embeddings"),
    empty_clips: EmptyClips = "error",
    device: Device = "auto",
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace embeddings that were made by another version or with other options.",
        ),
    ] = False,
) -> None:
    """Embed the clips of HEAR tasks with a module.

    The folder of each task's embeddings is printed. Give it to 'hear-eval predict'.

    \b
    Examples:
      hear-eval embed gram_hear --tasks-dir tasks --task esc50
      hear-eval embed gram_hear --model gram-tiny --device cuda -o embeddings
    """
    if context.args:
        raise typer.BadParameter(
            f"unexpected: {' '.join(context.args)}; one module is embedded, and {SEVERAL_TASKS}."
        )
    options = parse_options(model_options)
    with importing():
        from gram_hear.commands.hear_eval.tasks_run import (
            embed_tasks,
            load_module,
            warn_of_metadata,
        )
        from gram_hear.tasks import find_tasks
    folders = find_tasks(tasks_dir, names_in(task))
    loaded = load_module(module, model, options, device)
    embedded, failed = embed_tasks(
        folders, loaded, embeddings_dir, force, empty_clips, warn_of_metadata
    )
    for folder in embedded:
        typer.echo(folder)
    finish(failed)
