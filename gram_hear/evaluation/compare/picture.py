"""The picture of a comparison: a panel for each task, a row for each model, spread as bars."""

from pathlib import Path
from typing import Any

from gram_hear.evaluation.compare.report import Report
from gram_hear.style import COLOURS, DARK_GREY, GRID, drawing, save_figure

COLUMNS = 3  # panels side by side
PANEL, ROW = 3.6, 0.28  # inches: the width of a panel, the height of a row


def plot_report(report: Report, path: Path) -> None:
    """Draw a report into a PNG, written whole or not at all: see :func:`report_figure`.

    Raises:
        OptionError: where matplotlib is not installed, or ``path`` cannot be written to.
    """
    save_figure(report_figure(report), path)


def report_figure(report: Report) -> Any:
    """Return a matplotlib figure of a report.

    A panel for each task. A dot is the score, its bar the standard deviation; an open dot that of
    the dry clips, where the task is one of scenes; published scores are grey crosses.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    comparison = report.comparison
    names = [*comparison.models, *_published_names(report)]
    columns = min(COLUMNS, len(comparison.tasks))
    rows = -(-len(comparison.tasks) // columns)
    label = 0.075 * max(map(len, names))  # inches that the longest name takes
    width, height = columns * PANEL + label, rows * (len(names) * ROW + 0.9) + 0.35
    with drawing(width, height) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in panels.flat[len(comparison.tasks) :]:
            axes.set_visible(False)
        for axes, task in zip(panels.flat, comparison.tasks, strict=False):
            _draw_task(axes, report, task, names)
        figure.supxlabel(_legend(report), fontsize=8, color=DARK_GREY)
    return figure


def _published_names(report: Report) -> list[str]:
    """Return the published models that have a score of one of the tasks."""
    return [model.name for model in report.published if report.published_scores(model)]


def _draw_task(axes: Any, report: Report, task: str, names: list[str]) -> None:
    """Draw the scores of one task into a panel."""
    comparison = report.comparison
    changes = {each.model: each for each in comparison.changes if each.task == task}
    for row, model in enumerate(comparison.models):
        score = comparison.scores.get((model, task))
        if score is None or score.value is None:
            continue
        colour = COLOURS[row % len(COLOURS)]
        if model in changes:
            dry = changes[model].dry
            axes.plot([dry, score.value], [row, row], color=colour, lw=0.8, alpha=0.5, zorder=1)
            axes.plot(dry, row, "o", mfc="white", mec=colour, ms=5, zorder=2)
        axes.errorbar(
            score.value, row, xerr=score.deviation, fmt="o", color=colour, ms=5, capsize=3, lw=1.4
        )
    for other in report.published:
        if (value := report.published_scores(other).get(task)) is not None:
            axes.plot(value, names.index(other.name), "x", color=DARK_GREY, ms=5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)
    axes.set_title(task)
    better = "more is better →" if comparison.maximised(task) else "← less is better"
    axes.set_xlabel(f"{comparison.metric(task)}   {better}")


def _legend(report: Report) -> str:
    """Return what the marks of the picture mean."""
    scores = report.comparison.scores.values()
    kinds = sorted({f"{each.count} {each.over}" for each in scores if each.deviation is not None})
    words = [f"bars: standard deviation (n - 1) over {' or '.join(kinds)}"] if kinds else []
    if report.comparison.changes:
        words.append("open: the dry clips")
    if _published_names(report):
        words.append("crosses: published")
    return "; ".join(words)
