"""``hear-eval report``: models compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gram_hear.console import PICTURE, AsJson, names_in, print_table, progress_bar, say
from gram_hear.errors import OptionError
from gram_hear.start import importing
from gram_hear.style import check_picture

if TYPE_CHECKING:
    from gram_hear.evaluation.compare.published import Published
    from gram_hear.evaluation.compare.report import Report
    from gram_hear.evaluation.compare.significance import PairTest


SPARE = ("seeds", "clips", "metric", "the best", "p")  # columns that can be done without


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Give folders of scores, EMBEDDINGS/MODULE, or folders above them. Runs of one "
            "model with different seeds are taken together."
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Report only this task. For several, write --task a,b or --task a --task b. A "
            "short name, such as sounds for sounds-v1-full, takes its tasks in scenes too.",
            show_default="all tasks",
        ),
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(
            help="Add published HEAR scores of these models, such as OpenL3,CREPE. With all, those "
            "of every known model are added."
        ),
    ] = None,
    published_file: Annotated[
        Path | None,
        typer.Option(help="Take the published scores from this JSON file of your own."),
    ] = None,
    resamples: Annotated[
        int,
        typer.Option(
            help="Make this many random permutations for each test of two models. With 0, nothing "
            "is tested."
        ),
    ] = 9999,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the report into files of this name: .md, .csv, .json and .tex (LaTeX).",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help=f"Draw the scores into this {PICTURE}.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the scores of several models.

    The report has the scores with their spread, the ranks of the models, and which differences are
    significant.

    \b
    Examples:
      hear-eval report embeddings
      hear-eval report embeddings --task esc50 --published all
      hear-eval report embeddings -o report --plot report.png
    """
    with importing():
        from gram_hear.evaluation.compare import significance
        from gram_hear.evaluation.compare.comparison import (
            compare,
            read_runs,
            warn_of_gaps,
            warn_of_mixtures,
        )
        from gram_hear.evaluation.compare.picture import plot_report
        from gram_hear.evaluation.compare.report import Report, json_of, write_report
    if 0 < resamples < significance.FEWEST or resamples < 0:
        raise OptionError(
            f"--resamples is {resamples}; a p-value needs {significance.FEWEST} or more, and 0 "
            "leaves the test out."
        )
    if output is not None and output.name in ("", ".."):
        raise OptionError(f"--output is {output}, a folder; give the name of the files in it too.")
    if output is not None and not output.parent.is_dir():
        raise OptionError(f"There is no folder {output.parent} to write {output.name} into.")
    if plot is not None:
        check_picture(plot)
    others = _published(published, published_file)
    comparison = compare(read_runs(folders, names_in(task) or []))
    warn_of_gaps(comparison)
    warn_of_mixtures(comparison)
    tests: list[PairTest] = []
    if resamples and len(comparison.models) > 1:
        with progress_bar("test", "pairs of models") as progress:
            tests = significance.compare_models(comparison, resamples, progress)
    made = Report(comparison, tests, others)
    if output is not None:
        say(f"Written: {', '.join(str(path) for path in write_report(made, output))}")
    if plot is not None:
        plot_report(made, plot)
        say(f"Written: {plot}")
    if as_json:
        typer.echo(json_of(made), nl=False)
    else:
        _show(made)


def _published(names: list[str] | None, path: Path | None) -> "list[Published]":
    """Return the published models that are asked for; all of a file that is named alone."""
    from gram_hear.evaluation.compare.published import choose_published, read_published

    wanted = names_in(names)
    if not wanted and path is None:
        return []
    return choose_published(read_published(path), wanted or ["all"])


def _show(made: "Report") -> None:
    """Print the tables and what must be said of them."""
    from gram_hear.evaluation.compare.report import tables_of

    for number, table in enumerate(tables_of(made)):
        if number:
            typer.echo()
        if table.rows:
            print_table(table.columns, table.rows, title=table.title, fold=("task",), spare=SPARE)
            typer.echo()
        for note in table.notes:
            typer.echo(note)
