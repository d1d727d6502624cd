"""``hear-eval make-task``: labelled recordings made into a task."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from gram_hear.console import AsJson, NewTasksDir, print_table, progress_bar, say
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
            help="Give the folder of the recordings. Without --csv or --pattern, each folder in it "
            "is a class."
        ),
    ],
    name: Annotated[
        str, typer.Option(help="Give the task this name.", show_default="the folder's name")
    ] = "",
    csv: Annotated[
        Path | None,
        typer.Option(
            help="Read the labels from this CSV file. Its columns are file,label for clips, "
            "file,onset,offset,label (in seconds) for events, and file,azimuth,elevation (in "
            "degrees) or file,x,y,z for directions. A column split or fold is used if it is there."
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            help="Read labels from the files' names. Write how the names are made, such as "
            "{label}_{speaker}_{index}, or a regular expression with named groups. The names "
            "label, split, fold and that of --group-by are used."
        ),
    ] = "",
    group_by: Annotated[
        str,
        typer.Option(
            help="Keep all clips with the same value of this column, such as speaker, in one split."
        ),
    ] = "",
    columns: Annotated[
        str,
        typer.Option(
            help="Say what the CSV calls its columns, such as file=filename,label=category."
        ),
    ] = "",
    ignore_columns: Annotated[
        str,
        typer.Option(
            help="Ignore these columns of the CSV, such as a,b. With all, every unknown column is "
            "ignored."
        ),
    ] = "",
    skip_unlisted: Annotated[
        bool, typer.Option("--skip-unlisted", help="Leave out files that the CSV does not name.")
    ] = False,
    prediction_type: Annotated[
        Literal["multiclass", "multilabel"] | None,
        typer.Option(
            help="Say whether a clip has one label (multiclass) or any number (multilabel).",
            show_default="multilabel if a file has several labels",
        ),
    ] = None,
    shares: Annotated[
        str,
        typer.Option(
            help="Divide the clips into train, valid and test by these shares.",
            show_default="0.6,0.2,0.2",
        ),
    ] = "",
    folds: Annotated[
        int | None, typer.Option(help="Make this many folds instead of the three splits.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Use this seed to divide the clips.")] = 0,
    allow_rare: Annotated[
        bool,
        typer.Option(
            "--allow-rare",
            help="Accept classes that are in one split only, or not in the training split. They "
            "are an error without this.",
        ),
    ] = False,
    rates: Annotated[
        str,
        typer.Option(
            help="Write the sounds at these sample rates in Hz, such as 16000,32000.",
            show_default="the highest of the recordings",
        ),
    ] = "",
    duration: Annotated[
        float | None,
        typer.Option(
            help="Cut or pad all clips to this many seconds.", show_default="as long as they are"
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Score the task by these metrics, such as top1_acc,mAP. The first one chooses the "
            "predictor.",
            show_default="what suits the labels",
        ),
    ] = "",
    task_version: Annotated[str, typer.Option(help="Give the task this version.")] = "v1",
    tasks_dir: NewTasksDir = Path("tasks"),
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Run this many processes at the same time.",
            show_default="one for each hour of sound, at most one for each processor",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made, and write nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a task of this name that was made in another way."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a task from your own labelled recordings.

    The labels come from the folders, from the names of the files, or from a CSV file. The folder of
    the task is printed. Run the same command again to go on after an interruption.

    \b
    Examples:
      hear-eval make-task recordings
      hear-eval make-task recordings --csv labels.csv --duration 5
      hear-eval make-task words --pattern '{label}_{speaker}_{index}'
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
        prediction_type,
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
    rows = [
        (label, *map(str, row.values()))
        for label, row in of_class.items()
        if len(of_class) <= LARGEST_TABLE
    ]
    print_table(("class", *counts), rows, total=("all clips", *map(str, counts.values())))
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
