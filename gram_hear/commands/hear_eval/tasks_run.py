"""Tasks embedded and predicted one after the other; one that fails does not stop the others."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from gram_hear.commands.hear_eval.options import LOG, TRACEBACK_LOG, log_traceback
from gram_hear.console import print_table, progress_bar, say
from gram_hear.errors import GramError, ModuleError, count, some
from gram_hear.evaluation.compare.results import (
    RESULTS_FILE,
    columns_of,
    heading_of,
    notes_of,
    read_results,
    rows_of,
    warn_of_versions,
    write_results,
)
from gram_hear.evaluation.embed.embed_task import EmptyClips, embed_task, is_embedded
from gram_hear.evaluation.embed.hear_module import HearModule, load_model, traceback_of
from gram_hear.evaluation.predict.prediction import (
    Probe,
    TaskHeldError,
    is_predicted,
    predict_task,
)
from gram_hear.evaluation.predict.shallow import ShallowProbe
from gram_hear.jobs.locks import POLL
from gram_hear.tasks import METADATA, Task, read_task

FEWEST_CLIPS = 50  # with fewer test clips, the steps of a score are said


def load_module(module: str, model: str, options: dict[str, Any], device: str) -> HearModule:
    """Load a HEAR module; the traceback of one that fails is kept."""
    try:
        return load_model(module, model, options, device=device)
    except ModuleError as error:
        raise ModuleError(f"{error}{log_traceback(traceback_of(error, module), LOG)}") from error


# --- embedding ------------------------------------------------------------------------------


def embed_tasks(
    folders: Sequence[Path],
    module: HearModule,
    embeddings_dir: Path,
    force: bool,
    empty_clips: EmptyClips,
    check: Callable[[Task], object],
) -> tuple[list[Path], list[str]]:
    """Embed tasks that pass a check, under a progress bar.

    Returns:
        The folders of embeddings, and the names of the tasks that failed.
    """
    embedded, failed = [], []
    output = embeddings_dir / module.folder_name
    for folder in folders:
        log = output / f"{folder.name}-{TRACEBACK_LOG}"
        try:
            task = read_task(folder)
            check(task)
            if is_embedded(task, module, output, force, empty_clips):
                say(f"{task.name} is embedded already.")
                embedded.append(embed_task(task, module, output, empty_clips=empty_clips))
                continue
            with progress_bar(f"embed {task.name}", "files") as progress:
                embedded.append(
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
            logged = log_traceback(traceback_of(error, module.name), log)
            say(f"failed: {folder.name}: {error}{logged}")
            failed.append(folder.name)
    return embedded, failed


def warn_of_metadata(task: Task) -> None:
    """Warn of what would keep a task from being predicted once it is embedded."""
    try:
        ShallowProbe().check(task)
    except GramError as error:
        say(f"warning: {task.name} can be embedded, but not be predicted: {error}")


# --- predicting -----------------------------------------------------------------------------


def find_embeddings(folders: Sequence[Path]) -> list[Path]:
    """Return the embeddings of tasks: the folders given, or, of a module's folder, those in it."""
    found = []
    for folder in folders:
        inside = [] if (folder / METADATA).is_file() else sorted(folder.glob(f"*/{METADATA}"))
        found += [path.parent for path in inside] or [folder]
    # The name of "." is wanted in messages.
    return [each if each.name not in ("", "..") else each.resolve() for each in found]


def predict_tasks(folders: Sequence[Path], probe: Probe, force: bool, min_steps: int) -> list[str]:
    """Predict tasks under a progress bar; return the names of those that failed.

    Runs share tasks: those that others are predicting come last, and are waited for.
    """
    failed = []
    waiting = list(folders)
    while waiting:
        held = []
        for folder in waiting:
            try:
                if is_predicted(folder, probe, force):
                    say(f"{folder.name} is predicted already.")
                    continue
                tell = partial(_tell_facts, folder.name, min_steps)
                with progress_bar(f"predict {folder.name}", "grid points and folds") as progress:
                    predict_task(folder, probe, progress, tell)
            except TaskHeldError:
                held.append(folder)
            except GramError as error:
                say(f"failed: {folder.name}: {error}")
                failed.append(folder.name)
        if held == waiting:
            time.sleep(POLL)
        elif held:
            say(f"Waiting for another run, which is predicting {some([f.name for f in held])}.")
        waiting = held
    return failed


def _tell_facts(name: str, min_steps: int, facts: Mapping[str, Any]) -> None:
    """Say what must be known of a task's score before it is there."""
    _tell_steps(name, min_steps, facts)
    if (clips := facts.get("counted_clips", FEWEST_CLIPS)) < FEWEST_CLIPS:
        several = facts["folds"] > 1
        said = f"{count(clips, 'test clip')}{' in the smallest fold' if several else ''}"
        whose = "the score of that fold" if several else "a score"
        say(f"warning: {name}: {said}: {whose} moves in steps of {1 / clips:.2f}.")


def _tell_steps(name: str, min_steps: int, facts: Mapping[str, Any]) -> None:
    """Say how many optimizer steps a predictor takes, where it is trained; warn of few."""
    if (steps := facts.get("optimizer_steps")) is None:
        return
    said = f"{name}: a predictor takes at most {steps} optimizer steps"
    if steps >= min_steps:
        say(f"{said}.")
    else:
        say(
            f"warning: {said}, fewer than {min_steps}: it is undertrained, and its score says "
            "little about the embeddings. Take --grid default, or give the task a smaller "
            "batch_size (task_specific_param_grid). --min-steps moves this limit."
        )


def show_results(folder: Path) -> list[str]:
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
    warn_of_versions(folder.name, [(result.task, result) for result in results])
    typer.echo(heading_of(results))
    print_table(columns_of(results), rows_of(results), spare=("minutes",))
    for note in notes_of(results):
        typer.echo(note)
    return failed
