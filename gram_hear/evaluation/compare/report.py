"""A comparison as tables of text, and as Markdown, CSV, JSON and LaTeX."""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gram_hear.errors import OptionError, count, reason_of, visible
from gram_hear.evaluation.compare.comparison import Change, Comparison, Score
from gram_hear.evaluation.compare.latex import latex_of
from gram_hear.evaluation.compare.names import shown_names
from gram_hear.evaluation.compare.published import Published
from gram_hear.evaluation.compare.results import markdown_table
from gram_hear.evaluation.compare.significance import LEVEL, PairTest
from gram_hear.evaluation.predict.metrics import named_metric
from gram_hear.jobs.writing import write_whole

ENDINGS = (".md", ".csv", ".json", ".tex")
BEST, NOT_SIGNIFICANT, UNTESTED = "*", "~", "?"
RUN_KEYS = ("seed", "probe", "grid", "grid_points", "shuffle", "score")  # in the JSON


@dataclass(frozen=True)
class Table:
    """A table of text, with a title above and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What is reported: a comparison, its tests (empty where none was made), published scores."""

    comparison: Comparison
    tests: Sequence[PairTest] = ()
    published: Sequence[Published] = ()

    @cached_property
    def names(self) -> dict[str, str]:
        """What each model is called where people read it; see :func:`shown_names`."""
        return shown_names(self.comparison)

    def published_scores(self, model: Published) -> dict[str, float]:
        """Return what was published of the tasks that are compared, by the same metric."""
        found = {
            task: model.score(task, self.comparison.metric(task)) for task in self.comparison.tasks
        }
        return {task: score for task, score in found.items() if score is not None}

    def against_best(self, model: str, task: str) -> PairTest | None:
        """Return the test of a model against the best of a task; None for the best itself."""
        best = self.comparison.best(task)
        if model in best:
            return None
        return self._pairs.get((task, frozenset((model, best[0])))) if best else None

    @cached_property
    def _pairs(self) -> dict[tuple[str, frozenset[str]], PairTest]:
        return {(test.task, frozenset((test.first, test.second))): test for test in self.tests}


# --- tables ---------------------------------------------------------------------------------


def tables_of(report: Report) -> list[Table]:
    """Return the tables of a report: scores, scenes against dry, tests, published scores."""
    made = [_scores_table(report)]
    if report.comparison.changes:
        made.append(_changes_table(report))
    if report.tests:
        made.append(_tests_table(report))
    if report.published:
        made.append(_published_table(report))
    return made


def _scores_table(report: Report) -> Table:
    """Return models by tasks; where there are more tasks than models, tasks by models."""
    comparison = report.comparison
    suffix = _spread_suffixes(comparison)
    body = [
        [_cell(report, model, task, suffix) for task in comparison.tasks]
        for model in comparison.models
    ]
    heads = [f"{task} [{_marked_metric(comparison, task)}]" for task in comparison.tasks]
    if comparison.averages:
        heads.append(f"average of {len(comparison.averaged)}")
        for row, model in zip(body, comparison.models, strict=True):
            row.append(f"{comparison.averages[model]:.4f}")
    if comparison.mean_ranks and len(comparison.models) > 1:
        heads.append(f"mean rank of {len(comparison.shared)}")
        for row, model in zip(body, comparison.models, strict=True):
            row.append(f"{comparison.mean_ranks[model]:.2f}")
    if len(comparison.tasks) > len(comparison.models):
        rows = [
            (head, *column) for head, column in zip(heads, zip(*body, strict=True), strict=True)
        ]
        columns = ("task", *(report.names[model] for model in comparison.models))
        return Table("Scores", columns, rows, _score_notes(report, suffix))
    rows = [(report.names[model], *row) for model, row in zip(comparison.models, body, strict=True)]
    return Table("Scores", ("model", *heads), rows, _score_notes(report, suffix))


def _marked_metric(comparison: Comparison, task: str) -> str:
    """Return a task's metric with its unit, and which way is better."""
    metric = named_metric(comparison.metric(task))
    return f"{'↑' if metric.maximise else '↓'} {metric.title}"


