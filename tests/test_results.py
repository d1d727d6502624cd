"""The table of a module's scores: from several tasks, and from broken files."""

import json
import re

import pytest

from gram_hear.errors import TaskError
from gram_hear.evaluation.compare.results import (
    COLUMNS,
    DRY_COLUMNS,
    RESULTS_FILE,
    RESULTS_TABLE,
    columns_of,
    heading_of,
    read_result,
    read_results,
    rows_of,
    warn_of_versions,
    write_results,
)
from gram_hear.jobs import writing

DONE = {"time": 90.0, "grid": "fast", "grid_points": 8, "seed": 42, "shuffle": False}
TEST = {"test_loss": 0.5, "test_score": 0.75, "test_top1_acc": 0.75, "validation_score": 0.9}
FOLDED = {"test_loss_mean": 0.5, "test_score_mean": 0.7, "test_score_std": 0.0125}


def write_table(folder):
    """Write the results of a module's folder, and return them."""
    results = read_results(folder)
    write_results(folder, "my.module", results)
    return results


def write_scores(folder, scores, metric="top1_acc", done=DONE, localisation=False, source=None):
    """Write what a predicted task has, as far as the report reads it; strings as they are."""
    folder.mkdir(parents=True)
    natural = {} if source is None else {"naturalistic": {"source": source}}
    ending = "-localization" if localisation else ""
    for name, content in {
        "task_metadata.json": {"evaluation": [metric], **natural},
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


def test_results_are_written_for_programs_and_for_people(module_folder):
    write_table(module_folder)
    written = json.loads((module_folder / RESULTS_FILE).read_text())
    assert written["module"] == "my.module"
    assert [each["task"] for each in written["results"]] == ["beeps", "esc50", "tags", "where"]
    assert written["results"][1]["deviation"] == 0.0125
    assert written["results"][2]["score"] is None
    assert written["results"][3]["scores"] == {"test_score": 12.5, "test_MAE": 12.5}
    assert written["results"][3]["metric"] == "MAE"
    lines = (module_folder / RESULTS_TABLE).read_text().splitlines()
    assert "| where | MAE (degrees, lower is better) | 12.5000 |  | 1.5 |" in lines
    assert lines[:6] == [
        "# my.module",
        "",
        "Predicted with grid fast, 8 grid points, seed 42, training rows in order. "
        "Minutes are those of prediction.",
        "",
        "| task | metric | score | deviation | minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    assert lines[7] == "| esc50 | top1_acc | 0.7000 | 0.0125 | 1.5 |"
    assert len(lines) == 10
    write_table(module_folder)  # again, over what is there
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
        ({"test": TEST}, DONE | {"time": float("nan")}),
        ({"test": TEST}, DONE | {"grid_points": [8]}),
        ({"test": TEST, "aggregated_scores": 3}, DONE),
        (["aggregated_scores"], DONE),
    ],
)
def test_broken_files_are_named(tmp_path, scores, done):
    folder = write_scores(tmp_path / "beeps", scores, done=done)
    with pytest.raises(TaskError, match=r"beeps.*\.json.*Predict the task again"):
        read_result(folder)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_what_strict_json_cannot_hold_is_missing(tmp_path, score):
    """The kit writes NaN and Infinity."""
    write_scores(tmp_path / "tags", {"test": {"test_score": score, "test_d_prime": score}})
    aggregated = {"test_score_mean": score, "test_score_std": score}
    folds = {"fold00": TEST, "fold01": TEST | {"test_score": score}}
    write_scores(tmp_path / "esc50", folds | {"aggregated_scores": aggregated})
    esc50, tags = write_table(tmp_path)
    assert (tags.score, tags.scores) == (None, {"test_score": None, "test_d_prime": None})
    assert (esc50.score, esc50.deviation, esc50.folds) == (None, None, (0.75, None))
    assert [row[2:4] for row in rows_of([esc50, tags])] == [("undefined", "")] * 2
    text = (tmp_path / RESULTS_FILE).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["results"][1]["score"] is None


