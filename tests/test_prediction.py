"""Prediction of tasks: folds, choice of the grid point, the kit's files, and broken runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hear_tasks import FOLDS, LABELS, QUICK, write_embeddings

from gram_hear.errors import OptionError, TaskError
from gram_hear.evaluation.predict import data, shallow
from gram_hear.evaluation.predict.data import open_task
from gram_hear.evaluation.predict.folds import Fold, folds_of
from gram_hear.evaluation.predict.grid import draw_settings
from gram_hear.evaluation.predict.metrics import scene_scores
from gram_hear.evaluation.predict.prediction import UNFINISHED, is_predicted, predict_task
from gram_hear.evaluation.predict.score_files import FILES
from gram_hear.evaluation.predict.scoring import SplitScorer
from gram_hear.evaluation.predict.shallow import ShallowProbe, point_seed
from gram_hear.evaluation.predict.training import ValidationScore
from gram_hear.jobs import writing
from gram_hear.jobs.locks import locked
from gram_hear.tasks import read_task

pytestmark = pytest.mark.slow

DONE_FILE, SCORES_FILE, LOCALISATION_FILE, _ = vars(FILES["shallow"]).values()


@pytest.fixture
def make(tmp_path):
    """Return :func:`write_embeddings`, in a folder of this name."""
    return lambda name="numbers-v1-full", **options: write_embeddings(tmp_path / name, **options)


@pytest.fixture(scope="module")
def copy(kit, tmp_path_factory):
    """Return a function: a fresh copy of the kit's embeddings of a task."""
    return lambda name: shutil.copytree(kit / name, tmp_path_factory.mktemp("kit") / name)


def read_strictly(path):
    """Read JSON that has neither NaN nor Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path} has {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def arrays_of(folder, split="test"):
    with np.load(folder / f"{split}.predictions.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def without_times(content):
    """Return a score file's content without what depends on the clock."""
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if not k.startswith("time_in_min")}
    return content


@pytest.fixture
def trainings(monkeypatch):
    """The settings and the number of training rows of each call of ``train``."""
    seen = []
    train = shallow.train

    def spied(settings, training, *rest):
        seen.append((tuple(settings), len(training.features)))
        return train(settings, training, *rest)

    monkeypatch.setattr(shallow, "train", spied)
    return seen


# --- folds ----------------------------------------------------------------------------------


def test_one_test_has_one_fold(make):
    assert folds_of(read_task(make())) == [Fold("test", ("train",), "valid", "test")]


def test_the_fold_after_the_test_fold_validates(make):
    unsorted = ("fold02", "fold00", "fold03", "fold01")
    assert folds_of(read_task(make(splits=unsorted))) == [
        Fold("fold00", ("fold02", "fold03"), "fold01", "fold00"),
        Fold("fold01", ("fold00", "fold03"), "fold02", "fold01"),
        Fold("fold02", ("fold00", "fold01"), "fold03", "fold02"),
        Fold("fold03", ("fold01", "fold02"), "fold00", "fold03"),
    ]


def test_the_grid_is_searched_on_the_first_fold_alone(make, trainings):
    folder = make(splits=FOLDS)
    reports = []
    scores = predict_task(folder, ShallowProbe(), lambda done, total: reports.append((done, total)))
    points = draw_settings("default", 8, "numbers", QUICK)
    searched, others = trainings[:-3], trainings[-3:]
    assert sorted(map(str, (each for group, _ in searched for each in group))) == sorted(
        map(str, points)
    )
    assert [len(group) for group, _ in others] == [1, 1, 1]
    assert {group[0].lr for group, _ in others} == {scores["hparams"]["lr"]}
    assert {str(group[0].to_dict()) for group, _ in others} == {str(scores["hparams"])}
    assert {rows for _, rows in trainings} == {120}  # two of four folds of 60 rows
    assert reports[-1] == (len(points) + 3, len(points) + 3)
    assert reports == sorted(reports)