def _spread_suffixes(comparison: Comparison) -> dict[tuple[str | None, int], str]:
    """Return what is written after a spread: what it is over, where that differs in the table."""
    kinds = {(each.over, each.count) for each in comparison.scores.values() if each.over}
    if len(kinds) == 1:
        return dict.fromkeys(kinds, "")
    return {kind: f" {kind[1]}{(kind[0] or ' ')[0]}" for kind in kinds}


def _cell(report: Report, model: str, task: str, suffix: dict) -> str:
    """Return a score, its spread, and its mark."""
    score = report.comparison.scores.get((model, task))
    if score is None:
        return ""
    if score.value is None:
        return "undefined"
    text = f"{score.value:.4f}"
    if score.deviation is not None:
        text += f" ±{score.deviation:.4f}{suffix[score.over, score.count]}"
    return f"{text}{_mark(report, model, task)}"


def _mark(report: Report, model: str, task: str) -> str:
    if len(report.comparison.models) == 1:
        return ""
    if model in report.comparison.best(task):
        return f" {BEST}"
    test = report.against_best(model, task)
    if test is None:
        return ""
    return {True: "", False: f" {NOT_SIGNIFICANT}", None: f" {UNTESTED}"}[test.significant]


def _score_notes(report: Report, suffix: dict) -> list[str]:
    """Return notes that say what the cells of the table of scores mean."""
    comparison = report.comparison
    notes = ["↑: more is better; ↓: less is better."]
    if len(suffix) == 1:
        ((over, count),) = suffix
        notes.append(f"±: the standard deviation (n - 1) over {count} {over}.")
    elif suffix:
        notes.append(
            "±: the standard deviation (n - 1) over seeds (3s: three of them) where a model has "
            "several, else over the folds of the one seed (5f)."
        )
    if any(not score.over for score in comparison.scores.values()):
        notes.append("Without ±: one seed, one test; how much another seed would differ is open.")
    if len(comparison.models) > 1:
        notes.append(f"{BEST}: the best.")
    if _differing(report):
        notes.append(
            f"{NOT_SIGNIFICANT}: not significantly different from the best (p ≥ {LEVEL} after Holm "
            f"for all pairs of the task). {UNTESTED}: could not be tested. Unmarked: significant."
        )
    if comparison.averages:
        left = [task for task in comparison.tasks if task not in comparison.averaged]
        words = f"; not in it: {', '.join(left)}" if left else ""
        notes.append(
            "The average is over the tasks that all models have and whose metric is a share where "
            f"more is better{words}."
        )
    if comparison.mean_ranks and len(comparison.models) > 1:
        notes.append("The mean rank is over the tasks that all models have; 1 is the best.")
    return notes


def _changes_table(report: Report) -> Table:
    comparison = report.comparison
    rows: list[tuple[str, ...]] = [
        (
            change.task,
            _marked_metric(comparison, change.task),
            report.names[change.model],
            f"{change.dry:.4f}",
            f"{change.value:.4f}",
            f"{change.difference:+.4f}"
            + ("" if change.deviation is None else f" ±{change.deviation:.4f}"),
            str(change.count),
        )
        for change in comparison.changes
    ]
    columns = ("task in scenes", "metric", "model", "dry", "in scenes", "difference", "seeds")
    notes = [
        "Dry: the task that the scenes were made of, with the same options and seed. ±: the "
        "standard deviation (n - 1) of the differences over seeds."
    ]
    return Table("Scenes against dry clips", columns, rows, notes)