def test_broken_tasks_are_left_out_with_a_warning(module_folder):
    (module_folder / "beeps" / "test.predicted-scores.json").write_text("{")
    with pytest.warns(UserWarning, match=r"beeps.*Its scores are left out"):
        results = write_table(module_folder)
    assert [result.task for result in results] == ["esc50", "tags", "where"]


def test_nothing_is_written_about_nothing(tmp_path):
    assert write_table(tmp_path) == []
    assert write_table(tmp_path / "nowhere") == []
    assert not list(tmp_path.iterdir())


def test_metadata_without_a_metric_is_refused(tmp_path):
    folder = write_scores(tmp_path / "beeps", {"test": TEST})
    for content in ("{}", '{"evaluation": []}', "3"):
        (folder / "task_metadata.json").write_text(content)
        with pytest.raises(TaskError, match="Predict the task again"):
            read_result(folder)


def test_natural_scenes_stand_beside_their_dry_task(module_folder):
    """Where both were run by the same metric and plan, and have a score."""
    natural = {"test": TEST | {"test_score": 0.5}}
    write_scores(module_folder / "beeps-binaural", natural, source="beeps")
    write_scores(module_folder / "beeps-where", natural, "DOA", source="beeps")
    other = DONE | {"grid": "faster"}
    write_scores(module_folder / "beeps-faster", natural, done=other, source="beeps")
    write_scores(module_folder / "lost-binaural", natural, source="lost")
    write_scores(module_folder / "tags-binaural", natural, "d_prime", source="tags")
    undefined = {"test": TEST | {"test_score": None}}
    write_scores(module_folder / "esc50-binaural", undefined, source="esc50")
    results = {result.task: result for result in write_table(module_folder)}
    beside = {
        task: (result.dry, result.difference)
        for task, result in results.items()
        if result.source is not None
    }
    assert beside == {
        "beeps-binaural": (0.75, -0.25),
        "beeps-where": (None, None),
        "beeps-faster": (None, None),
        "lost-binaural": (None, None),
        "tags-binaural": (None, None),
        "esc50-binaural": (0.7, None),
    }
    written = json.loads((module_folder / RESULTS_FILE).read_text())["results"]
    (found,) = (each for each in written if each["task"] == "beeps-binaural")
    assert (found["source"], found["dry"], found["difference"]) == ("beeps", 0.75, -0.25)
    table = (module_folder / RESULTS_TABLE).read_text().splitlines()
    assert table[4] == "| task | metric | score | deviation | dry | difference | grid | minutes |"
    assert "| beeps-binaural | top1_acc | 0.5000 |  | 0.7500 | -0.2500 | fast | 1.5 |" in table
    assert "| beeps | top1_acc | 0.7500 |  |  |  | fast | 1.5 |" in table
    assert "| esc50-binaural | top1_acc | undefined |  | 0.7000 |  | fast | 1.5 |" in table
    assert "| beeps-faster | top1_acc | 0.5000 |  |  |  | faster | 1.5 |" in table


