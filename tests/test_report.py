"""The table of a module's scores: from several tasks, and from broken files."""

import json

import pytest

from gram_hear.errors import TaskError
from gram_hear.evaluation.report import (
    COLUMNS,
    RESULTS_FILE,
    RESULTS_TABLE,
    read_result,
    read_results,
    rows_of,
    write_results,
)

DONE = {"time": 90.0, "grid": "fast", "grid_points": 8, "seed": 42, "shuffle": False}
TEST = {"test_loss": 0.5, "test_score": 0.75, "test_top1_acc": 0.75, "validation_score": 0.9}
FOLDED = {"test_loss_mean": 0.5, "test_score_mean": 0.7, "test_score_std": 0.0125}


def write_scores(folder, scores, metric="top1_acc", done=DONE, localisation=False):
    """Write what a predicted task has, as far as the report reads it; strings as they are."""
    folder.mkdir(parents=True)
    ending = "-localization" if localisation else ""
    for name, content in {
        "task_metadata.json": {"evaluation": [metric]},
        f"test.predicted-scores{ending}.json": scores,
        "prediction-done.json": done,
    }.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return folder


@pytest.fixture
def module_folder(tmp_path):
    """A module's folder: one test, folds, localisation, an undefined score, one not predicted."""
    folder = tmp_path / "my.module"
    write_scores(folder / "esc50", {"fold00": TEST, "aggregated_scores": FOLDED}, done=DONE)
    write_scores(folder / "beeps", {"test": TEST})
    directions = {"test": {"test_score": 12.5, "test_MAE": 12.5}}
    write_scores(folder / "where", directions, "MAE", localisation=True)
    undefined = {"test": {"test_score": None, "test_d_prime": None}, "notes": {"test": "infinity"}}
    write_scores(folder / "tags", undefined, "d_prime")
    write_scores(folder / "waiting", {"test": TEST}, done=None)
    (folder / "empty").mkdir()
    return folder


def test_a_result_is_read(module_folder):
    result = read_result(module_folder / "beeps")
    assert (result.task, result.metric, result.score) == ("beeps", "top1_acc", 0.75)
    assert (result.deviation, result.minutes) == (None, 1.5)
    assert (result.grid, result.grid_points, result.seed, result.shuffle) == ("fast", 8, 42, False)
    assert result.scores == {"test_loss": 0.5, "test_score": 0.75, "test_top1_acc": 0.75}


def test_folds_have_a_mean_and_a_deviation(module_folder):
    result = read_result(module_folder / "esc50")
    assert (result.score, result.deviation) == (0.7, 0.0125)
    assert result.scores == FOLDED


def test_what_is_not_predicted_has_no_result(module_folder):
    assert read_result(module_folder / "waiting") is None
    assert read_result(module_folder / "empty") is None
    assert [result.task for result in read_results(module_folder)] == [
        "beeps",
        "esc50",
        "tags",
        "where",
    ]


def test_rows_are_for_people(module_folder):
    assert rows_of(read_results(module_folder)) == [
        ("beeps", "top1_acc", "0.7500", "", "1.5"),
        ("esc50", "top1_acc", "0.7000", "0.0125", "1.5"),
        ("tags", "d_prime", "undefined", "", "1.5"),
        ("where", "MAE", "12.5000", "", "1.5"),
    ]
    assert all(len(row) == len(COLUMNS) for row in rows_of(read_results(module_folder)))


def test_results_are_written_for_programs_and_for_people(module_folder):
    results = write_results(module_folder, "my.module")
    assert results == read_results(module_folder)
    written = json.loads((module_folder / RESULTS_FILE).read_text())
    assert written["module"] == "my.module"
    assert [each["task"] for each in written["results"]] == ["beeps", "esc50", "tags", "where"]
    assert written["results"][1]["deviation"] == 0.0125
    assert written["results"][2]["score"] is None
    assert written["results"][3]["scores"] == {"test_score": 12.5, "test_MAE": 12.5}
    lines = (module_folder / RESULTS_TABLE).read_text().splitlines()
    assert lines[:4] == [
        "# my.module",
        "",
        "| task | metric | score | deviation | minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    assert lines[5] == "| esc50 | top1_acc | 0.7000 | 0.0125 | 1.5 |"
    assert len(lines) == 8
    write_results(module_folder, "my.module")  # again, over what is there
    assert not list(module_folder.glob(".*"))


@pytest.mark.parametrize(
    ("scores", "done"),
    [
        ("{", DONE),
        ("\0", DONE),
        (None, DONE),
        ([], DONE),
        ({}, DONE),
        ({"test": {"test_top1_acc": 1.0}}, DONE),
        ({"test": 0.5}, DONE),
        ({"aggregated_scores": {"test_score_mean": 1.0}}, DONE),
        ({"test": {"test_score": "good"}}, DONE),
        ({"test": TEST}, "["),
        ({"test": TEST}, []),
        ({"test": TEST}, {"grid": "fast", "grid_points": 8}),
        ({"test": TEST}, DONE | {"time": "long"}),
    ],
)
def test_broken_files_are_named(tmp_path, scores, done):
    folder = write_scores(tmp_path / "beeps", scores, done=done)
    with pytest.raises(TaskError, match=r"beeps.*\.json.*Predict the task again"):
        read_result(folder)


def test_broken_tasks_are_left_out_with_a_warning(module_folder):
    (module_folder / "beeps" / "test.predicted-scores.json").write_text("{")
    with pytest.warns(UserWarning, match=r"beeps.*Its scores are left out"):
        results = write_results(module_folder, "my.module")
    assert [result.task for result in results] == ["esc50", "tags", "where"]


def test_nothing_is_written_about_nothing(tmp_path):
    assert write_results(tmp_path, "my.module") == []
    assert write_results(tmp_path / "nowhere", "my.module") == []
    assert not list(tmp_path.iterdir())


def test_metadata_without_a_metric_is_refused(tmp_path):
    folder = write_scores(tmp_path / "beeps", {"test": TEST})
    for content in ("{}", '{"evaluation": []}', "3"):
        (folder / "task_metadata.json").write_text(content)
        with pytest.raises(TaskError, match="Predict the task again"):
            read_result(folder)
