"""A comparison as tables for a paper, in LaTeX with the package booktabs."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gram_hear.errors import count, visible
from gram_hear.evaluation.compare.comparison import Comparison
from gram_hear.evaluation.compare.significance import LEVEL
from gram_hear.evaluation.predict.metrics import named_metric

if TYPE_CHECKING:
    from gram_hear.evaluation.compare.report import Report

BEGIN = "% In the preamble: \\usepackage{booktabs}"
NOT_SIGNIFICANT, UNTESTED = r"^{\dagger}", r"^{\ddagger}"
ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    **{each: f"\\{each}" for each in "&%$#_{}"},
    # At the beginning of a row these would be an option of the line break before it.
    **{each: f"{{{each}}}" for each in "[]*"},
}


def latex_of(report: "Report") -> str:
    """Return the scores, and those in scenes beside dry clips, as tables in LaTeX.

    The best score of a task is bold. Models are in rows or, where there are more tasks than models,
    tasks are. Numbers have three decimals; the CSV has all of them.
    """
    parts = [BEGIN, _scores(report)]
    if report.comparison.changes:
        parts.append(_changes(report))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return text with what LaTeX would take for a command escaped, on one line."""
    line = visible(" ".join(text.split()))
    escaped = re.sub(r"[\\~^<>|\"&%$#_{}\[\]*]", lambda each: ESCAPED[each[0]], line)
    return re.sub(r"-(?=-)", "{-}", escaped)  # two would become a dash


def _scores(report: "Report") -> str:
    comparison, names = report.comparison, report.names
    metrics = [_marked_metric(comparison, task) for task in comparison.tasks]
    heads = [escape(names[model]) for model in comparison.models]
    body = [
        [_cell(report, model, task) for task in comparison.tasks] for model in comparison.models
    ]
    tasks = [escape(task) for task in comparison.tasks]
    ranked = bool(comparison.mean_ranks) and len(comparison.models) > 1
    if comparison.averages:
        tasks, metrics = [*tasks, "average"], [*metrics, f"of {len(comparison.averaged)}"]
        _add(body, (f"${comparison.averages[model]:.3f}$" for model in comparison.models))
    if ranked:
        tasks, metrics = [*tasks, "mean rank"], [*metrics, f"of {len(comparison.shared)}"]
        _add(body, (f"${comparison.mean_ranks[model]:.2f}$" for model in comparison.models))
    for other in report.published:
        if scores := report.published_scores(other):
            heads.append(f"{escape(other.name)} (published)")
            cells = [f"${scores[t]:.3f}$" if t in scores else "--" for t in comparison.tasks]
            body.append([*cells, *["--"] * (len(tasks) - len(cells))])
    if len(comparison.tasks) > len(comparison.models):
        rows = [
            [task, metric, *column]
            for task, metric, column in zip(tasks, metrics, zip(*body, strict=True), strict=True)
        ]
        head = [["Task", "Metric", *heads]]
        aligned = "ll" + "c" * len(heads)
    else:
        rows = [[name, *cells] for name, cells in zip(heads, body, strict=True)]
        head = [["Model", *tasks], ["", *metrics]]
        aligned = "l" + "c" * len(tasks)
    return _table(aligned, head, rows, _caption(report), "tab:scores")


def _marked_metric(comparison: Comparison, task: str) -> str:
    """Return a task's metric with its unit, and which way is better."""
    metric = named_metric(comparison.metric(task))
    return rf"$\{'uparrow' if metric.maximise else 'downarrow'}$ {escape(metric.title)}"


def _add(body: list[list[str]], column: Iterable[str]) -> None:
    for row, cell in zip(body, column, strict=True):
        row.append(cell)


def _cell(report: "Report", model: str, task: str) -> str:
    """Return a score with its spread and its mark."""
    score = report.comparison.scores.get((model, task))
    if score is None:
        return "--"
    if score.value is None:
        return "undefined"
    spread = "" if score.deviation is None else rf" \pm {score.deviation:.3f}"
    best = len(report.comparison.models) > 1 and model in report.comparison.best(task)
    value = rf"\mathbf{{{score.value:.3f}}}" if best else f"{score.value:.3f}"
    test = report.against_best(model, task)
    marks = {True: "", False: NOT_SIGNIFICANT, None: UNTESTED}
    return f"${value}{spread}{'' if test is None else marks[test.significant]}$"


def _caption(report: "Report") -> str:
    """Return what the table shows, and what its marks mean."""
    comparison = report.comparison
    models, tasks = count(len(comparison.models), "model"), count(len(comparison.tasks), "task")
    words = [f"Scores of {models} on {tasks}."]
    if len(comparison.models) > 1:
        words.append("Bold: the best of a task.")
    kinds = sorted({f"{s.count} {s.over}" for s in comparison.scores.values() if s.over})
    if kinds:
        words.append(rf"$\pm$: the standard deviation ($n - 1$) over {' or '.join(kinds)}.")
    tests = [
        report.against_best(model, task) for model in comparison.models for task in comparison.tasks
    ]
    found = {test.significant for test in tests if test is not None}
    if False in found:
        words.append(
            rf"${NOT_SIGNIFICANT}$: not significantly different from the best (paired permutation "
            rf"test, $p \geq {LEVEL}$ after Holm for all pairs of models of the task)."
        )
    if None in found:
        words.append(f"${UNTESTED}$: could not be tested against the best.")
    if True in found:
        words.append(
            f"Unmarked: significantly different from the best (paired permutation test, "
            f"$p < {LEVEL}$ after Holm)."
        )
    if any(report.published_scores(other) for other in report.published):
        words.append("Published: as published, not measured here.")
    return " ".join(words)


def _changes(report: "Report") -> str:
    comparison = report.comparison
    rows = []
    for each in comparison.changes:
        spread = "" if each.deviation is None else rf" \pm {each.deviation:.3f}"
        rows.append(
            [
                escape(each.task),
                _marked_metric(comparison, each.task),
                escape(report.names[each.model]),
                *(f"${value:.3f}$" for value in (each.dry, each.value)),
                f"${each.difference:+.3f}{spread}$",
            ]
        )
    caption = (
        "Scores in scenes, and on the dry clips that the scenes were made of. "
        r"$\pm$: the standard deviation ($n - 1$) of the difference over seeds."
    )
    head = [["Task", "Metric", "Model", "Dry", "In scenes", "Difference"]]
    return _table("lllccc", head, rows, caption, "tab:scenes")


def _table(
    aligned: str,
    head: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    caption: str,
    label: str,
) -> str:
    """Return a table of cells that are LaTeX already."""

    def lines(each: Iterable[Sequence[str]]) -> list[str]:
        return [f"{' & '.join(row)} \\\\" for row in each]

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            *lines(head),
            r"\midrule",
            *lines(rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )
