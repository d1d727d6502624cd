"""Models side by side: what is found, its spread, ranks, tests, tables, files and picture."""

import csv
import dataclasses
import io
import itertools
import json
import os
import re
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hear_tasks import write_task
from typer.testing import CliRunner

from gram_hear.commands.hear_eval.app import app
from gram_hear.errors import OptionError, TaskError
from gram_hear.evaluation.compare import significance
from gram_hear.evaluation.compare.comparison import compare, read_runs
from gram_hear.evaluation.compare.latex import latex_of
from gram_hear.evaluation.compare.picture import report_figure
from gram_hear.evaluation.compare.published import Published, choose_published, read_published
from gram_hear.evaluation.compare.report import (
    Report,
    csv_of,
    json_of,
    markdown_of,
    tables_of,
    write_report,
)
from gram_hear.evaluation.compare.significance import compare_models
from gram_hear.evaluation.predict.metrics import METRICS, named_metric
from gram_hear.start import hear_eval
from gram_hear.style import save_figure

CLASSES = 4
CLIPS = 80
TRUTH = np.random.default_rng(0).integers(0, CLASSES, CLIPS)


def outputs(right, seed=0):
    """(clips, classes) of a model that is right on the first clips, and wrong on the others."""
    guess = np.where(np.arange(CLIPS) < right, TRUTH, (TRUTH + 1) % CLASSES)
    noise = np.random.default_rng(seed).random((CLIPS, CLASSES)) / 10
    return (np.eye(CLASSES)[guess] + noise).astype(np.float32)


def write_run(
    folder,
    prediction=None,
    seed=42,
    score=None,
    plan=None,
    metric="top1_acc",
    splits=("train", "valid", "test"),
    source=None,
):
    """Write a run of a task: its scores, and its predictions where they are given."""
    kind = METRICS[metric].kind
    value = [1.0, 0.0, 0.0] if kind == "localisation" else ["0"]
    folded = splits[0] == "fold0"
    metadata = {
        "embedding_type": "event" if kind == "event" else "scene",
        "prediction_type": "multiclass" if metric.endswith("_acc") else "multilabel",
        "split_mode": "presplit_kfold" if folded else "trainvaltest",
        "evaluation": [metric],
    }
    if source is not None:
        metadata["naturalistic"] = {"source": source}
    write_task(
        folder,
        {split: {f"{split}-{i}.wav": value for i in range(CLIPS)} for split in splits},
        labels=None if kind == "localisation" else range(CLASSES),
        **metadata,
    )
    target = np.eye(CLASSES, dtype=np.float32)[TRUTH]
    folds = splits if folded else ("test",)
    predictions = (
        dict.fromkeys(folds, prediction) if not isinstance(prediction, dict) else prediction
    )
    scores = {}
    for fold, each in predictions.items():
        value = score
        if each is not None:
            value = named_metric(metric).compute(each, target == 1) if score is None else score
            np.savez(folder / f"{fold}.predictions.npz", target=target, prediction=each)
        scores[fold] = {"test_score": value, f"test_{metric}": value}
    if len(folds) > 1:
        values = [each["test_score"] for each in scores.values()]
        scores["aggregated_scores"] = {
            "test_score_mean": float(np.mean(values)),
            "test_score_std": float(np.std(values, ddof=1)),
        }
    done = {"time": 60.0, "grid": "fast", "grid_points": 8, "seed": seed, "shuffle": False}
    (folder / "test.predicted-scores.json").write_text(json.dumps(scores))
    (folder / "prediction-done.json").write_text(json.dumps(done | (plan or {})))
    return folder


def test_clips_left_out_and_silence_are_not_set_side_by_side(tmp_path):
    for model, choice in (("a", "skip"), ("b", "zero"), ("c", "skip")):
        folder = write_run(tmp_path / model / "digits-v1", outputs(50))
        said = {"empty_clips": choice, "empty_files": ["test/test-0.wav"]}
        (folder / "embeddings-done.json").write_text(json.dumps(said))
    found = compare(read_runs([tmp_path]))
    tasks = ("digits-v1 (empty clips: skip)", "digits-v1 (empty clips: zero)")
    assert found.tasks == tasks
    assert set(found.scores) == {("a", tasks[0]), ("b", tasks[1]), ("c", tasks[0])}
    assert compare(read_runs([tmp_path / "a", tmp_path / "c"])).tasks == ("digits-v1",)


@pytest.fixture
def root(tmp_path):
    """Two models, two seeds; a task of both, one in scenes of one model, one of directions."""
    for seed, shift in ((42, 0), (43, 4)):
        embeddings = tmp_path / f"seed{seed}"
        write_run(embeddings / "good" / "digits-v1", outputs(70 - shift), seed)
        write_run(embeddings / "poor" / "digits-v1", outputs(30 - shift), seed)
        write_run(embeddings / "good" / "noisy-v1", outputs(50), seed, source="digits-v1")
        write_run(embeddings / "good" / "where-v1", None, seed, 10.0 + shift, metric="MAE")
        write_run(embeddings / "poor" / "where-v1", None, seed, 40.0 + shift, metric="MAE")
    return tmp_path


def made(root, **options):
    comparison = compare(read_runs([root]))
    return Report(comparison, compare_models(comparison, **options))


# --- finding and setting together -----------------------------------------------------------


