"""The protocol's metrics by name: golden numbers, scikit-learn, and by hand."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from gram_hear.errors import OptionError
from gram_hear.evaluation.predict.event_metrics import EventScorer
from gram_hear.evaluation.predict.events import EventTable, Timeline
from gram_hear.evaluation.predict.metrics import (
    METRICS,
    angular_errors,
    class_auc,
    class_average_precision,
    named_metric,
    scene_scores,
)
from gram_hear.evaluation.predict.score_files import strict_json

GOLDEN = {
    "tonepitch": [
        f"{grid}-s{seed}" for grid in ("default", "fast", "faster") for seed in (42, 43, 44)
    ],
    "fsdd": [f"{grid}-s{seed}" for grid in ("fast", "faster") for seed in (42, 43, 44)],
}
LOCALISATION = [name for name, metric in METRICS.items() if metric.kind == "localisation"]


# --- golden scores --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "run"), [(task, run) for task, runs in GOLDEN.items() for run in runs]
)
def test_scores_are_those_of_the_kit(golden, golden_path, task, run):
    recorded = json.loads(golden_path("hear-eval/predictions.json").read_text(encoding="utf-8"))
    arrays = golden(f"hear-eval/predictions-{task}.npz")
    theirs = recorded[task][run]["scores"]
    ours = scene_scores(list(theirs), arrays[run], arrays["target"])
    assert list(ours) == list(theirs)
    assert ours == pytest.approx(theirs, abs=5e-7, rel=0)


def test_every_golden_run_is_compared(golden):
    for task, runs in GOLDEN.items():
        assert {*golden(f"hear-eval/predictions-{task}.npz").files} == {*runs, "target"}


# --- classes --------------------------------------------------------------------------------


@st.composite
def scored_classes(draw):
    """Scores with many equals, and targets with a positive and a negative row in each class."""
    count, classes = draw(st.integers(2, 30)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    scores = random.integers(0, draw(st.sampled_from([1, 3, 10**6])) + 1, (count, classes)) / 7
    target = random.random((count, classes)) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    target[0], target[1] = True, False
    return scores.astype(draw(st.sampled_from([np.float32, np.float64]))), target


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case=scored_classes())
def test_ranking_metrics_are_those_of_scikit_learn(case):
    scores, target = case
    target = target.astype(int)
    ours = scene_scores(["mAP", "aucroc", "d_prime"], scores, target)
    auc = np.array([roc_auc_score(t, s) for t, s in zip(target.T, scores.T, strict=True)])
    precision = average_precision_score(target, scores, average="macro")
    assert ours["mAP"] == pytest.approx(precision, rel=1e-12)
    assert ours["aucroc"] == pytest.approx(auc.mean(), rel=1e-12)
    # The inverse normal is steep near 0 and 1: it starts from the same areas.
    np.testing.assert_allclose(class_auc(scores, target == 1), auc, rtol=1e-12)
    with np.errstate(invalid="ignore"):
        d_prime = (np.sqrt(2) * norm.ppf(class_auc(scores, target == 1))).mean()
    assert ours["d_prime"] == pytest.approx(d_prime, rel=1e-9, nan_ok=True)


def test_class_without_positive_rows():
    scores = np.array([[0.1, 0.9], [0.2, 0.3]])
    target = np.array([[False, True], [False, False]])
    np.testing.assert_array_equal(class_average_precision(scores, target), [0, 1])
    np.testing.assert_array_equal(class_auc(scores, target), [np.nan, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn's, about just this
        theirs = average_precision_score(target, scores, average="macro")
    ours = scene_scores(["mAP", "aucroc", "d_prime"], scores, target)
    assert ours["mAP"] == theirs == 0.5
    assert math.isnan(ours["aucroc"])
    assert math.isnan(ours["d_prime"])


def test_class_without_negative_rows_has_no_area():
    ours = scene_scores(["mAP", "aucroc"], np.array([[0.1], [0.2]]), np.ones((2, 1)))
    assert ours["mAP"] == 1
    assert math.isnan(ours["aucroc"])


def test_d_prime_by_hand():
    # One of four pairs is the wrong way round: an area of 0.75.
    scores, target = np.array([[1], [3], [2], [4]]) / 4, np.array([[0], [0], [1], [1]])
    expected = math.sqrt(2) * 0.6744897501960817
    assert scene_scores(["d_prime"], scores, target)["d_prime"] == pytest.approx(expected)
    best = scene_scores(["d_prime"], target / 1.0, target)["d_prime"]
    worst = scene_scores(["d_prime"], 1.0 - target, target)["d_prime"]
    assert (best, worst) == (math.inf, -math.inf)


def test_octaves_do_not_count_for_chroma():
    target = np.eye(36)[[0, 1, 2, 3]]
    prediction = np.eye(36)[[24, 13, 2, 4]]
    scores = scene_scores(["pitch_acc", "chroma_acc", "top1_acc"], prediction, target)
    assert scores == {"pitch_acc": 0.25, "chroma_acc": 0.75, "top1_acc": 0.25}


# --- directions -----------------------------------------------------------------------------


def plain_angles(prediction, target):
    """Azimuth and elevation, then the spherical law of cosines."""
    angles = []
    for p, t in zip(prediction, target, strict=True):
        azimuths = [math.atan2(v[1], v[0]) for v in (p, t)]
        elevations = [math.atan2(v[2], math.hypot(v[0], v[1])) for v in (p, t)]
        cosine = math.prod(map(math.sin, elevations)) + math.prod(
            map(math.cos, elevations)
        ) * math.cos(azimuths[0] - azimuths[1])
        angles.append(math.degrees(math.acos(min(1, max(-1, cosine)))))
    return np.array(angles)


def test_directions_against_plain_formulas():
    random = np.random.default_rng(5)
    prediction, target = random.uniform(-1, 1, (200, 3)), random.normal(size=(200, 3))
    target /= np.linalg.norm(target, axis=1, keepdims=True)
    scores = scene_scores(LOCALISATION, prediction, target)
    angles = plain_angles(prediction, target)
    assert scores["MAE"] == pytest.approx(angles.mean(), rel=1e-6)
    assert scores["DOE"] == pytest.approx(np.median(angles), rel=1e-6)
    distances = [math.dist(p, t) for p, t in zip(prediction, target, strict=True)]
    assert max(distances) > 2
    chords = [180 if d > 2 else math.degrees(2 * math.asin(d / 2)) for d in distances]
    assert scores["DOA"] == pytest.approx(np.mean(chords))
    for axis, name in enumerate("xyz"):
        error = sum(abs(p[axis] - t[axis]) for p, t in zip(prediction, target, strict=True)) / 200
        assert scores[f"3d_source_local_{name}"] == pytest.approx(error)
    assert scores["3d_source_local"] == pytest.approx(
        sum(scores[f"3d_source_local_{name}"] for name in "xyz") / 3
    )


def test_a_prediction_without_direction_counts_as_a_guess():
    target = np.array([[0, 0, 1.0]])
    assert scene_scores(["MAE"], np.zeros((1, 3)), target) == {"MAE": 90}


def test_small_angles_keep_their_digits():
    target = np.array([[1.0, 0, 0]])
    prediction = np.array([[math.cos(1e-9), math.sin(1e-9), 0]])
    assert angular_errors(prediction, target)[0] == pytest.approx(math.degrees(1e-9), rel=1e-6)


# --- the registry and what it refuses -------------------------------------------------------


def test_registry_says_which_way_is_better():
    down = {name for name, metric in METRICS.items() if not metric.maximise}
    assert down == {"segment_1s_er", *LOCALISATION}
    assert all(name == metric.name for name, metric in METRICS.items())


def test_registry_says_which_metrics_are_means_over_clips():
    """Their values of each clip are what a paired test exchanges."""
    together = {"mAP", "aucroc", "d_prime", "DOE"}
    for name, metric in METRICS.items():
        assert (metric.of_all is not None) == (name in together)
        assert (metric.per_clip is not None) == (name not in together and metric.kind != "event")
    random = np.random.default_rng(1)
    prediction, target = random.random((30, 24)), np.eye(24)[random.integers(0, 24, 30)]
    for name in ("top1_acc", "pitch_acc", "chroma_acc"):
        values = METRICS[name].per_clip(prediction, target)
        assert scene_scores([name], prediction, target)[name] == pytest.approx(values.mean())
        assert set(values) == {0.0, 1.0}


def test_event_metrics_have_the_keys_that_the_event_scorer_gives():
    nothing = EventTable(*(np.array([], dtype=t) for t in (int, int, float, float)))
    scorer = EventScorer(nothing, Timeline.of(["a"], [0]))
    keys = [key for metric in METRICS.values() if metric.kind == "event" for key in metric.keys]
    assert keys == list(scorer.score(np.ones((1, 2)), [(250, 125)])[0])


def test_unknown_and_event_metrics_are_refused():
    with pytest.raises(OptionError, match=r"'top1'; known are .*chroma_acc.*'top1_acc'"):
        named_metric("top1")
    with pytest.raises(OptionError, match="segment_1s_er is scored from events"):
        scene_scores(["segment_1s_er"], np.ones((1, 2)), np.array([[0, 1]]))


@pytest.mark.parametrize(
    ("name", "prediction", "target", "message"),
    [
        ("top1_acc", np.ones((2, 3)), np.ones((2, 2)), "both must be the same"),
        ("top1_acc", np.ones((2, 3)), np.array([0, 1]), "both must be the same"),
        ("top1_acc", np.ones((0, 3)), np.ones((0, 3)), "above 0"),
        ("top1_acc", np.array([[0.1, np.nan]]), np.array([[0, 1]]), "prediction holds NaN"),
        ("top1_acc", np.ones((2, 2)), np.array([[0, 1], [1, 1]]), "row 1 has 2"),
        ("chroma_acc", np.ones((1, 2)), np.array([[0, 0]]), "row 0 has 0"),
        ("mAP", np.ones((1, 2)), np.array([[0, 0.5]]), "0 and 1"),
        ("DOA", np.ones((1, 2)), np.ones((1, 2)), r"\(n, 3\)"),
        ("MAE", np.ones((2, 3)), np.eye(3)[:2] * [[1], [0]], "1 targets of 0"),
        ("MAE", np.ones((1, 3)), np.array([[0, 0, np.inf]]), "target holds NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(name, prediction, target, message):
    with pytest.raises(OptionError, match=message):
        scene_scores([name], prediction, target)


def test_strict_json_says_what_it_left_out():
    scores = {"mAP": 0.5, "d_prime": math.inf, "aucroc": math.nan, "worst": -math.inf}
    values, notes = strict_json(scores)
    assert values == {"mAP": 0.5, "d_prime": None, "aucroc": None, "worst": None}
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(notes) == ["d_prime", "aucroc", "worst"]
    assert notes["d_prime"].startswith("infinity")
    assert notes["aucroc"].startswith("undefined")
    assert notes["worst"].startswith("minus infinity")
