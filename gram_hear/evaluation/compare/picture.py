"""The picture of a comparison: a panel for each task, a row for each model, spread as bars."""

import textwrap
from pathlib import Path
from typing import Any

from gram_hear.evaluation.compare.report import Report
from gram_hear.evaluation.predict.metrics import Metric, named_metric
from gram_hear.extras import need
from gram_hear.style import (
    BLACK,
    BLUE,
    COLUMN,
    DARK_GREY,
    GRID,
    WIDTH,
    drawing,
    printable,
    save_figure,
)

LONGEST = 24  # characters of a line of a model's name
ROW, LINE = 0.2, 0.12  # inches: the height of a row, and of each further line of a name
CHARACTER = 0.065  # inches that a character of a name is wide
PANEL = 1.7  # inches that a panel is wide, at least
DRY = {"marker": "o", "mfc": "white", "mec": DARK_GREY, "ms": 4.5, "ls": "", "clip_on": False}
PUBLISHED = {"marker": "x", "color": BLACK, "ms": 4.5, "ls": "", "clip_on": False}
MARGIN = 0.12  # of a range, left free on either side


def plot_report(report: Report, path: Path) -> None:
    """Draw a report as PNG, SVG or PDF, written whole or not at all: see :func:`report_figure`.

    Raises:
        OptionError: where matplotlib is not installed, or ``path`` cannot be written to.
    """
    save_figure(report_figure(report), path)


def report_figure(report: Report) -> Any:
    """Return a matplotlib figure of a report.

    A panel for each task; those of one metric have one range. A disc is the score, its bar the
    standard deviation; a circle that of the dry clips, where the task is one of scenes; published
    scores are crosses. The picture of one task is as wide as a column of a paper, that of several
    as a page.

    Raises:
        OptionError: where matplotlib is not installed.
    """
    comparison = report.comparison
    labels = [
        "\n".join(textwrap.wrap(name, LONGEST)) or name
        for name in [*report.names.values(), *_published_names(report)]
    ]
    longest = CHARACTER * max(len(line) for label in labels for line in label.split("\n"))
    width = COLUMN if len(comparison.tasks) == 1 else WIDTH
    columns = max(1, min(len(comparison.tasks), int((width - longest) // PANEL)))
    rows = -(-len(comparison.tasks) // columns)
    names = sum(ROW + LINE * label.count("\n") for label in labels)
    most = max(12, int((width - longest) / columns / CHARACTER) - 4)  # characters of a title's line
    titles = ["\n".join(textwrap.wrap(task, most)) or task for task in comparison.tasks]
    above = LINE * max(title.count("\n") for title in titles)
    with drawing(width, rows * (names + above + 0.75) + 0.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in panels.flat[len(comparison.tasks) :]:
            axes.set_visible(False)
        for axes, task, title in zip(panels.flat, comparison.tasks, titles, strict=False):
            _draw_task(axes, report, task, labels)
            axes.set_xlim(_range_of(report, comparison.metric(task)))
            axes.set_title(printable(title))
        _draw_key(figure, report)
    return figure


def _published_names(report: Report) -> list[str]:
    """Return the published models that have a score of one of the tasks, as they are shown."""
    return [
        f"{model.name} (published)" for model in report.published if report.published_scores(model)
    ]


def _draw_task(axes: Any, report: Report, task: str, labels: list[str]) -> None:
    """Draw the scores of one task into a panel."""
    comparison = report.comparison
    changes = {each.model: each for each in comparison.changes if each.task == task}
    heights = [1 + LINE / ROW * label.count("\n") for label in labels]
    places = [sum(heights[:n]) + (height - 1) / 2 for n, height in enumerate(heights)]
    for row, model in zip(places, comparison.models, strict=False):
        score = comparison.scores.get((model, task))
        if score is None or score.value is None:
            continue
        if model in changes:
            dry = changes[model].dry
            axes.plot([dry, score.value], [row, row], color=DARK_GREY, lw=0.8, zorder=1)
            axes.plot(dry, row, zorder=2, **DRY)
        bar = axes.errorbar(
            score.value, row, xerr=score.deviation, fmt="o", color=BLUE, ms=4.5, capsize=2.5, lw=1.2
        )
        bar.lines[0].set_clip_on(False)  # the disc, where it lies on the edge
    known = [scores for each in report.published if (scores := report.published_scores(each))]
    for row, scores in zip(places[len(comparison.models) :], known, strict=True):
        if task in scores:
            axes.plot(scores[task], row, **PUBLISHED)
    axes.set_yticks(places, [printable(label) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(sum(heights) - 0.5, -0.5)
    axes.grid(axis="both", **GRID)
    axes.set_axisbelow(True)
    better = "higher is better →" if comparison.maximised(task) else "← lower is better"
    axes.set_xlabel(f"{_in_words(named_metric(comparison.metric(task)))}\n{better}")


def _range_of(report: Report, metric: str) -> tuple[float, float]:
    """Return the range that the panels of a metric have: that of all its scores, within bounds."""
    comparison = report.comparison
    tasks = [task for task in comparison.tasks if comparison.metric(task) == metric]
    shown = [change.dry for change in comparison.changes if change.task in tasks]
    for score in comparison.scores.values():
        if score.task in tasks and score.value is not None:
            spread = score.deviation or 0.0
            shown += [score.value - spread, score.value + spread]
    for other in report.published:
        shown += [value for task, value in report.published_scores(other).items() if task in tasks]
    least, most = named_metric(metric).bounds
    low, high = min(shown, default=least or 0.0), max(shown, default=most or 1.0)
    margin = MARGIN * (high - low or abs(high) or 1.0)
    low, high = low - margin, high + margin
    return low if least is None else max(low, least), high if most is None else min(high, most)


def _in_words(metric: Metric) -> str:
    """Return a metric's name with its unit and its range."""
    low, high = metric.bounds
    bounds = f"{low} or more" if high is None else f"{low} to {high}"
    words = [metric.unit, "no bounds" if low is None else bounds]
    return f"{metric.name} ({', '.join(filter(None, words))})"


def _draw_key(figure: Any, report: Report) -> None:
    """Say below all what the marks mean."""
    lines = need("matplotlib.lines", "plot")
    scores = report.comparison.scores.values()
    kinds = sorted({f"{each.count} {each.over}" for each in scores if each.deviation is not None})
    spread = f"; bar: ± standard deviation over {' or '.join(kinds)}" if kinds else ""
    handles = [lines.Line2D([], [], marker="o", color=BLUE, ms=4.5, ls="", label=f"score{spread}")]
    if report.comparison.changes:
        handles.append(lines.Line2D([], [], label="score on the dry clips", **DRY))
    if _published_names(report):
        handles.append(lines.Line2D([], [], label="published", **PUBLISHED))
    several = len(report.comparison.tasks) > 1
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles) if several else 1,
        handletextpad=0.2,
    )  # fmt: skip