def test_seeds_are_put_together(root):
    comparison = compare(read_runs([root]))
    assert comparison.models == ("good", "poor")
    assert comparison.tasks == ("digits-v1", "noisy-v1", "where-v1")
    score = comparison.scores["good", "digits-v1"]
    assert score.seeds == [42, 43]
    assert score.value == pytest.approx((70 + 66) / 2 / CLIPS)
    assert score.deviation == pytest.approx(np.std([70 / CLIPS, 66 / CLIPS], ddof=1))
    assert (score.over, score.count) == ("seeds", 2)


@pytest.mark.parametrize(
    "given", [("seed42/good", "seed42/poor"), ("seed42",), ("seed42/good", ".")]
)
def test_folders_are_found_wherever_they_are_given(root, given):
    runs = read_runs([root / each for each in given])
    assert {run.folder.parent.name for run in runs} == {"good", "poor"}
    assert len({run.folder.resolve() for run in runs}) == len(runs)


def test_a_lone_seed_has_the_spread_of_its_folds(tmp_path):
    folds = {f"fold{i}": outputs(40 + 4 * i) for i in range(3)}
    write_run(tmp_path / "good" / "digits-v1", folds, splits=tuple(folds))
    (score,) = compare(read_runs([tmp_path])).scores.values()
    assert (score.over, score.count) == ("folds", 3)
    assert score.value == pytest.approx(44 / CLIPS)
    assert score.deviation == pytest.approx(4 / CLIPS)
    assert score.runs[0].result.folds == pytest.approx((0.5, 0.55, 0.6))


def test_ranks_and_averages_know_what_is_better(root):
    comparison = compare(read_runs([root]))
    assert comparison.best("digits-v1") == comparison.best("where-v1") == ("good",)
    assert comparison.ranks["good", "where-v1"] == 1  # fewer degrees
    assert comparison.shared == ("digits-v1", "where-v1")  # noisy is of one model alone
    assert comparison.averaged == ("digits-v1",)  # degrees are in no average of shares
    assert comparison.averages["good"] == comparison.scores["good", "digits-v1"].value
    assert comparison.mean_ranks == {"good": 1.0, "poor": 2.0}


def test_equals_share_a_rank(tmp_path):
    for name, right in (("a", 40), ("b", 60), ("c", 60)):
        write_run(tmp_path / name / "digits-v1", outputs(right))
    comparison = compare(read_runs([tmp_path]))
    assert [comparison.ranks[model, "digits-v1"] for model in "abc"] == [3.0, 1.5, 1.5]
    assert comparison.best("digits-v1") == ("b", "c")


def test_other_plans_are_other_models(tmp_path):
    write_run(tmp_path / "a" / "good" / "digits-v1", outputs(60))
    write_run(tmp_path / "b" / "good" / "digits-v1", outputs(50), plan={"grid": "faster"})
    assert compare(read_runs([tmp_path])).models == ("good (fast)", "good (faster)")


def test_neighbours_are_another_model_of_no_seed(tmp_path):
    for name in ("seed42", "seed43"):
        folder = write_run(tmp_path / name / "good" / "digits-v1", outputs(60), int(name[4:]))
        scores = {"test": {"test_score": 0.5, "test_top1_acc": 0.5}}
        (folder / "test.predicted-scores-knn.json").write_text(json.dumps(scores))
        (folder / "prediction-done-knn.json").write_text(json.dumps({"time": 1.0, "probe": "knn"}))
    comparison = compare(read_runs([tmp_path]))
    assert comparison.models == ("good (shallow)", "good (knn)")
    score = comparison.scores["good (knn)", "digits-v1"]
    assert (score.value, score.deviation, score.count) == (0.5, None, 1)  # the same, found twice
    assert comparison.scores["good (shallow)", "digits-v1"].count == 2


def test_the_same_seed_counts_once_and_must_say_the_same(tmp_path):
    write_run(tmp_path / "a" / "good" / "digits-v1", outputs(60))
    write_run(tmp_path / "b" / "good" / "digits-v1", outputs(60))
    assert compare(read_runs([tmp_path])).scores["good", "digits-v1"].count == 1
    write_run(tmp_path / "c" / "good" / "digits-v1", outputs(50))
    with pytest.raises(TaskError, match=r"seed 42.*different scores.*0\.75 and 0\.625.*rename"):
        compare(read_runs([tmp_path]))


def test_an_undefined_score_has_no_rank(tmp_path):
    write_run(tmp_path / "good" / "tags-v1", None, metric="d_prime")
    write_run(tmp_path / "poor" / "tags-v1", None, score=1.5, metric="d_prime")
    report = made(tmp_path)
    assert report.comparison.scores["good", "tags-v1"].value is None
    assert report.comparison.shared == ()
    assert report.comparison.averages == report.comparison.mean_ranks == {}
    assert report.tests == []
    assert "undefined" in markdown_of(report)


def test_scenes_stand_against_their_dry_task(root):
    (change,) = compare(read_runs([root])).changes
    assert (change.model, change.task, change.source) == ("good", "noisy-v1", "digits-v1")
    assert change.dry == pytest.approx(68 / CLIPS)
    assert change.difference == pytest.approx(50 / CLIPS - 68 / CLIPS)
    assert change.deviation == pytest.approx(np.std([70 / CLIPS, 66 / CLIPS], ddof=1))
    assert change.count == 2