def made_by(folder, **changes):
    """Write down what the embeddings in a folder are made of."""
    said = {"module": "mine", "module_code": "1" * 64, "options": {}, "task_sha256": folder.name}
    (folder / "embeddings-done.json").write_text(json.dumps(said | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"module_code": "2" * 64}, "in the code of mine"),
        ({"model_sha256": "2" * 64}, ""),  # version 0.1.0 did not write all down
        ({"options": {"layer": 1}}, r"in the options \(--model-options\)"),
        ({"embedding_size": 3, "seconds": 2.0}, ""),
    ],
)
def test_scenes_embedded_by_another_version_do_not_stand_beside_their_dry_task(
    module_folder, changes, words
):
    write_scores(module_folder / "beeps-binaural", {"test": TEST}, source="beeps")
    made_by(module_folder / "beeps")
    made_by(module_folder / "beeps-binaural", **changes)
    results = read_results(module_folder)
    (found,) = (result for result in results if result.source)
    called = [(result.task, result) for result in results]
    if not words:
        assert (found.dry, found.difference) == (0.75, 0.0)
        warn_of_versions("mine", called)
        return
    assert (found.dry, found.difference) == (None, None)
    assert not set(columns_of(results)) & set(DRY_COLUMNS)
    with pytest.warns(UserWarning, match="mine: not all") as said:
        warn_of_versions("mine", called)
    (warning,) = said
    assert re.search(
        rf"beeps differs from beeps-binaural {words}\. Not compared with the dry task: "
        r"beeps-binaural\. hear-eval --force embeds again",
        str(warning.message),
    )
    with pytest.warns(UserWarning, match=f"beeps-binaural differs from its dry task {words}"):
        warn_of_versions("mine", [("beeps-binaural", found)])


def test_without_dry_tasks_the_table_has_no_place_for_them(module_folder):
    assert columns_of(read_results(module_folder)) == COLUMNS
    write_scores(module_folder / "beeps-binaural", {"test": TEST}, source="beeps")
    assert set(columns_of(read_results(module_folder))) == {*COLUMNS, *DRY_COLUMNS}
    (module_folder / "beeps" / "prediction-done.json").unlink()
    assert columns_of(read_results(module_folder)) == COLUMNS


@pytest.mark.parametrize("natural", [None, 3, [], {}])
def test_broken_words_on_the_making_are_named(tmp_path, natural):
    folder = write_scores(tmp_path / "beeps", {"test": TEST})
    metadata = {"evaluation": ["top1_acc"], "naturalistic": natural}
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(TaskError, match="Predict the task again"):
        read_result(folder)


@pytest.mark.parametrize(
    ("changes", "columns", "words"),
    [
        ({"grid": "faster"}, {"grid": "faster"}, "8 grid points, seed 42, training rows in order"),
        ({"grid_points": 2}, {"points": "2"}, "grid fast, seed 42, training rows in order"),
        ({"seed": 43}, {"seed": "43"}, "grid fast, 8 grid points, training rows in order"),
        ({"shuffle": True}, {"shuffled": "yes"}, "grid fast, 8 grid points, seed 42"),
        (
            {"grid": "faster", "grid_points": 2, "seed": 43, "shuffle": True},
            {"grid": "faster", "points": "2", "seed": "43", "shuffled": "yes"},
            None,
        ),
    ],
)
def test_what_was_predicted_in_another_way_says_so(module_folder, changes, columns, words):
    write_scores(module_folder / "other", {"test": TEST}, done=DONE | changes)
    results = read_results(module_folder)
    assert columns_of(results) == (*COLUMNS[:-1], *columns, COLUMNS[-1])
    rows = {row[0]: row for row in rows_of(results)}
    assert rows["other"] == ("other", "top1_acc", "0.7500", "", *columns.values(), "1.5")
    assert all(len(row) == len(rows["other"]) for row in rows.values())
    start = f"Predicted with {words}. " if words else ""
    assert heading_of(results) == f"{start}Minutes are those of prediction."


def test_scores_of_the_kit_have_no_known_seed(tmp_path):
    """It has one, and does not write it down."""
    kit = {"time": 90.0, "grid": "fast", "grid_points": 8}
    write_scores(tmp_path / "beeps", {"test": TEST}, done=kit)
    assert "seed unknown" in heading_of(read_results(tmp_path))
    write_scores(tmp_path / "esc50", {"test": TEST})
    assert [row[4] for row in rows_of(read_results(tmp_path))] == ["", "42"]


def test_a_folder_that_cannot_be_written(module_folder, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    results = read_results(module_folder)
    monkeypatch.setattr(writing, "write_whole", refuse)
    with pytest.raises(TaskError, match=r"results\.json.*my\.module: Permission denied"):
        write_results(module_folder, "my.module", results)