def _tests_table(report: Report) -> Table:
    """Return the tests of every model against the best of each task."""
    title = "Against the best"
    if not _differing(report):
        return Table(title, (), [], ["All models are equal on every task that several have."])
    rows: list[tuple[str, ...]] = []
    notes = [
        "A paired permutation test: the two models' outputs on a clip are exchanged, for a random "
        "half of the clips at a time. p: the share of exchanges with a difference at least as "
        "large; adjusted after Holm for all pairs of models of the task.",
        "The test is about these trained predictors on these clips, seeds averaged. How much "
        "another training would change is in ±, not in p. Clips count as independent; where "
        "several are of one speaker or recording, p is too small.",
    ]
    for task in report.comparison.tasks:
        for model in report.comparison.models:
            test = report.against_best(model, task)
            if test is None:
                continue
            best = report.names[report.comparison.best(task)[0]]
            shown = report.names[model]
            if test.p is None or test.difference is None or test.adjusted is None:
                rows.append(
                    (task, shown, best, "", "", "", "", f"not tested: {_shown(report, test.why)}")
                )
                continue
            sign = 1 if test.first == model else -1
            verdict = "significant" if test.significant else "not significant"
            numbers = (f"{sign * test.difference:+.4f}", f"{test.clips}")
            rows.append(
                (task, shown, best, *numbers, f"{test.p:.4f}", f"{test.adjusted:.4f}", verdict)
            )
    columns = ("task", "model", "the best", "difference", "clips", "p", "adjusted", "")
    return Table(title, columns, rows, notes)


def _differing(report: Report) -> bool:
    """Whether a model that was tested is not among the best of a task."""
    comparison = report.comparison
    return any(
        report.against_best(model, task) for model in comparison.models for task in comparison.tasks
    )


def _shown(report: Report, text: str) -> str:
    """Return text with the names of models as they are shown."""
    own = sorted((own for own, shown in report.names.items() if own != shown), key=len)[::-1]
    pattern = "|".join(map(re.escape, own))
    return re.sub(pattern, lambda each: report.names[each[0]], text) if own else text


def _published_table(report: Report) -> Table:
    """Return published scores of the tasks that are compared."""
    known = {model.name: report.published_scores(model) for model in report.published}
    tasks = [
        task for task in report.comparison.tasks if any(task in each for each in known.values())
    ]
    rows = []
    for name, scores in known.items():
        if scores:
            cells = (f"{scores[task]:.4f}" if task in scores else "" for task in tasks)
            rows.append((name, *cells))
    sources = dict.fromkeys(f"Source: {each.source}, {each.url}" for each in report.published)
    notes = ["Published, not measured here; how they were measured, the source says.", *sources]
    if not rows:
        notes.insert(
            0, "No score of these tasks is published: names and versions must be the same."
        )
    return Table("Published scores", ("published model", *tasks), rows, notes)


# --- files ----------------------------------------------------------------------------------


def write_report(report: Report, output: Path) -> list[Path]:
    """Write ``output`` with the endings .md, .csv, .json and .tex, each whole or not at all.

    Raises:
        OptionError: where a file cannot be written.
    """
    stem = output.with_suffix("") if output.suffix in ENDINGS else output
    texts = (markdown_of(report), csv_of(report), json_of(report), latex_of(report))
    paths = [stem.with_name(stem.name + ending) for ending in ENDINGS]
    for path, text in zip(paths, texts, strict=True):
        write = partial(Path.write_text, data=text, encoding="utf-8", errors="replace", newline="")
        try:
            write_whole(path, write)
        except OSError as error:
            raise OptionError(f"{path} cannot be written: {reason_of(error)}.") from error
    return paths


def markdown_of(report: Report) -> str:
    """Return the report as Markdown, the best scores in bold."""
    comparison = report.comparison
    models, tasks = count(len(comparison.models), "model"), count(len(comparison.tasks), "task")
    lines = [f"# {models} on {tasks}", ""]
    for table in tables_of(report):
        lines += [f"## {table.title}", ""]
        if table.rows:
            lines += [*markdown_table(table.columns, [map(_bold, row) for row in table.rows]), ""]
        for note in table.notes:
            lines.append(f"- {note.replace(f'{BEST}: the best', 'Bold: the best')}")
        lines.append("")
    read = []
    for score in comparison.scores.values():
        for run in score.runs:
            seed = "" if run.result.seed is None else str(run.result.seed)
            read.append((report.names[score.model], score.task, seed, str(run.folder)))
    lines += ["## What was read", "", *markdown_table(("model", "task", "seed", "folder"), read)]
    return visible("\n".join(lines)) + "\n"