def test_what_cannot_be_found_is_said(root, tmp_path):
    with pytest.raises(OptionError, match="There is no folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match=r"holds no results.*hear-eval predict"):
        read_runs([tmp_path / "empty"])
    with pytest.raises(OptionError, match="holds one task"):
        read_runs([root / "seed42" / "good" / "digits-v1"])
    with pytest.raises(OptionError, match=r"No model has results of 'esc50'; there are digits-v1"):
        read_runs([root], ["esc50"])
    assert {run.result.task for run in read_runs([root], ["digits", "where-v1"])} == {
        "digits-v1",
        "where-v1",
    }


# --- tests ----------------------------------------------------------------------------------


def exact_p(first, second):
    """The two-sided sign test of the clips on which only one model is right."""
    differing = int((first != second).sum())
    signs = np.array(list(itertools.product((-1, 1), repeat=differing))).sum(axis=1)
    seen = abs(int(first.sum()) - int(second.sum()))
    return float((np.abs(signs) >= seen).mean())


def test_the_p_value_is_that_of_all_exchanges(tmp_path):
    """12 clips differ, 10 of them in favour of one: all 4,096 exchanges can be listed."""
    better, other = outputs(40), outputs(40)
    rows = np.arange(40, 52)
    better[rows[:10]] = np.eye(CLASSES)[TRUTH[rows[:10]]]
    other[rows[10:]] = np.eye(CLASSES)[TRUTH[rows[10:]]]
    write_run(tmp_path / "a" / "digits-v1", better)
    write_run(tmp_path / "b" / "digits-v1", other)
    (test,) = made(tmp_path).tests
    right = [each.argmax(axis=1) == TRUTH for each in (better, other)]
    assert test.p == pytest.approx(exact_p(*right), abs=0.01)
    assert test.difference == pytest.approx(8 / CLIPS)
    assert (test.clips, test.resamples) == (CLIPS, 9999)
    assert test.significant is True
    assert made(tmp_path).tests == [test]  # the same draws every time


def test_models_that_are_alike_do_not_differ_significantly(tmp_path):
    write_run(tmp_path / "a" / "digits-v1", outputs(40, seed=1))
    write_run(tmp_path / "b" / "digits-v1", outputs(40, seed=2))
    (test,) = made(tmp_path).tests
    assert (test.difference, test.p, test.significant) == (0.0, 1.0, False)


@pytest.mark.parametrize("metric", ["mAP", "aucroc"])
def test_metrics_of_whole_splits_are_computed_anew(tmp_path, metric, monkeypatch):
    write_run(tmp_path / "a" / "tags-v1", outputs(75), metric=metric)
    write_run(tmp_path / "b" / "tags-v1", outputs(20), metric=metric)
    (test,) = made(tmp_path, resamples=199).tests
    assert (test.p, test.significant) == (pytest.approx(1 / 200), True)
    comparison = compare(read_runs([tmp_path]))
    scores = [comparison.scores[model, "tags-v1"].value for model in "ab"]
    assert test.difference == pytest.approx(scores[0] - scores[1])
    monkeypatch.setattr(significance, "BUDGET", 1000)
    (test,) = made(tmp_path).tests
    assert test.significant is None
    assert f"{metric} would have to be computed" in test.why


def test_exchanges_without_a_difference_count_against_one(tmp_path, monkeypatch):
    """Infinite scores leave inf - inf: the difference of alike models must not be significant."""
    for name, right in (("a", 75), ("b", 70)):
        write_run(tmp_path / name / "tags-v1", outputs(right), score=1.0, metric="d_prime")
    values = itertools.chain([2.0, 1.0], itertools.repeat(np.inf))
    compute = dataclasses.replace(METRICS["d_prime"], of_all=lambda *_: next(values))
    monkeypatch.setitem(METRICS, "d_prime", compute)
    (test,) = made(tmp_path, resamples=199).tests
    assert (test.difference, test.p, test.significant) == (1.0, 1.0, False)
    (test,) = made(tmp_path, resamples=199).tests  # now even what is seen is inf - inf
    assert (test.p, test.why) == (None, "d_prime of the predictions on disk is undefined")
    json_of(made(tmp_path, resamples=199))


@pytest.mark.parametrize("shape", [(CLIPS,), (), (CLIPS, CLASSES, 1), (CLIPS, CLASSES + 1)])
@pytest.mark.parametrize("both", [True, False])
def test_predictions_of_another_shape_are_not_tested(tmp_path, shape, both):
    for name in "ab":
        write_run(tmp_path / name / "digits-v1", outputs(40))
    path = tmp_path / "a" / "digits-v1" / "test.predictions.npz"
    wrong = np.zeros(shape, np.float32)
    right = np.eye(CLASSES, dtype=np.float32)[TRUTH]
    if both and shape == (CLIPS, CLASSES + 1):
        np.savez(path, target=np.zeros((CLIPS, CLASSES), np.float32), prediction=wrong)
    else:
        np.savez(path, target=wrong if both else right, prediction=wrong)
    (test,) = made(tmp_path).tests
    assert test.p is None
    assert re.search(r"the predictions of a .*holds a target of the shape \(.*--force", test.why)


def test_progress_counts_the_pairs(tmp_path):
    for name, right in (("a", 60), ("b", 52), ("c", 40)):
        write_run(tmp_path / name / "digits-v1", outputs(right))
    write_run(tmp_path / "a" / "alone-v1", outputs(60))
    told = []
    made(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_p_values_are_adjusted_to_one_another(tmp_path):
    for name, right in (("a", 60), ("b", 52), ("c", 40)):
        write_run(tmp_path / name / "digits-v1", outputs(right))
    tests = {(test.first, test.second): test for test in made(tmp_path).tests}
    raw = sorted(test.p for test in tests.values())
    adjusted = sorted(test.adjusted for test in tests.values())
    by_hand = [min(1.0, 3 * raw[0])]
    by_hand.append(max(by_hand[-1], min(1.0, 2 * raw[1])))
    by_hand.append(max(by_hand[-1], raw[2]))
    assert adjusted == pytest.approx(by_hand)


def test_where_nothing_can_be_said_it_is_said_why(tmp_path):
    a, b = tmp_path / "a" / "digits-v1", tmp_path / "b" / "digits-v1"
    write_run(a, outputs(40))
    write_run(b, outputs(60))
    files = json.loads((b / "test.json").read_text())
    (b / "test.json").write_text(
        json.dumps({f"other-{name}": each for name, each in files.items()})
    )
    (test,) = made(tmp_path).tests
    assert (test.p, test.significant, test.why) == (
        None,
        None,
        "the models were tested on different clips",
    )
    (b / "test.predictions.npz").write_bytes(b"PK")
    (test,) = made(tmp_path).tests
    assert "the predictions of b cannot be compared" in test.why
    assert "test.predictions.npz is broken; predict the task again" in test.why
    markdown = markdown_of(made(tmp_path))
    assert "| 0.5000 ? |" in markdown
    assert "not tested: the predictions of b" in markdown
    (b / "test.predictions.npz").unlink()
    assert "b has no predictions on disk (test.predictions.npz)" in made(tmp_path).tests[0].why


def test_events_are_not_tested(tmp_path):
    for name, score in (("a", 0.5), ("b", 0.25)):
        write_run(tmp_path / name / "beeps-v1", None, score=score, metric="event_onset_200ms_fms")
    (test,) = made(tmp_path).tests
    assert "events are counted over all files" in test.why


def test_many_sizes_of_differences_are_drawn_clip_by_clip(monkeypatch):
    differences = np.random.default_rng(0).standard_normal(30) + 0.2
    seen, drawn = significance._exchange_means(differences, 4000)
    assert seen == pytest.approx(differences.sum())
    assert drawn.std() == pytest.approx(np.sqrt((differences**2).sum()), rel=0.05)
    monkeypatch.setattr(significance, "GROUPS", 0)
    few = np.repeat([0.5, -0.25, 0.0], 10)
    _, one = significance._exchange_means(few, 4000)
    monkeypatch.setattr(significance, "GROUPS", 64)
    _, other = significance._exchange_means(few, 4000)
    assert one.std() == pytest.approx(other.std(), rel=0.05)


# --- tables and files -----------------------------------------------------------------------


def test_the_table_says_what_it_shows(root):
    report = made(root)
    scores, changes, tests = tables_of(report)
    assert scores.columns == ("task", "good", "poor")  # more tasks than models: tasks go down
    rows = {row[0]: row[1:] for row in scores.rows}
    assert rows["digits-v1 [↑ top1_acc]"] == ("0.8500 ±0.0354 *", "0.3500 ±0.0354")
    assert rows["where-v1 [↓ MAE (degrees)]"] == ("12.0000 ±2.8284 *", "42.0000 ±2.8284 ?")
    assert rows["noisy-v1 [↑ top1_acc]"] == ("0.6250 ±0.0000 *", "")
    assert rows["average of 1"] == ("0.8500", "0.3500")
    assert rows["mean rank of 2"] == ("1.00", "2.00")
    notes = " ".join(scores.notes)
    assert "standard deviation (n - 1) over 2 seeds" in notes
    assert "not in it: noisy-v1, where-v1" in notes
    assert changes.rows[0][3:] == ("0.8500", "0.6250", "-0.2250 ±0.0354", "2")
    assert tests.rows[0][:5] == ("digits-v1", "poor", "good", "-0.5000", str(CLIPS))
    assert tests.rows[0][-1] == "significant"
    assert tests.rows[1][-1].startswith("not tested: good has no predictions on disk")


def test_models_go_down_where_tasks_are_fewer(tmp_path):
    for name, right in (("a", 40), ("b", 41)):
        write_run(tmp_path / name / "digits-v1", outputs(right))
    (scores, _) = tables_of(made(tmp_path))
    assert scores.columns[:2] == ("model", "digits-v1 [↑ top1_acc]")
    assert [row[:2] for row in scores.rows] == [("a", "0.5000 ~"), ("b", "0.5125 *")]
    assert any("Without ±: one seed" in note for note in scores.notes)


def test_spread_of_several_kinds_is_marked(root):
    folds = {f"fold{i}": outputs(40 + i) for i in range(3)}
    write_run(root / "seed42" / "good" / "folded-v1", folds, splits=tuple(folds))
    scores = tables_of(made(root))[0]
    rows = {row[0]: row[1:] for row in scores.rows}
    assert rows["folded-v1 [↑ top1_acc]"][0] == "0.5125 ±0.0125 3f *"
    assert rows["digits-v1 [↑ top1_acc]"][0] == "0.8500 ±0.0354 2s *"
    assert any("3s: three of them" in note for note in scores.notes)


def test_files_hold_the_same(root, tmp_path):
    report = made(root)
    paths = write_report(report, tmp_path / "out.v1")
    assert [path.name for path in paths] == [f"out.v1.{e}" for e in ("md", "csv", "json", "tex")]
    assert write_report(report, tmp_path / "out.v1.tex") == paths
    assert write_report(report, tmp_path / "out.v1.md") == paths
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text(encoding="utf-8"))))
    assert ",".join(rows[0]) == (
        "model,task,metric,better,score,deviation,deviation_over,count,seeds,rank,best,"
        "difference_from_best,p,p_adjusted,clips,dry_task,dry,difference_from_dry,"
        "deviation_of_difference,source"
    )
    found = {(row["model"], row["task"]): row for row in rows}
    content = json.loads(paths[2].read_text(encoding="utf-8"))
    for each in content["scores"]:
        row = found[each["model"], each["task"]]
        assert float(row["score"]) == each["score"]
        assert float(row["deviation"]) == each["deviation"]
        assert row["seeds"] == "42 43"
        assert [run["seed"] for run in each["runs"]] == [42, 43]
    poor = found["poor", "digits-v1"]
    assert float(poor["difference_from_best"]) == pytest.approx(-0.5)
    assert (poor["better"], poor["best"], poor["clips"]) == ("more", "False", str(CLIPS))
    assert found["good", "noisy-v1"]["dry_task"] == "digits-v1"
    markdown = paths[0].read_text(encoding="utf-8")
    assert "**0.8500 ±0.0354**" in markdown
    assert str(root / "seed43" / "poor" / "where-v1") in markdown
    assert not list(tmp_path.glob(".*.partial"))


