"""``hear-eval make-task``: labelled recordings made into a task."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from gram_hear.console import AsJson, TasksDir, print_table, progress_bar, say
from gram_hear.errors import OptionError
from gram_hear.start import importing

if TYPE_CHECKING:
    from gram_hear.evaluation.make.plan import TaskPlan

Number = TypeVar("Number", int, float)
LARGEST_TABLE = 60  # classes; of more only the counts of files are shown


def make_task(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of recordings. Without --csv or --pattern, each subfolder is a class."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the task. Default: that of the folder.")] = "",
    csv: Annotated[
        Path | None,
        typer.Option(
            help="Labels: file,label | file,onset,offset,label (seconds) | file,azimuth,elevation "
            "(degrees) | file,x,y,z; and split or fold where they are given."
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            help="What the files' names say, as {label}_{speaker}_{index}: label, split, fold, or "
            "what to group by. Or a regular expression with named groups."
        ),
    ] = "",
    group_by: Annotated[
        str, typer.Option(help="Column or field whose values stay in one split, as speaker.")
    ] = "",
    columns: Annotated[
        str, typer.Option(help="What the CSV calls its columns: file=filename,label=category.")
    ] = "",
    ignore_columns: Annotated[
        str, typer.Option(help="Columns that are left out: a,b; or all unknown ones: all.")
    ] = "",
    skip_unlisted: Annotated[
        bool, typer.Option("--skip-unlisted", help="Leave out files without a row in the CSV.")
    ] = False,
    prediction_type: Annotated[
        str,
        typer.Option(
            help="multiclass or multilabel. Default: multilabel if any file has several labels."
        ),
    ] = "",
    shares: Annotated[
        str, typer.Option(help="Shares of train, valid and test. Default: 0.6,0.2,0.2.")
    ] = "",
    folds: Annotated[
        int | None, typer.Option(help="Make this many folds instead of three splits.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits or folds.")] = 0,
    allow_rare: Annotated[
        bool, typer.Option("--allow-rare", help="Take classes that cannot be learned or tested.")
    ] = False,
    rates: Annotated[
        str,
        typer.Option(
            help="Sample rates of the task, Hz: 16000,32000. Default: the recordings' highest."
        ),
    ] = "",
    duration: Annotated[
        float | None, typer.Option(help="Seconds to cut or pad all clips to. Default: as they are.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Names of metrics: a,b; the first one chooses the predictor.")
    ] = "",
    task_version: Annotated[str, typer.Option(help="Version of the task.")] = "v1",
    tasks_dir: TasksDir = Path("tasks"),
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes side by side. Default: one for each hour of sound, at most one for "
            "each processor."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made; write nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a task of this name, made otherwise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a task of your own recordings, and print its folder.

    The same command goes on after an interruption.

    Example: hear-eval make-task recordings --pattern '{label}_{speaker}_{index}' --group-by speaker
    """
    with importing():
        from gram_hear.evaluation.make.build import make_task as make
        from gram_hear.evaluation.make.labels import LabelOptions
        from gram_hear.evaluation.make.plan import TaskOptions, check_tasks_dir, plan_task
        from gram_hear.evaluation.make.sounds import SoundOptions
        from gram_hear.evaluation.make.splits import SplitOptions
        from gram_hear.tasks import read_task
    labels = LabelOptions(
        csv,
        pattern,
        _pairs(columns),
        tuple(_words(ignore_columns)),
        group_by,
        skip_unlisted,
        prediction_type or None,
    )
    parts = _numbers(float, "--shares", shares, "0.6,0.2,0.2")
    splits = SplitOptions(parts or None, folds, seed, allow_rare=allow_rare)
    whole = _numbers(int, "--rates", rates, "16000,32000, in Hz")
    sound = SoundOptions(tuple(dict.fromkeys(whole)), duration)
    name = name or source.resolve().name
    options = TaskOptions(name, task_version, labels, splits, sound, tuple(_words(metric)))
    check_tasks_dir(source, tasks_dir)
    plan = plan_task(source, options)
    folder = tasks_dir / options.folder_name
    if dry_run:
        notes = (*plan.notes, *plan.splits.notes)
        annotations = {
            split: [clip.annotation for clip in clips] for split, clips in plan.splits.clips.items()
        }
    else:
        with progress_bar(f"make {folder.name}", "files") as progress:
            made = make(plan, tasks_dir, jobs=jobs, force=force, progress=progress)
        notes = made.notes
        if made.found:
            say(f"{made.found} of {len(plan.recordings.clips)} files were done by an earlier run.")
        task = read_task(folder)
        annotations = {split: list(task.annotations(split).values()) for split in task.splits}
    for note in notes:
        say(f"warning: {note}")
    _show(plan, annotations, folder, as_json)


def _show(
    plan: "TaskPlan", annotations: Mapping[str, Sequence[list]], folder: Path, as_json: bool
) -> None:
    """Print the folder, and how many clips of each class are in which split."""
    from gram_hear.evaluation.make.labels import labels_of

    counts = {split: len(clips) for split, clips in annotations.items()}
    of_class: dict[str, dict[str, int]] = {
        label: dict.fromkeys(annotations, 0) for label in plan.recordings.labels
    }
    for split, clips in annotations.items():
        for annotation in clips:
            for label in labels_of(annotation):
                of_class[label][split] += 1
    if as_json:
        said = {
            "folder": str(folder),
            "type": plan.recordings.kind,
            "prediction_type": plan.recordings.prediction_type,
            "metrics": plan.metrics,
            "rates": plan.sound.rates,
            "splits": counts,
            "classes": of_class,
        }
        typer.echo(json.dumps(said, indent=2))
        return
    table = Table("class", *counts)
    for label, row in of_class.items() if len(of_class) <= LARGEST_TABLE else ():
        table.add_row(Text(label), *map(str, row.values()))
    table.add_section()
    table.add_row("all clips", *map(str, counts.values()))
    print_table(table)
    typer.echo(folder)


# --- lists on the command line --------------------------------------------------------------


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words(text)]
    if wrong := [f"{here}{sign}{name}" for here, sign, name in pairs if not (here and name)]:
        raise OptionError(
            f"--columns has {wrong[0]!r}; it must be like file=filename,label=category."
        )
    return {here.strip(): name.strip() for here, _, name in pairs}


def _numbers(kind: type[Number], option: str, text: str, example: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(word) for word in _words(text))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; it must be like {example}.") from None
