"""Nearest neighbours: votes against scikit-learn; files, folds and errors of the probe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hear_tasks import FOLDS, LABELS, write_embeddings, write_task
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from typer.testing import CliRunner

from gram_hear.commands.hear_eval.app import app
from gram_hear.errors import OptionError, TaskError
from gram_hear.evaluation.compare.results import (
    columns_of,
    heading_of,
    read_result,
    read_results,
    rows_of,
)
from gram_hear.evaluation.embed.embed_task import _discard
from gram_hear.evaluation.predict import knn
from gram_hear.evaluation.predict.data import Examples, Rows
from gram_hear.evaluation.predict.knn import (
    NEIGHBOURS,
    TEMPERATURE,
    NeighbourProbe,
    neighbour_votes,
)
from gram_hear.evaluation.predict.prediction import is_predicted, predict_task
from gram_hear.evaluation.predict.score_files import FILES
from gram_hear.jobs.locks import locked
from gram_hear.tasks import read_task

DONE_FILE, SCORES_FILE = FILES["knn"].marker, FILES["knn"].scores


def one_hot(labels, classes):
    return torch.eye(classes)[torch.as_tensor(labels).long()]


def examples(rows, labels, classes):
    return Examples(Rows([torch.as_tensor(rows).float()]), one_hot(labels, classes))


def reference(training, labels, test, classes, neighbours=NEIGHBOURS, temperature=TEMPERATURE):
    """scikit-learn's classifier on rows of length 1, with X-ARES's weights."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (training, test)]

    def weights(distances):  # cosine distance is 1 less the similarity
        similarity = (1 - distances) / temperature
        powers = np.exp(similarity - similarity.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    model = KNeighborsClassifier(neighbours, metric="cosine", weights=weights, algorithm="brute")
    found = model.fit(unit[0], labels).predict_proba(unit[1])
    votes = np.zeros((len(test), classes))
    votes[:, model.classes_] = found
    return votes


def test_votes_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 300)
    training = random.standard_normal((300, 12)) + 0.5 * np.eye(7, 12)[labels]
    test = random.standard_normal((50, 12))
    votes = neighbour_votes(examples(training, labels, 7), Rows([torch.tensor(test).float()]))
    np.testing.assert_allclose(votes, reference(training, labels, test, 7), atol=2e-5)


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40), neighbours=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_blocks_change_nothing(seed, rows, neighbours):
    """Also where rows are equal: of equals the first ones vote, whatever the blocks are."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    training = random.integers(-1, 2, (rows, 3)).astype(float)  # many are equal, or zero
    found = examples(training, labels, 3)
    test = Rows([torch.from_numpy(random.integers(-1, 2, (9, 3))).float()])
    whole = neighbour_votes(found, test, neighbours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "TEST_ROWS", 4)
        patch.setattr(knn, "TRAINING_ROWS", 5)
        blocks = neighbour_votes(found, test, neighbours)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(9))


def test_of_equals_the_first_vote():
    training = np.tile([[1.0, 0.0]], (12, 1))
    labels = [0] * 5 + [1] * 7
    votes = neighbour_votes(examples(training, labels, 2), Rows([torch.tensor([[2.0, 0.0]])]))
    torch.testing.assert_close(votes, torch.tensor([[0.5, 0.5]]))  # the first 10: 5 and 5
    two = neighbour_votes(examples(training, labels, 2), Rows([torch.tensor([[2.0, 0.0]])]), 2)
    torch.testing.assert_close(two, torch.tensor([[1.0, 0.0]]))


def test_rows_that_cannot_be_compared_are_refused():
    found = examples(np.ones((2, 3)), [0, 1], 2)
    with pytest.raises(OptionError, match="have 3 numbers, the test rows 4"):
        neighbour_votes(found, Rows([torch.ones(1, 4)]))
    with pytest.raises(OptionError, match="0 training rows"):
        neighbour_votes(examples(np.ones((0, 3)), [], 2), Rows([torch.ones(1, 3)]))
    for wrong in ({"neighbours": 0}, {"temperature": 0.0}):
        with pytest.raises(OptionError, match="must be above 0"):
            neighbour_votes(found, Rows([torch.ones(1, 3)]), **wrong)


# --- tasks ----------------------------------------------------------------------------------


def rows_of_split(folder, split):
    table = np.fromfile(folder / f"{split}.embeddings.npy", np.float32).reshape(-1, 6)
    task = read_task(folder)
    found = task.annotations(split)
    return table, np.array([LABELS.index(found[name][0]) for name in task.row_files(split)])


def test_a_test_split_is_scored_from_the_training_split_alone(tmp_path):
    folder = write_embeddings(tmp_path / "numbers", evaluation=["top1_acc", "mAP"])
    (folder / "valid.embeddings.npy").unlink()  # nothing is validated
    scores = predict_task(folder, NeighbourProbe())
    training, labels = rows_of_split(folder, "train")
    test, truth = rows_of_split(folder, "test")
    votes = reference(training, labels, test, 3)
    assert scores["test"]["test_top1_acc"] == pytest.approx((votes.argmax(1) == truth).mean())
    assert scores["test"]["test_score"] == scores["test"]["test_top1_acc"] > 0.6
    assert 0 < scores["test"]["test_mAP"] <= 1
    assert scores["hparams"] == {"neighbours": 10, "temperature": 0.07, "similarity": "cosine"}
    assert scores["score_mode"] == "max"
    with np.load(folder / "test.predictions-knn.npz") as arrays:
        np.testing.assert_allclose(arrays["prediction"], votes, atol=2e-5)
        assert (arrays["target"].argmax(1) == truth).all()
    assert json.loads((folder / SCORES_FILE).read_text()) == scores
    done = json.loads((folder / DONE_FILE).read_text())
    assert (done["probe"], done["neighbours"], done["temperature"]) == ("knn", 10, 0.07)
    assert not list(folder.glob(".prediction.partial"))


def test_each_fold_is_scored_from_all_others(tmp_path):
    folder = write_embeddings(tmp_path / "my.module" / "numbers", splits=FOLDS)
    calls = []
    scores = predict_task(folder, NeighbourProbe(), lambda *done: calls.append(done))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    found = []
    for fold in FOLDS:
        rest = [rows_of_split(folder, other) for other in FOLDS if other != fold]
        training, labels = (np.concatenate(parts) for parts in zip(*rest, strict=True))
        test, truth = rows_of_split(folder, fold)
        found.append((reference(training, labels, test, 3).argmax(1) == truth).mean())
        assert scores[fold]["test_score"] == pytest.approx(found[-1])
    total = scores["aggregated_scores"]
    assert total["test_score_mean"] == pytest.approx(np.mean(found))
    assert total["test_score_std"] == pytest.approx(np.std(found, ddof=1))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"prediction_type": "multilabel", "evaluation": ["mAP"]}, "multilabel"),
        ({"embedding_type": "event", "prediction_type": "multilabel"}, "event"),
    ],
)
def test_what_x_ares_does_not_score_is_refused(tmp_path, changes, kind):
    folder = write_embeddings(tmp_path / "numbers")
    metadata = json.loads((folder / "task_metadata.json").read_text()) | changes
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(TaskError, match=rf"is a task of {kind}.*multiclass.*--probe shallow"):
        predict_task(folder, NeighbourProbe())
    assert not (folder / DONE_FILE).exists()


def test_directions_are_refused(tmp_path):
    folder = write_embeddings(tmp_path / "numbers")
    metadata = json.loads((folder / "task_metadata.json").read_text())
    metadata |= {"prediction_type": "multilabel", "evaluation": ["MAE"]}
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    for split in ("train", "valid", "test"):
        (folder / f"{split}.json").write_text(json.dumps({f"{split}-0.wav": [1.0, 0.0, 0.0]}))
    with pytest.raises(TaskError, match="is a task of localisation"):
        predict_task(folder, NeighbourProbe())


def test_another_run_is_not_disturbed(tmp_path):
    folder = write_embeddings(tmp_path / "numbers")
    with locked(folder), pytest.raises(TaskError, match="Another run"):
        predict_task(folder, NeighbourProbe())


def test_scores_go_with_their_embeddings(tmp_path):
    folder = write_embeddings(tmp_path / "numbers")
    predict_task(folder, NeighbourProbe())
    assert is_predicted(folder, NeighbourProbe())
    _discard(folder)  # what embedding anew with --force begins with
    assert not is_predicted(folder, NeighbourProbe())
    assert read_result(folder, "knn") is None


# --- the command ----------------------------------------------------------------------------


def evaluate(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_both_probes_stand_side_by_side(tmp_path):
    folder = write_embeddings(tmp_path / "my.module" / "numbers-v1")
    shallow = evaluate("predict", folder, "--grid", "faster", "--grid-points", 1)
    assert shallow.exit_code == 0, shallow.output
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first = evaluate("predict", folder, "--probe", "knn")
    assert first.exit_code == 0, first.output
    assert {name: (folder / name).read_bytes() for name in before} == before
    results = read_results(folder.parent)
    assert [(result.task, result.probe) for result in results] == [
        ("numbers-v1", "shallow"),
        ("numbers-v1", "knn"),
    ]
    assert (results[1].grid, results[1].grid_points, results[1].seed) == (None, None, None)
    assert columns_of(results) == ("task", "metric", "score", "deviation", "probe", "minutes")
    assert [row[4] for row in rows_of(results)] == ["shallow", "knn"]
    assert "Where the probe is knn: by the 10 nearest neighbours" in heading_of(results)
    assert "knn" in first.stdout
    written = json.loads((folder.parent / "results.json").read_text())["results"]
    assert [each["probe"] for each in written] == ["shallow", "knn"]
    again = evaluate("predict", folder, "--probe", "knn")
    assert "is predicted already" in again.stderr

    (folder / "prediction-done.json").unlink()
    alone = read_results(folder.parent)
    assert "probe" not in columns_of(alone)
    assert heading_of(alone).startswith("Predicted by the 10 nearest neighbours.")


def test_what_is_of_the_shallow_predictors_is_refused(tmp_path):
    folder = write_embeddings(tmp_path / "my.module" / "numbers-v1")
    for option in (("--seed", 1), ("--grid", "fast"), ("--grid-points", 2), ("--shuffle",)):
        done = evaluate("predict", folder, "--probe", "knn", *option)
        assert done.exit_code == 2
        assert option[0] in done.output
        assert "nothing to train" in " ".join(done.output.split())
    assert evaluate("predict", folder, "--probe", "svm").exit_code == 2
    assert not (folder / DONE_FILE).exists()


def test_a_module_is_embedded_and_scored_in_one_command(tmp_path, monkeypatch):
    random = np.random.default_rng(0)

    def beep(labels):
        turns = np.arange(3200) / 16000 * {"low": 300, "high": 2000}[labels[0]]
        return 0.3 * np.sin(2 * np.pi * turns) + 0.01 * random.standard_normal(3200)

    write_task(tmp_path / "tasks" / "beeps-v1-full", 12, sound=beep)
    tags = {"prediction_type": "multilabel", "evaluation": ["mAP"]}
    write_task(tmp_path / "tasks" / "tags-v1-full", 12, sound=beep, **tags)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent / "data" / "hear_modules")
    done = evaluate("--module", "logmel", "--probe", "knn", "--device", "cpu")
    assert done.exit_code == 1
    assert "failed: tags-v1-full" in done.stderr  # before it is embedded
    assert not (tmp_path / "embeddings" / "logmel" / "tags-v1-full").exists()
    (result,) = read_results(tmp_path / "embeddings" / "logmel")
    assert (result.probe, result.score) == ("knn", 1.0)