def test_a_report_that_cannot_be_written(root, tmp_path):
    with pytest.raises(OptionError, match="There is no folder"):
        write_report(made(root), tmp_path / "nowhere" / "out")


# --- names ----------------------------------------------------------------------------------


def write_model(embeddings, folder, module="gram_hear", model="", **options):
    """Write a run of digits-v1 whose embeddings say what made them."""
    task = write_run(embeddings / folder / "digits-v1", outputs(50))
    made = {"module": module, "model": model, "options": options}
    (task / "embeddings-done.json").write_text(json.dumps(made))
    return folder


def names_of(folder):
    return Report(compare(read_runs([folder]))).names


def test_models_are_shown_as_a_person_would_write_them(tmp_path):
    mean = write_model(
        tmp_path, "gram_hear-model=gram-tiny-strategy=mean", model="gram-tiny", strategy="mean"
    )
    deep = write_model(
        tmp_path,
        "gram_hear-model=gramt-binaural-12345678-strategy=raw-window-batch=4",
        model="labhamlet/gramt-binaural",
        strategy="raw",
        window_batch=4,
    )
    mine = write_model(
        tmp_path, "gram_hear-model=my-run-2-0a1b2c3d", model="/far/away/My_Run.2.safetensors"
    )
    alone = write_model(tmp_path, "logmel", "logmel")
    assert names_of(tmp_path) == {
        mean: "gram-tiny (mean)",
        deep: "gramt-binaural (raw, window batch 4)",
        mine: "My_Run.2",
        alone: "logmel",
    }
    report = Report(compare(read_runs([tmp_path])))
    assert [row[0] for row in tables_of(report)[0].rows] == list(report.names.values())
    axes = report_figure(report).axes[0]
    labels = [each.get_text().replace("\n", " ") for each in axes.get_yticklabels()]
    assert labels == list(report.names.values())
    # What they are in full stays in the files for programs.
    rows = list(csv.DictReader(io.StringIO(csv_of(report))))
    assert {row["model"] for row in rows} == {mean, deep, mine, alone}
    content = json.loads(json_of(report))
    assert content["models"] == [*report.names]
    assert content["shown_names"] == report.names


