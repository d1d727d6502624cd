"""``hear-eval predict``: scores from embeddings on disk."""

from pathlib import Path
from typing import Annotated

import typer

from gram_hear.commands.hear_eval.options import (
    FEWEST_STEPS,
    Grid,
    GridPoints,
    MinSteps,
    ProbeName,
    Seed,
    Shuffle,
    choose_probe,
)
from gram_hear.console import Device, finish
from gram_hear.start import importing


def predict(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Give folders of embeddings: EMBEDDINGS/MODULE/TASK for one task, or "
            "EMBEDDINGS/MODULE for all tasks of a module."
        ),
    ],
    probe: ProbeName = "shallow",
    grid: Grid = "default",
    grid_points: GridPoints = 8,
    seed: Seed = 42,
    shuffle: Shuffle = False,
    min_steps: MinSteps = FEWEST_STEPS,
    device: Device = "auto",
    force: Annotated[
        bool,
        typer.Option("--force", help="Predict tasks again that are predicted already."),
    ] = False,
) -> None:
    """Score embeddings by predicting the labels of their tasks.

    The embeddings are those of 'hear-eval embed', or of the original HEAR kit (heareval).

    \b
    Examples:
      hear-eval predict embeddings/gram_hear
      hear-eval predict embeddings/gram_hear/esc50-v2.0.0-full --seed 43
    """
    with importing():
        from gram_hear.commands.hear_eval.tasks_run import (
            find_embeddings,
            predict_tasks,
            show_results,
        )
    chosen = choose_probe(context, probe, grid, grid_points, seed, shuffle, device)
    embedded = find_embeddings(folders)
    failed = predict_tasks(embedded, chosen, force, min_steps)
    for parent in dict.fromkeys(folder.resolve().parent for folder in embedded):
        failed += show_results(parent)
    finish(failed)