def test_folds_are_scored_and_aggregated(make):
    folder = make(splits=FOLDS)
    scores = predict_task(folder, ShallowProbe())
    assert list(scores)[:5] == [*FOLDS, "aggregated_scores"]
    values = [scores[fold]["test_top1_acc"] for fold in FOLDS]
    for fold, value in zip(FOLDS, values, strict=True):
        arrays = arrays_of(folder, fold)
        assert scene_scores(["top1_acc"], arrays["prediction"], arrays["target"]) == {
            "top1_acc": value
        }
        assert value > 0.6
    aggregated = scores["aggregated_scores"]
    assert aggregated["test_top1_acc_mean"] == pytest.approx(np.mean(values))
    assert aggregated["test_score_mean"] == aggregated["test_top1_acc_mean"]
    assert aggregated["test_score_std"] == pytest.approx(np.std(values, ddof=1))
    for name in ("validation_score", "epoch", "time_in_min", "test_loss"):
        values = [scores[fold][name] for fold in FOLDS]
        assert aggregated[f"{name}_mean"] == pytest.approx(np.mean(values))
        assert aggregated[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert read_strictly(folder / SCORES_FILE) == scores


def test_each_split_is_opened_once(make, monkeypatch):
    opened = []
    read = data._split_data
    monkeypatch.setattr(data, "_split_data", lambda each: opened.append(each.name) or read(each))
    predict_task(make(splits=FOLDS), ShallowProbe(grid_points=1))
    assert opened == list(FOLDS)


def scorer_of(folder, split="valid"):
    """Return what scores a split of embeddings."""
    task = read_task(folder)
    return SplitScorer(task, open_task(task, [split])[split])


# --- choosing -------------------------------------------------------------------------------


def test_the_first_drawn_of_equals_wins(make, monkeypatch):
    """Though points of another shape, which come later, are trained before some of them."""
    points = draw_settings("default", 4, "numbers", QUICK)
    assert {point.hidden_layers for point in points[:2]} == {0, 1}
    for scores in ([1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]):
        folder = make(f"task-{scores}")
        assert choose(folder, monkeypatch, scores) == points[scores.index(1)].to_dict()


def choose(folder, monkeypatch, scores):
    """Predict a task whose four grid points get these validation scores; return the chosen one."""
    points = draw_settings("default", 4, "numbers", QUICK)
    train = shallow.train

    def scored(settings, *rest):
        return [
            replace(one, validation=ValidationScore(scores[points.index(one.setting)]))
            for one in train(settings, *rest)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(shallow, "train", scored)
        return predict_task(folder, ShallowProbe(grid_points=4))["hparams"]


def test_validations_are_compared_in_float32(make):
    scorer = scorer_of(make(rows=7))
    score = scorer.validate(scorer.split.targets, 0.0)
    assert score.value == 1.0
    wrong = scorer.split.targets.roll(1, dims=1)
    wrong[:3] = scorer.split.targets[:3]
    assert scorer.validate(wrong, 0.0).value == float(np.float32(3 / 7))
    assert scorer.validate(wrong, 0.0).value != 3 / 7


def test_where_the_task_says_so_the_loss_is_monitored(make):
    folder = make(use_scoring_for_early_stopping=False)
    scorer = scorer_of(folder)
    assert scorer.validate(scorer.split.targets, 0.75).value == -0.75
    scores = predict_task(folder, ShallowProbe(grid_points=2))
    arrays = arrays_of(folder)
    assert scores["score_mode"] == "min"
    assert scores["test"]["test_score"] == scores["test"]["test_top1_acc"]
    # Validation and test are alike, so that their losses are near; an accuracy is above 0.6.
    assert 0 < scores["test"]["validation_score"] < 0.6
    entropy = -np.log(arrays["prediction"][arrays["target"] == 1]).mean()
    assert scores["test"]["test_loss"] == pytest.approx(entropy, rel=1e-4)


def test_a_minimised_metric_is_minimised(make):
    scorer = scorer_of(make(kind="localisation"))
    target = scorer.split.targets
    assert scorer.validate(-target, 0.0).value == pytest.approx(-180)
    assert scorer.validate(target, 0.0).value == pytest.approx(0, abs=0.1)
    assert scorer.validate(torch.full_like(target, float("nan")), 0.0).value != 0


@pytest.fixture(scope="module")
def events(copy):
    """Return a function: the golden events, with this post-processing and other metadata."""
    folder = copy("esc10events-v1-full")
    path = folder / "task_metadata.json"
    original = json.loads(path.read_text())

    def change(postprocessing, **metadata):
        own = {"evaluation_params": {"event_postprocessing_grid": postprocessing}}
        path.write_text(json.dumps(original | metadata | own))
        return folder

    return change


def test_of_equal_postprocessings_the_largest_is_chosen(events):
    """As in the original kit, which sorts scores and choices backwards."""
    choices = {"min_duration": [0, 30, 20], "median_filter_ms": [0, 10]}
    scorer = scorer_of(events(choices))
    nothing = torch.zeros_like(scorer.split.targets)  # no event: F is 0 whatever is chosen
    assert scorer.validate(nothing, 0.0) == ValidationScore(0.0, (10, 30))


@pytest.mark.parametrize("by_loss", [False, True])
@pytest.mark.parametrize("first", ["event_onset_200ms_fms", "segment_1s_er"])
def test_the_best_postprocessing_is_chosen(events, first, by_loss):
    """By the first metric, be it minimised, and also where the loss is monitored."""
    choices = {"min_duration": [0, 10**6], "median_filter_ms": [0]}
    names = sorted(["event_onset_200ms_fms", "segment_1s_er"], key=lambda name: name != first)
    scorer = scorer_of(
        events(choices, evaluation=names, use_scoring_for_early_stopping=not by_loss)
    )
    score = scorer.validate(scorer.split.targets, 0.25)
    assert score.choice == (0, 0)  # the other one would find no event at all
    best = scorer.test(scorer.split.targets, (0, 0))[first]
    worst = scorer.test(scorer.split.targets, (0, 10**6))[first]
    assert (best > worst) == (first == "event_onset_200ms_fms")
    sign = 1 if best > worst else -1
    assert score.value == (-0.25 if by_loss else float(np.float32(sign * best)))


def test_where_the_loss_is_monitored_and_nothing_is_to_be_chosen_nothing_is_scored(
    events, make, monkeypatch
):
    """Tasks monitor the loss because their metric takes long."""
    grid = {"min_duration": [50], "median_filter_ms": [150]}
    notes = scorer_of(events(grid, use_scoring_for_early_stopping=False))
    scenes = scorer_of(make(use_scoring_for_early_stopping=False))
    monkeypatch.setattr(SplitScorer, "_score", None)
    assert notes.validate(notes.split.targets, 0.5) == ValidationScore(-0.5, (150, 50))
    assert scenes.validate(scenes.split.targets, 0.5) == ValidationScore(-0.5, None)


def test_onsets_and_offsets_are_scored(events):
    """The metrics of the benchmark's task of piano notes."""
    names = ["event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"]
    choices = {"min_duration": [50, 150], "median_filter_ms": [150]}
    scorer = scorer_of(events(choices, evaluation=names))
    score = scorer.validate(scorer.split.targets, 0.0)
    scores = scorer.test(scorer.split.targets, score.choice)
    assert score.value == float(np.float32(scores[names[0]]))
    assert [key for key in scores if key in names] == names
    for name in names:
        assert scores[name] == scores[f"{name}_f_measure"] > 0.5
        assert 0 < scores[f"{name}_precision"] <= 1
        assert 0 < scores[f"{name}_recall"] <= 1


# --- kinds of tasks -------------------------------------------------------------------------


def test_directions_are_learned(make):
    folder = make(kind="localisation", rows=200, noise=0.1)
    scores = predict_task(folder, ShallowProbe())
    assert not (folder / SCORES_FILE).exists()
    assert read_strictly(folder / LOCALISATION_FILE) == scores
    assert scores["score_mode"] == "min"
    found = scores["test"]
    names = ["MAE", "DOA", "DOE", "3d_source_local", "3d_source_local_x"]
    assert [key for key in found if key.startswith("test_")] == [
        "test_loss",
        "test_score",
        *(f"test_{name}" for name in names),
    ]
    assert found["test_score"] == found["test_MAE"] < 20  # degrees; 90 by chance
    assert 0 < found["validation_score"] < 20
    arrays = arrays_of(folder)
    np.testing.assert_allclose(arrays["prediction"], np.tanh(arrays["prediction_logit"]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(arrays["target"], axis=1), 1, rtol=1e-6)
    again = scene_scores(names, arrays["prediction"], arrays["target"])
    assert {name: found[f"test_{name}"] for name in names} == again


def test_several_labels_are_learned(make):
    folder = make(kind="multilabel", rows=200)
    scores = predict_task(folder, ShallowProbe())["test"]
    assert scores["test_score"] == scores["test_mAP"] > 0.85
    assert scores["test_aucroc"] > 0.85
    assert scores["test_d_prime"] > 1.5
    arrays = arrays_of(folder)
    again = scene_scores(["mAP", "aucroc", "d_prime"], arrays["prediction"], arrays["target"])
    assert {name: scores[f"test_{name}"] for name in again} == again
    sigmoid = 1 / (1 + np.exp(-arrays["prediction_logit"]))
    np.testing.assert_allclose(arrays["prediction"], sigmoid, atol=1e-6)
    assert arrays["target"].sum(axis=1).max() > 1


@pytest.mark.parametrize("splits", [("train", "valid", "test"), FOLDS])
def test_an_infinite_score_is_null_with_a_note(make, splits):
    """Classes that are separated without error: the file stays strict JSON."""
    own = {"task_specific_param_grid": QUICK | {"max_epochs": [60], "hidden_layers": [0]}}
    folder = make(
        kind="multilabel", splits=splits, evaluation=["d_prime", "aucroc"], evaluation_params=own
    )
    task = read_task(folder)
    for split in splits:
        labels = np.array(
            [
                [label in task.annotations(split)[file] for label in LABELS]
                for file in task.row_files(split)
            ]
        )
        np.tile(labels, 2).astype(np.float32).tofile(folder / f"{split}.embeddings.npy")
    scores = predict_task(folder, ShallowProbe())
    assert read_strictly(folder / SCORES_FILE) == scores
    for name in folds_of(task):
        found = scores[name.name]
        assert found["test_score"] is found["test_d_prime"] is found["validation_score"] is None
        assert 0.5 < found["test_aucroc"] <= 1.0  # one class without error makes d_prime infinite
        assert "infinity" in scores["notes"][f"{name.name}.test_d_prime"]
    if task.folds:
        assert scores["aggregated_scores"]["test_d_prime_mean"] is None
        assert scores["aggregated_scores"]["test_d_prime_std"] is None
        assert 0.5 < scores["aggregated_scores"]["test_aucroc_mean"] <= 1.0


def test_a_task_without_a_validation_score_says_so(make):
    folder = make(kind="multilabel", evaluation=["aucroc"])
    valid = {name: ["low"] for name in read_task(folder).annotations("valid")}
    (folder / "valid.json").write_text(json.dumps(valid))
    with pytest.raises(TaskError, match=r"no grid point has .* on split valid: aucroc"):
        predict_task(folder, ShallowProbe(grid_points=2))
    assert not (folder / DONE_FILE).exists()


# --- the kit's embeddings -------------------------------------------------------------------


def test_golden_pitches_are_scored_as_by_the_kit(copy):
    """The kit's 8 points score .9792, .9861 and .9722; the winner is among the first two."""
    scores = predict_task(copy("tonepitch-v1-full"), ShallowProbe("fast", 2))["test"]
    assert scores["test_score"] == pytest.approx(0.9792, abs=0.03)
    assert scores["test_score"] == scores["test_pitch_acc"] <= scores["test_chroma_acc"]


def test_golden_digits_are_scored_as_by_the_kit(copy):
    """The kit's scores are .383, .403 and .340: predictors of ten epochs, hardly trained."""
    folder = copy("fsdd-v1-full")
    scores = predict_task(folder, ShallowProbe("faster"))
    assert scores["test"]["test_score"] == pytest.approx(0.3756, abs=0.1)
    assert is_predicted(folder, ShallowProbe("faster"))


def test_golden_events_are_scored_as_by_the_kit(copy, golden_path):
    """The kit's onset F is .233, .289 and .222, its error rate .649, .632 and .640."""
    folder = copy("esc10events-v1-full")
    scores = predict_task(folder, ShallowProbe("faster"))
    found = scores["test"]
    assert found["test_score"] == found["test_event_onset_200ms_fms"]
    assert found["test_score"] == found["test_event_onset_200ms_fms_f_measure"]
    assert found["test_score"] == pytest.approx(0.248, abs=0.1)
    assert found["test_segment_1s_er_error_rate"] == pytest.approx(0.640, abs=0.1)
    precision = found["test_event_onset_200ms_fms_precision"]
    recall = found["test_event_onset_200ms_fms_recall"]
    assert found["test_score"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert (found["epoch"], scores["hparams"]["check_val_every_n_epoch"]) == (9, 10)
    (median, least) = scores["postprocessing"]
    assert median == ["median_filter_ms", 250]
    assert least in (["min_duration", 125], ["min_duration", 250])
    events = read_strictly(folder / "test.events.json")
    recorded = json.loads(golden_path("hear-eval/predictions.json").read_text(encoding="utf-8"))

    def in_order(listed):
        key = lambda event: (event["start"], event["end"], event["label"])  # noqa: E731
        return {file: sorted(found, key=key) for file, found in listed.items()}

    assert in_order(events["target_events"]) == in_order(recorded["target_events"])
    predicted = [event for found in events["predicted_events"].values() for event in found]
    assert predicted
    assert all(event["end"] - event["start"] >= least[1] for event in predicted)


# --- files ----------------------------------------------------------------------------------


def test_files_are_the_kits(make):
    folder = make()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    scores = predict_task(folder, ShallowProbe("fast", 3, seed=7))
    written = {path.name for path in folder.iterdir()} - set(before)
    assert written == {SCORES_FILE, DONE_FILE, "test.predictions.npz"}
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert list(scores) == ["test", "hparams", "postprocessing", "score_mode", "embedding_path"]
    assert list(scores["test"]) == [
        "test_loss",
        "test_score",
        "test_top1_acc",
        "validation_score",
        "epoch",
        "time_in_min",
    ]
    assert (scores["score_mode"], scores["embedding_path"]) == ("max", "numbers-v1-full")
    assert scores["postprocessing"] == []
    done = read_strictly(folder / DONE_FILE)
    assert (done["grid"], done["grid_points"], done["seed"], done["shuffle"]) == (
        "fast",
        3,
        7,
        False,
    )
    assert (done["embedding_path"], done["embedding_size"]) == ("numbers-v1-full", 6)
    assert done["cpu_time"] > 0
    assert done["time"] > 0


def test_the_done_marker_comes_last(make, monkeypatch):
    folder = make()
    write_whole = writing.write_whole
    there = {}

    def spied(path, write):
        there[path.name] = {each.name for each in folder.iterdir()}
        write_whole(path, write)

    monkeypatch.setattr(writing, "write_whole", spied)
    predict_task(folder, ShallowProbe(grid_points=1))
    assert list(there) == [SCORES_FILE, DONE_FILE]
    assert there[DONE_FILE] >= {SCORES_FILE, "test.predictions.npz"}


@pytest.mark.parametrize("breaks_at", [1, 2])
def test_a_broken_run_leaves_nothing_half_done(make, breaks_at):
    folder, other = make(splits=FOLDS), make("undisturbed", splits=FOLDS)
    probe, earlier = ShallowProbe(grid_points=3), ShallowProbe(grid_points=3, seed=1)
    predict_task(folder, earlier)
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def progress(done, total):
        progress.calls += 1
        if progress.calls == breaks_at:
            raise KeyboardInterrupt

    progress.calls = 0
    with pytest.raises(KeyboardInterrupt):
        predict_task(folder, probe, progress)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert is_predicted(folder, earlier)
    (folder / UNFINISHED).mkdir()  # as a killed run leaves it
    (folder / UNFINISHED / "fold00.predictions.npz").write_text("half")
    predict_task(folder, probe)
    predict_task(other, probe)
    ours, theirs = (read_strictly(each / SCORES_FILE) for each in (folder, other))
    assert without_times(ours) | {"embedding_path": ""} == without_times(theirs) | {
        "embedding_path": ""
    }
    assert is_predicted(folder, probe)


@pytest.mark.parametrize("name", ["test.predictions.npz", SCORES_FILE, DONE_FILE])
def test_a_disk_that_fails_is_an_error_of_the_task(make, monkeypatch, name):
    folder, probe = make(), ShallowProbe(grid_points=1)
    predict_task(folder, probe)
    scores = (folder / SCORES_FILE).read_bytes()
    write_whole, full = writing.write_whole, OSError(28, "No space left on device")

    def write(path, *arguments, **_):
        if path.name == name:
            raise full
        write_whole(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_whole", write)
        if name.endswith(".npz"):
            patch.setattr(np, "savez_compressed", write)
        with pytest.raises(TaskError, match=r"numbers-v1-full.*No space left on device.*run again"):
            predict_task(folder, replace(probe, seed=1))
    assert is_predicted(folder, probe) == (name != DONE_FILE)  # that one comes after the scores
    assert ((folder / SCORES_FILE).read_bytes() == scores) == (name != DONE_FILE)
    assert not list(folder.glob("*.lock")) + list(folder.glob(".*"))


def test_wrong_metadata_does_not_cost_the_scores_that_are_there(make):
    folder, probe = make(), ShallowProbe(grid_points=1)
    predict_task(folder, probe)
    path = folder / "task_metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"evaluation": ["top_acc"]}))
    with pytest.raises(OptionError, match="no metric 'top_acc'"):
        predict_task(folder, probe)
    assert is_predicted(folder, probe)


def test_a_folder_that_is_called_dot_has_its_name(make, monkeypatch):
    monkeypatch.chdir(make())
    scores = predict_task(Path(), ShallowProbe(grid_points=1))
    assert scores["embedding_path"] == "numbers-v1-full"
    assert read_strictly(Path(DONE_FILE))["embedding_path"] == "numbers-v1-full"


def test_two_runs_at_once_are_refused(make):
    folder = make()
    predict_task(folder, ShallowProbe(grid_points=1))
    with locked(folder), pytest.raises(TaskError, match="Another run is writing"):
        predict_task(folder, ShallowProbe(grid_points=1))
    assert is_predicted(folder, ShallowProbe(grid_points=1))  # the other's marker is not taken away


def test_the_same_seed_gives_the_same_scores_to_the_bit(make):
    folder = make(kind="multilabel")

    def predict(**changes):
        scores = predict_task(folder, ShallowProbe(grid_points=4, **changes))
        return without_times(scores), arrays_of(folder)

    (first, one), (second, two), (_, other), (_, shuffled) = (
        predict(),
        predict(),
        predict(seed=43),
        predict(shuffle=True, device="cpu"),
    )
    assert first == second
    for name, values in one.items():
        np.testing.assert_array_equal(values, two[name])
    assert not np.array_equal(one["prediction_logit"], other["prediction_logit"])
    assert one["prediction_logit"].shape == shuffled["prediction_logit"].shape


def test_shuffling_changes_what_several_batches_teach(make):
    own = {"task_specific_param_grid": QUICK | {"batch_size": [16]}}
    folder = make(evaluation_params=own)
    predict_task(folder, ShallowProbe(grid_points=1))
    plain = arrays_of(folder)["prediction_logit"]
    predict_task(folder, ShallowProbe(grid_points=1, shuffle=True))
    assert not np.array_equal(arrays_of(folder)["prediction_logit"], plain)
    assert read_strictly(folder / DONE_FILE)["shuffle"] is True


def test_shuffled_points_are_trained_as_if_alone(make, trainings):
    """Each has an order of its own, which does not depend on those that it was drawn with."""
    own = {"task_specific_param_grid": QUICK | {"batch_size": [16], "hidden_layers": [1]}}
    folder = make(evaluation_params=own)
    points = draw_settings("default", 4, "numbers", own["task_specific_param_grid"])
    predict_task(folder, ShallowProbe(grid_points=4))
    assert [len(group) for group, _ in trainings] == [len(points)]
    trainings.clear()
    predict_task(folder, ShallowProbe(grid_points=4, shuffle=True))
    assert [group for group, _ in trainings] == [(point,) for point in points]


def test_every_point_and_fold_has_a_seed_of_its_own():
    seeds = {
        point_seed(seed, fold, point) for seed in (0, 42) for fold in (0, 1) for point in (0, 1)
    }
    assert len(seeds) == 8
    assert point_seed(42, 0, 0) == point_seed(42, 0, 0)


# --- what is done already -------------------------------------------------------------------


def test_what_this_plan_predicted_is_done(make):
    folder, probe = make(), ShallowProbe(grid_points=1)
    assert not is_predicted(folder, probe)
    predict_task(folder, probe)
    assert is_predicted(folder, probe)
    assert is_predicted(folder, replace(probe, device="cuda"))
    assert not is_predicted(folder, probe, force=True)


@pytest.mark.parametrize(
    "changes", [{"grid": "fast"}, {"grid_points": 2}, {"seed": 1}, {"shuffle": True}]
)
def test_what_another_plan_predicted_is_kept_unless_forced(make, changes):
    folder, probe = make(), ShallowProbe(grid_points=1)
    predict_task(folder, probe)
    other = replace(probe, **changes)
    with pytest.raises(TaskError, match=r"grid=default, grid_points=1, seed=42.*--force"):
        is_predicted(folder, other)
    assert not is_predicted(folder, other, force=True)
    assert is_predicted(folder, probe)


def test_what_the_kit_predicted_is_of_another_plan(make):
    folder = make()
    marker = {"time": 1.0, "embedding_path": "numbers-v1-full", "grid_points": 8, "grid": "default"}
    (folder / DONE_FILE).write_text(json.dumps(marker))
    with pytest.raises(TaskError, match="--force"):
        is_predicted(folder, ShallowProbe())


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_a_broken_marker_is_an_error_of_ours(make, content):
    folder = make()
    (folder / DONE_FILE).write_text(content)
    with pytest.raises(TaskError, match=DONE_FILE):
        is_predicted(folder, ShallowProbe())
    assert not is_predicted(folder, ShallowProbe(), force=True)


# --- bad input ------------------------------------------------------------------------------


def test_options_that_are_not_allowed_are_refused():
    for options, message in (
        ({"grid": "slow"}, "no grid 'slow'"),
        ({"grid_points": 0}, "0 grid points"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(OptionError, match=message):
            ShallowProbe(**options)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"evaluation": ["top1_accuracy"]}, r"no metric 'top1_accuracy'.*top1_acc"),
        ({"evaluation": ["event_onset_200ms_fms"]}, "event tasks, and this is one of scene"),
        ({"evaluation": ["DOA"]}, "localisation tasks, and this is one of scene"),
        ({"evaluation_params": {"task_specific_param_grid": {"lr": []}}}, "lr is"),
        ({"task_name": None}, "task_name"),
        ({"evaluation_params": [1]}, "evaluation_params"),
        ({"evaluation_params": {"task_specific_param_grid": [1]}}, "task_specific_param_grid"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(make, metadata, message):
    folder = make(**metadata)
    with pytest.raises((TaskError, OptionError), match=message):
        predict_task(folder, ShallowProbe(grid_points=1))
    with pytest.raises((TaskError, OptionError), match=message):
        ShallowProbe(grid_points=1).check(read_task(folder))  # before there are embeddings
    assert not (folder / DONE_FILE).exists()
    assert not list(folder.glob("*.lock"))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"median": [250]}, "has median; allowed are median_filter_ms, min_duration"),
        ({"median_filter_ms": 250}, "median_filter_ms is 250"),
        ({"min_duration": []}, r"min_duration is \[\]"),
        ({"min_duration": [-1]}, r"min_duration is \[-1\]"),
        ({"min_duration": ["1"]}, r"min_duration is \['1'\]"),
        ({"median_filter_ms": [1e12]}, "none above 60000"),
        ({"median_filter_ms": [250] * 1000}, "1 to 100 numbers"),
        ([1], "event_postprocessing_grid"),
    ],
)
def test_bad_postprocessing_is_refused(events, grid, message):
    folder = events(grid)
    with pytest.raises(TaskError, match=message):
        scorer_of(folder, "test")
    with pytest.raises(TaskError, match=message):
        ShallowProbe().check(read_task(folder))


def test_missing_and_broken_embeddings_are_refused(make, tmp_path):
    with pytest.raises(TaskError, match=r"no .*nowhere"):
        predict_task(tmp_path / "nowhere", ShallowProbe())
    folder = make()
    path = folder / "train.embeddings.npy"
    whole = np.fromfile(path, np.float32)
    path.write_bytes(whole[:-1].tobytes())
    with pytest.raises(TaskError, match=r"train\.embeddings\.npy has 1436 bytes"):
        predict_task(folder, ShallowProbe())
    whole[6 * 5] = np.nan
    whole.tofile(path)
    file = read_task(folder).row_files("train")[5]
    with pytest.raises(TaskError, match=rf"NaN or infinite values in 1 of 60 rows, of {file}"):
        predict_task(folder, ShallowProbe())
    path.unlink()
    with pytest.raises(TaskError, match=r"no .*train\.embeddings\.npy"):
        predict_task(folder, ShallowProbe())
    (folder / "test.embedding-dimensions.json").write_text("[120, 3]")
    with pytest.raises(TaskError, match="embeddings of 3 and 6 values in its splits"):
        predict_task(folder, ShallowProbe())
    assert not (folder / DONE_FILE).exists()


def test_directions_that_do_not_fit_the_rows_are_refused(make):
    folder = make(kind="localisation")
    path = folder / "valid.json"
    path.write_text(json.dumps(dict(list(json.loads(path.read_text()).items())[:50])))
    with pytest.raises(TaskError, match=r"60 rows of valid, and valid\.json names 50 files"):
        predict_task(folder, ShallowProbe())


def test_the_steps_are_those_of_the_smallest_fold(make):
    own = {"task_specific_param_grid": {"batch_size": [10]}}
    folder = make(splits=("fold0", "fold1", "fold2", "fold3"), evaluation_params=own)
    for split, rows in (("fold0", 10), ("fold1", 20), ("fold2", 100), ("fold3", 1000)):
        (folder / f"{split}.embedding-dimensions.json").write_text(json.dumps([rows, 6]))
    assert ShallowProbe("faster").optimizer_steps(read_task(folder)) == 30  # 2 and 3 are held out