def test_options_of_prediction_stand_behind_those_of_the_model(tmp_path):
    folder = write_model(
        tmp_path, "gram_hear-model=gram-tiny-strategy=mean", model="gram-tiny", strategy="mean"
    )
    task = tmp_path / folder / "digits-v1"
    scores = {"test": {"test_score": 0.5, "test_top1_acc": 0.5}}
    (task / "test.predicted-scores-knn.json").write_text(json.dumps(scores))
    (task / "prediction-done-knn.json").write_text(json.dumps({"time": 1.0, "probe": "knn"}))
    assert list(names_of(tmp_path).values()) == [
        "gram-tiny (mean, shallow)",
        "gram-tiny (mean, knn)",
    ]


def test_different_models_never_share_a_shown_name(tmp_path):
    for folder in ("gram_hear-model=run-11111111", "gram_hear-model=run-22222222"):
        write_model(tmp_path, folder, model="run.safetensors")
    write_model(tmp_path, "gram_hear-model=tiny", model="tiny")
    write_model(tmp_path, "other-model=tiny", "other", model="tiny")
    write_model(tmp_path, "run-11111111", "run-11111111")
    names = names_of(tmp_path)
    assert len(set(names.values())) == len(names) == 5
    assert names["gram_hear-model=run-22222222"] == "run-22222222"
    assert names["gram_hear-model=run-11111111"] == "gram_hear-model=run-11111111"
    assert names["other-model=tiny"] == "other-model=tiny"


def test_folders_that_say_nothing_or_were_renamed_keep_their_names(tmp_path):
    renamed = write_model(tmp_path, "my-best", model="gram-tiny", strategy="mean")
    damaged = write_model(tmp_path, "gram_hear-model=gram-tiny", model="gram-tiny")
    done = tmp_path / damaged / "digits-v1" / "embeddings-done.json"
    done.write_text(json.dumps({"module": 3, "model": ["gram-tiny"], "options": "mean"}))
    write_run(tmp_path / "gram_hear-model=kit" / "digits-v1", outputs(50))
    names = names_of(tmp_path)
    assert all(own == shown for own, shown in names.items())
    assert renamed in names


# --- LaTeX ----------------------------------------------------------------------------------