def _bold(cell: str) -> str:
    return f"**{cell.removesuffix(BEST).rstrip()}**" if cell.endswith(f" {BEST}") else cell


def csv_of(report: Report) -> str:
    """Return one row for each model and task, then those that were published."""
    text = io.StringIO()
    records = _records(report)
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    for record in records:
        seeds = " ".join(str(seed) for seed in record["seeds"] if seed is not None)
        writer.writerow({**record, "seeds": seeds})
    for model in report.published:
        for task, score in report.published_scores(model).items():
            metric = report.comparison.metric(task)
            row = {"model": model.name, "task": task, "metric": metric, "score": score}
            better = "more" if report.comparison.maximised(task) else "less"
            writer.writerow({**row, "better": better, "source": model.url})
    return text.getvalue()


def _records(report: Report) -> list[dict[str, Any]]:
    """Return a dictionary for each model and task; its keys are the columns of the CSV."""
    changes = {(each.model, each.task): each for each in report.comparison.changes}
    return [
        _record(report, score, changes.get(key)) for key, score in report.comparison.scores.items()
    ]


def _record(report: Report, score: Score, change: Change | None) -> dict[str, Any]:
    comparison = report.comparison
    test = report.against_best(score.model, score.task)
    difference = None
    if test is not None and test.difference is not None:
        difference = test.difference if test.first == score.model else -test.difference
    return {
        "model": score.model,
        "task": score.task,
        "metric": score.metric,
        "better": "more" if comparison.maximised(score.task) else "less",
        "score": score.value,
        "deviation": score.deviation,
        "deviation_over": score.over,
        "count": score.count,
        "seeds": score.seeds,
        "rank": comparison.ranks.get((score.model, score.task)),
        "best": score.model in comparison.best(score.task),
        "difference_from_best": difference,
        "p": test.p if test else None,
        "p_adjusted": test.adjusted if test else None,
        "clips": test.clips if test and test.clips else None,
        "dry_task": change.source if change else None,
        "dry": change.dry if change else None,
        "difference_from_dry": change.difference if change else None,
        "deviation_of_difference": change.deviation if change else None,
        "source": "measured",
    }


def json_of(report: Report) -> str:
    """Return everything as strict JSON: scores by seed and fold, tests of all pairs, published."""
    comparison = report.comparison
    scores = []
    for record, score in zip(_records(report), comparison.scores.values(), strict=True):
        record["runs"] = [
            {
                "folder": str(run.folder),
                **{name: getattr(run.result, name) for name in RUN_KEYS},
                "folds": list(run.result.folds),
                "fold_deviation": run.result.deviation,
                "dry": run.result.dry,
            }
            for run in score.runs
        ]
        scores.append(record)
    content = {
        "models": list(comparison.models),
        "shown_names": report.names,
        "tasks": [
            {"task": task, "metric": comparison.metric(task), "best": list(comparison.best(task))}
            for task in comparison.tasks
        ],
        "deviation": "standard deviation, n - 1",
        "scores": scores,
        "averages": {"tasks": list(comparison.averaged), "models": dict(comparison.averages)},
        "mean_ranks": {"tasks": list(comparison.shared), "models": dict(comparison.mean_ranks)},
        "tests": [_test_record(test) for test in report.tests],
        "published": [
            {"model": each.name, "source": each.source, "url": each.url, "scores": found}
            for each in report.published
            if (found := report.published_scores(each))
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _test_record(test: PairTest) -> dict[str, Any]:
    return {
        "task": test.task,
        "models": [test.first, test.second],
        "difference": test.difference,
        "clips": test.clips,
        "resamples": test.resamples,
        "p": test.p,
        "p_adjusted": test.adjusted,
        "significant": test.significant,
        "why_not": test.why or None,
    }