def tabulars(text):
    """The tables of a LaTeX file: alignment, and rows of cells; its structure is checked."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", text)  # without what is escaped
    depth = 0
    for each in plain:
        depth += (each == "{") - (each == "}")
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    tables = []
    bodies = re.findall(r"\\begin\{tabular\}\{([lc]+)\}\n(.*?)\n\\end\{tabular\}", text, re.S)
    for alignment, body in bodies:
        lines = body.split("\n")
        rules = [line for line in lines if line.endswith("rule")]
        assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
        assert (lines[0], lines[-1]) == (rules[0], rules[-1])
        rows = [line for line in lines if not line.endswith("rule")]
        assert all(row.endswith(r" \\") for row in rows)
        assert not any(re.match(r"[\[*]", row) for row in rows)  # an option of \\
        cells = [re.split(r"(?<!\\) & ", row.removesuffix(r" \\")) for row in rows]
        assert {len(row) for row in cells} == {len(alignment)}
        for cell in itertools.chain(*cells):
            outside = re.sub(r"\$[^$]*\$", "", re.sub(r"\\[&%$#_{}]", "", cell))
            outside = re.sub(r"\\text\w+\{\}|\{[\[\]*-]\}", "", outside)
            assert not re.search(r"[\\&%$#_^~<>|\"{}]", outside), cell
        tables.append(cells)
    return tables


def test_the_latex_table_has_the_best_in_bold_and_says_what_marks_mean(root):
    scores, scenes = tabulars(latex_of(made(root)))
    assert scores[0] == ["Task", "Metric", "good", "poor"]  # more tasks than models
    assert scores[1] == [
        "digits-v1",
        r"$\uparrow$ top1\_acc",
        r"$\mathbf{0.850} \pm 0.035$",
        r"$0.350 \pm 0.035$",
    ]
    assert scores[2][3] == "--"
    assert scores[3][1:] == [
        r"$\downarrow$ MAE (degrees)",
        r"$\mathbf{12.000} \pm 2.828$",
        r"$42.000 \pm 2.828^{\ddagger}$",
    ]
    assert [row[0] for row in scores[4:]] == ["average", "mean rank"]
    assert scenes[1][2:] == ["good", "$0.850$", "$0.625$", r"$-0.225 \pm 0.035$"]
    text = latex_of(made(root))
    assert r"% In the preamble: \usepackage{booktabs}" in text
    caption = re.search(r"\\caption\{(.*)\}\n", text)[1]
    assert "Bold: the best of a task." in caption
    assert r"$\pm$: the standard deviation ($n - 1$) over 2 seeds" in caption
    assert r"$^{\ddagger}$: could not be tested" in caption
    assert "dagger}$: not significantly" not in caption  # there is no such mark


def test_models_go_down_in_latex_where_tasks_are_fewer_and_insignificance_is_marked(tmp_path):
    for name, right in (("a", 40), ("b", 41)):
        write_run(tmp_path / name / "digits-v1", outputs(right))
    path = tmp_path / "published.json"
    path.write_text(json.dumps(PUBLISHED))
    report = made(tmp_path)
    text = latex_of(Report(report.comparison, report.tests, read_published(path)))
    (rows,) = tabulars(text)
    assert rows[:2] == [
        ["Model", "digits-v1", "average", "mean rank"],
        ["", r"$\uparrow$ top1\_acc", "of 1", "of 1"],
    ]
    assert [row[:2] for row in rows[2:]] == [
        ["a", r"$0.500^{\dagger}$"],
        ["b", r"$\mathbf{0.512}$"],
        ["Theirs (published)", "$0.900$"],
    ]
    assert r"$^{\dagger}$: not significantly different from the best" in text
    assert r"\pm" not in text


@pytest.mark.parametrize("name", ["[a]_b&c%d", "*#{}$x", "~^<|>", "back\\slash", "a -- b---c"])
def test_names_are_escaped_in_latex(tmp_path, name):
    try:
        write_run(tmp_path / name / "digits-v1", outputs(40))
    except OSError:
        pytest.skip("the file system takes no such name")
    write_run(tmp_path / "other" / "digits-v1", outputs(50))
    (rows,) = tabulars(latex_of(made(tmp_path, resamples=199)))
    assert len(rows) == 4
    back = rows[2 if rows[3][0] == "other" else 3][0]
    for command, each in {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~"}.items():
        back = back.replace(command, each)
    back = back.replace(r"\textasciicircum{}", "^").replace(r"\textless{}", "<")
    back = back.replace(r"\textgreater{}", ">").replace(r"\textbar{}", "|")
    assert "--" not in back  # a dash
    back = re.sub(r"\{([\[\]*-])\}", r"\1", back)
    assert re.sub(r"\\([&%$#_{}])", r"\1", back) == name


@pytest.mark.parametrize(
    "name", ["new\nline", "\x01\x1b[31m", "tab\tand\x85", b"\xff".decode(errors="surrogateescape")]
)
def test_names_that_no_text_can_hold_are_shown(tmp_path, name):
    """With "?" for control characters; lines of tables stay whole."""
    try:
        write_run(tmp_path / name / "digits-v1", outputs(40))
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such name")
    write_run(tmp_path / "other" / "digits-v1", outputs(50))
    write_run(tmp_path / "other" / name, outputs(50))  # which the notes say is in no average
    report = made(tmp_path, resamples=199)
    assert tabulars(latex_of(report))
    write_report(report, tmp_path / "report")
    markdown = markdown_of(report)
    assert len({len(line.split(" | ")) for line in markdown.splitlines()[4:8]}) == 1
    for text in (latex_of(report), markdown):
        text.encode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    save_figure(report_figure(report), tmp_path / "report.svg")
    ElementTree.parse(tmp_path / "report.svg")


# --- published ------------------------------------------------------------------------------


def test_published_scores_have_sources():
    models = read_published()
    assert len(models) == 30
    assert all("leaderboard" in model.source for model in models)
    assert all(model.url.startswith("https://github.com/hearbenchmark/") for model in models)
    assert all(0 <= score <= 1 for model in models for score in model.scores.values())
    (openl3,) = choose_published(models, ["openl3"])
    assert openl3.score("esc50-v2.0.0-full", "top1_acc") == 0.7505000114
    assert openl3.score("esc50-v2.0.0-full", "mAP") is None  # by another metric: nothing
    assert openl3.score("beehive_states_fold0-v2-full", "aucroc") is None
    assert choose_published(models, ["ALL"]) == models
    with pytest.raises(OptionError, match="Did you mean 'OpenL3'"):
        choose_published(models, ["OpenL2"])


PUBLISHED = {
    "sources": {"paper": {"title": "A paper", "url": "https://example.org/paper"}},
    "tasks": {"digits-v1": {"metric": "top1_acc"}},
    "models": [{"name": "Theirs", "source": "paper", "scores": {"digits-v1": 0.9}}],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": {}},
        {"tasks": {}},
        {"tasks": {"digits-v1": {"metric": "accuracy"}}},
        {"models": [{"name": "Theirs", "scores": {"digits-v1": 0.9}}]},
        {"models": [{"name": "Theirs", "source": "paper", "scores": {"digits-v1": "high"}}]},
        {"models": [{"name": "Theirs", "source": "paper", "scores": {"digits-v1": float("nan")}}]},
        {"models": 3},
    ],
)
def test_published_files_without_what_they_need_are_refused(tmp_path, changes):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(PUBLISHED | changes))
    with pytest.raises(OptionError, match=r"published\.json"):
        read_published(path)


def test_published_scores_stand_beside(root, tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(PUBLISHED))
    report = made(root)
    report = Report(report.comparison, report.tests, read_published(path))
    table = tables_of(report)[-1]
    assert (table.columns, table.rows) == (("published model", "digits-v1"), [("Theirs", "0.9000")])
    assert "Source: A paper, https://example.org/paper" in table.notes
    last = list(csv.DictReader(io.StringIO(csv_of(report))))[-1]
    assert (last["model"], last["score"], last["source"]) == (
        "Theirs",
        "0.9",
        "https://example.org/paper",
    )
    assert json.loads(json_of(report))["published"][0]["scores"] == {"digits-v1": 0.9}
    assert report.comparison.best("digits-v1") == ("good",)  # what others measured has no rank
    axes = report_figure(report).axes[0]
    assert [each.get_text() for each in axes.get_yticklabels()] == [
        "good",
        "poor",
        "Theirs (published)",
    ]
    assert any(list(line.get_xdata()) == [0.9] for line in axes.lines)
    theirs = tables_of(Report(report.comparison, (), read_published()))[-1]
    assert theirs.rows == []
    assert "No score of these tasks is published" in theirs.notes[0]


# --- the picture and the command ------------------------------------------------------------


def test_the_picture_shows_scores_spread_and_dry(root):
    report = made(root)
    figure = report_figure(report)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["digits-v1", "noisy-v1", "where-v1"]
    assert [text.get_text() for text in panels["digits-v1"].get_yticklabels()] == ["good", "poor"]
    dots = [line.get_xdata() for line in panels["noisy-v1"].lines]
    assert any(np.isclose(x, 68 / CLIPS).any() for x in dots)
    bars = panels["digits-v1"].containers[0].lines[2][0].get_segments()[0][:, 0]
    assert bars[1] - bars[0] == pytest.approx(2 * np.std([70 / CLIPS, 66 / CLIPS], ddof=1))
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["score; bar: ± standard deviation over 2 seeds", "score on the dry clips"]
    assert panels["where-v1"].get_xlabel() == "MAE (degrees, 0 to 180)\n← lower is better"
    assert panels["digits-v1"].get_xlabel() == "top1_acc (0 to 1)\nhigher is better →"


def test_names_of_many_lines_do_not_overlap(tmp_path):
    for name in ("a", f"b{'n' * 200}", "c", "d"):
        write_run(tmp_path / name / "digits-v1", outputs(50))
    figure = report_figure(made(tmp_path))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(one.y0 >= other.y1 for one, other in itertools.pairwise(boxes))


def test_panels_of_a_metric_share_a_range_within_its_bounds(root):
    write_run(root / "seed42" / "good" / "easy-v1", outputs(CLIPS))
    report = made(root, resamples=199)
    theirs = Published("x", "paper", "", {"digits-v1": 0.1}, {"digits-v1": "top1_acc"})
    for published in ([], [theirs]):
        figure = report_figure(Report(report.comparison, report.tests, published))
        limits = {
            axes.get_title(loc="left"): axes.get_xlim()
            for axes in figure.axes
            if axes.get_visible()
        }
        assert limits["digits-v1"] == limits["noisy-v1"] == limits["easy-v1"]
        low, high = limits["digits-v1"]
        assert high == 1
        assert (low < 0.1) == bool(published)
        low, high = limits["where-v1"]
        assert 0 <= low < 10
        assert 44 < high < 60


def test_models_that_all_tie_are_said_to_be_equal(tmp_path):
    for name in "abc":
        write_run(tmp_path / name / "digits-v1", outputs(40))
    scores, tests = tables_of(made(tmp_path))
    assert [row[1] for row in scores.rows] == ["0.5000 *"] * 3
    assert not any("Holm" in note for note in scores.notes)
    assert (tests.title, tests.rows) == ("Against the best", [])
    assert tests.notes == ["All models are equal on every task that several have."]
    low, high = report_figure(made(tmp_path)).axes[0].get_xlim()
    assert low < 0.5 < high


def test_long_names_of_tasks_and_models_do_not_overlap(tmp_path):
    for model in (
        "a",
        "gram_hear-model=a-name-that-is-as-long-as-names-of-files-may-well-be-1a2b3c4d",
    ):
        for task in ("digits-v1", "speech_commands-v0.0.2-5h-binaural-localization", "noisy" * 9):
            write_run(tmp_path / model / task, outputs(50))
    figure = report_figure(made(tmp_path, resamples=199))
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3
    texts = [axes._left_title for axes in panels]  # matplotlib has no other name
    texts += [axes.xaxis.label for axes in panels] + list(figure.legends)
    texts += panels[0].get_yticklabels()
    boxes = [text.get_window_extent() for text in texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command(root, tmp_path):
    done = run("report", root, "-o", tmp_path / "out", "--plot", tmp_path / "out.png")
    assert done.exit_code == 0, done.output
    assert "0.8500 ±0.0354 *" in done.stdout
    assert "Against the best" in done.stdout
    assert "pairs of models" in done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out.json").read_text())["models"] == ["good", "poor"]
    as_json = run("report", root, "--json", "--task", "digits", "--resamples", 0)
    content = json.loads(as_json.stdout)
    assert ([each["task"] for each in content["tasks"]], content["tests"]) == (["digits-v1"], [])
    beside = run("report", root, "--published", "openl3,CREPE")
    assert "No score of these tasks is published" in beside.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.svg", "a.pdf", "a.png"])
def test_the_picture_is_the_same_each_time(root, tmp_path, name):
    for turn in "12":
        assert (
            run("report", root, "--resamples", 0, "--plot", tmp_path / f"{turn}{name}").exit_code
            == 0
        )
    first, second = ((tmp_path / f"{turn}{name}").read_bytes() for turn in "12")
    assert first == second


def test_gaps_are_warned_of(root):
    with pytest.warns(UserWarning, match=r"poor lacks noisy-v1.*2 of 3 tasks"):
        run("report", root)


def test_models_of_several_versions_are_warned_of(root):
    for folder in root.glob("seed*/*/*"):
        code = "old" if folder.match("seed43/good/*") else "new"
        made = {"module": folder.parent.name, "module_code": code}
        (folder / "embeddings-done.json").write_text(json.dumps(made))
    with pytest.warns(UserWarning, match="good: not all embeddings") as said:
        run("report", root)
    found = [str(each.message) for each in said if "same version" in str(each.message)]
    assert len(found) == 1
    assert re.search(r"seed42.good.\S* differs from .*seed43.*in the code of good\.", found[0])
    (root / "seed42" / "good" / "digits-v1" / "embeddings-done.json").write_text(json.dumps(made))
    (change,) = compare(read_runs([root])).changes
    assert change.count == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resamples", "5"), "needs 199 or more"),
        (("--published", "nobody"), "No scores of 'nobody'"),
        (("--task", "nothing"), "No model has results of 'nothing'"),
        (("--plot", "nowhere/x.png"), "There is no folder nowhere"),
        (("--plot", "x.jpg"), "x.jpg must end in .png, .svg or .pdf."),
        (("-o", "nowhere/x.tex"), "There is no folder nowhere"),
        *((("-o", folder), "a folder; give the name of the files") for folder in ("", ".", "..")),
    ],
)
def test_bad_options_are_refused(root, arguments, words):
    done = run("report", root, *arguments)
    assert done.exit_code == 1
    assert words in str(done.exception)
    assert "pairs of models" not in done.stderr  # found before any work is done


# --- output that fails ----------------------------------------------------------------------


@pytest.fixture
def run_report(root, tmp_path, monkeypatch):
    """Return a function that runs hear-eval report into a stream, and checks what it wrote."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # is replaced
    command = ["hear-eval", "report", str(root), "--resamples", "0", "-o", str(tmp_path / "rx")]
    monkeypatch.setattr(sys, "argv", command)

    def run(stream):
        monkeypatch.setattr(sys, "stdout", stream)
        code = hear_eval()
        assert sys.stdout is stream
        assert {path.name for path in tmp_path.glob("rx*")} == {
            "rx.md",
            "rx.csv",
            "rx.json",
            "rx.tex",
        }
        return code

    return run


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_what_a_console_cannot_show_is_replaced(run_report, encoding):
    shown = io.BytesIO()
    assert run_report(io.TextIOWrapper(shown, encoding=encoding)) == 0
    text = shown.getvalue().decode(encoding, "replace")
    assert "digits-v1 [?" in text  # an arrow
    assert "0.8500" in text


def test_output_that_is_closed_is_not_missed(run_report):
    assert run_report(None) == 0


def test_a_reader_that_leaves_ends_nothing(run_report, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    assert run_report(os.fdopen(writer, "w")) == 0
    assert "error" not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no /dev/full")
def test_a_full_disk_is_said_when_all_is_done(run_report, capsys):
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert run_report(full) == 1
    said = capsys.readouterr().err
    assert "error: The output could not be written: No space left on device." in said
    assert "Traceback" not in said


def test_messages_that_cannot_be_written_end_nothing(run_report, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w"))
    assert run_report(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == 0
