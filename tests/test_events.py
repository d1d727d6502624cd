"""Events from probabilities, and their scores: golden numbers, and plain slow references."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from gram_hear.errors import TaskError
from gram_hear.evaluation.predict.event_metrics import (
    COLLARS,
    EVENT_METRICS,
    Collar,
    EventScorer,
    Segments,
    SortedEvents,
    error_rate,
    f_measure,
)
from gram_hear.evaluation.predict.events import EventTable, Timeline, target_events
from gram_hear.evaluation.predict.postprocessing import Postprocessing

pytestmark = pytest.mark.slow

RUNS = ["fast-s42", "faster-s42", "faster-s43", "faster-s44"]
KIT = ("event_onset_200ms_fms", "segment_1s_er")  # the metrics of the golden scores


def table(*events):
    """Events from tuples (file, label, start, end)."""
    columns = zip(*events, strict=True) if events else ((), (), (), ())
    types = (np.int64, np.int64, np.float64, np.float64)
    return EventTable(*(np.array(c, dtype=t) for c, t in zip(columns, types, strict=True)))


def rows(events):
    """The tuples of a table."""
    columns = (events.file, events.label, events.start, events.end)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def events_of(probabilities, timeline, *choice):
    return Postprocessing(timeline).events(probabilities, [choice])[0]


def scores_of(target, predicted, collar=COLLARS["event_onset_200ms_fms"]):
    return f_measure(SortedEvents.of(target), SortedEvents.of(predicted), collar)


def error_rate_of(target, predicted, milliseconds=1000.0):
    ends = [(each.file, each.end) for each in (target, predicted)]
    segments = Segments(2, milliseconds, ends)
    return error_rate(*(segments.roll(each, 3) for each in (target, predicted)))


ONSETS = Collar(50.0)
OFFSETS = COLLARS["event_onset_offset_50ms_20perc_fms"]


# --- slow references ------------------------------------------------------------------------


def plain_median(values, width):
    """scipy's median filter along time; by hand where scipy's leaves the array.

    From eight times the array's length on, scipy 1.17 reads an element before its begin.
    """
    if width < 2:
        return values
    if width < 8 * len(values):
        return median_filter(values, size=(width, 1))
    padded = np.pad(values, ((width // 2, (width - 1) // 2), (0, 0)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return np.sort(windows, axis=-1)[..., width // 2]


def plain_events(probabilities, files, times, filter_ms, min_duration):
    """One file, one class, one frame after the other, with scipy's own median filter."""
    events = []
    for number, name in enumerate(dict.fromkeys(files)):
        mine = sorted((times[row], row) for row in range(len(files)) if files[row] == name)
        stamps = [time for time, _ in mine]
        values = probabilities[[row for _, row in mine]]
        width = round(filter_ms / np.mean(np.diff(stamps))) if len(stamps) > 1 else 0
        values = plain_median(values, width)
        found = []
        for label in range(values.shape[1]):
            begin = None
            for i in range(len(stamps) + 1):
                active = i < len(stamps) and values[i, label] > 0.5
                if active and begin is None:
                    begin = i
                if not active and begin is not None:
                    if stamps[i - 1] - stamps[begin] >= min_duration:
                        found.append((number, label, stamps[begin], stamps[i - 1]))
                    begin = None
        events += sorted(found, key=lambda event: event[2])
    return events


def may_be_paired(event, other, collar, share=None):
    """Whether a predicted event is near enough to a target event, in seconds as sed_eval counts."""
    (start, end), (their_start, their_end) = (
        [time / 1000 for time in each[2:]] for each in (event, other)
    )
    room = math.inf if share is None else max(collar / 1000, share * (end - start))
    near = abs(start - their_start) <= collar / 1000 and abs(end - their_end) <= room
    return event[:2] == other[:2] and near


def plain_matches(target, predicted, collar, share=None):
    """The size of the largest matching, by augmenting paths over all pairs that may be."""
    partner = {}

    def find(event, tried):
        for j, other in enumerate(predicted):
            if may_be_paired(event, other, collar, share) and j not in tried:
                tried.add(j)
                if j not in partner or find(partner[j], tried):
                    partner[j] = event
                    return True
        return False

    return sum(find(event, set()) for event in target)


def brute_force_matches(target, predicted, collar, share):
    """The same, by trying for each target event every partner and none."""
    if not target:
        return 0
    first, *rest = target
    found = brute_force_matches(rest, predicted, collar, share)
    for j, other in enumerate(predicted):
        if may_be_paired(first, other, collar, share):
            others = predicted[:j] + predicted[j + 1 :]
            found = max(found, 1 + brute_force_matches(rest, others, collar, share))
    return found


def plain_error_rate(target, predicted, seconds):
    """Sets of (file, segment, class), then substitutions, deletions and insertions."""
    wanted, given_ = (
        {
            (file, segment, label)
            for file, label, start, end in events
            for segment in range(
                math.floor(start / 1000 / seconds), math.ceil(end / 1000 / seconds)
            )
        }
        for events in (target, predicted)
    )
    errors = 0
    for segment in {cell[:2] for cell in wanted | given_}:
        a = {cell[2] for cell in wanted if cell[:2] == segment}
        b = {cell[2] for cell in given_ if cell[:2] == segment}
        substitutions = min(len(a), len(b)) - len(a & b)
        deletions, insertions = max(0, len(a) - len(b)), max(0, len(b) - len(a))
        errors += substitutions + deletions + insertions
    return errors / len(wanted) if wanted else math.nan


# --- the golden events ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def kit(golden, golden_path):
    """What the original kit predicted and scored, and our timeline and target of its rows."""
    scores = json.loads(golden_path("hear-eval/predictions.json").read_text(encoding="utf-8"))
    arrays = golden("hear-eval/predictions-esc10events.npz")
    names = [scores["files"][i] for i in arrays["file_index"]]
    timeline = Timeline.of(names, arrays["timestamp"])
    labels = {name: index for index, name in enumerate(scores["labels"])}
    target = target_events(scores["target_events"], timeline.files, labels)
    return SimpleNamespace(
        scores=scores, arrays=arrays, names=names, timeline=timeline, target=target
    )


def postprocessing(kit, run):
    chosen = kit.scores["esc10events"][run]["postprocessing"]
    return chosen["median_filter_ms"], chosen["min_duration"]


@pytest.mark.parametrize("run", RUNS)
def test_events_are_those_of_the_kit(kit, run):
    events = events_of(kit.arrays[run], kit.timeline, *postprocessing(kit, run))
    listed = events.by_file(kit.timeline.files, kit.scores["labels"])
    theirs = kit.scores["esc10events"][run]["predicted_events"]
    assert listed == {
        name: [{"label": label, "start": start, "end": end} for label, start, end in events]
        for name, events in theirs.items()
    }


@pytest.mark.parametrize("run", RUNS)
def test_scores_are_those_of_the_kit(kit, run):
    scorer = EventScorer(kit.target, kit.timeline)
    scores = scorer.score(kit.arrays[run], [postprocessing(kit, run)], KIT)[0]
    theirs = kit.scores["esc10events"][run]["scores"]
    assert list(scores) == list(theirs)
    assert scores == pytest.approx(theirs, abs=5e-7, rel=0)


def test_scores_do_not_depend_on_the_order_of_rows(kit):
    shuffled = np.random.default_rng(3).permutation(len(kit.names))
    timeline = Timeline.of([kit.names[row] for row in shuffled], kit.arrays["timestamp"][shuffled])
    labels = {name: index for index, name in enumerate(kit.scores["labels"])}
    target = target_events(kit.scores["target_events"], timeline.files, labels)
    probabilities = kit.arrays["fast-s42"]
    ours = EventScorer(target, timeline).score(probabilities[shuffled], [(250, 125)])
    assert ours == EventScorer(kit.target, kit.timeline).score(probabilities, [(250, 125)])


def test_every_choice_is_scored_from_its_events(kit):
    choices = [(250, 125), (250, 250), (0, 0), (800, 125)]
    probabilities = kit.arrays["faster-s43"]
    together = EventScorer(kit.target, kit.timeline).score(probabilities, choices)
    for choice, scores in zip(choices, together, strict=True):
        events = events_of(probabilities, kit.timeline, *choice)
        for name, collar in COLLARS.items():
            for part, value in scores_of(kit.target, events, collar).items():
                assert scores[f"{name}_{part}"] == value
            assert scores[name] == scores[f"{name}_f_measure"]
        values = [scores[name] for name in COLLARS]
        assert values == sorted(values, reverse=True)  # each asks for more than the one before
        assert values[0] > values[2] > 0
        wanted = plain_error_rate(rows(kit.target), rows(events), 1.0)
        assert scores["segment_1s_er"] == pytest.approx(wanted)
        assert scores["segment_1s_er_error_rate"] == scores["segment_1s_er"]
    assert len({scores["event_onset_200ms_fms"] for scores in together}) == len(choices)


def test_only_what_is_asked_for_is_scored(kit):
    scorer = EventScorer(kit.target, kit.timeline)
    (every,) = scorer.score(kit.arrays["fast-s42"], [(250, 125)])
    for name in EVENT_METRICS:
        (scores,) = scorer.score(kit.arrays["fast-s42"], [(250, 125)], [name])
        assert scores == {key: every[key] for key in every if key in scores}
        assert set(scores) == {key for key in every if key.startswith(name)}


# --- events from probabilities --------------------------------------------------------------


@st.composite
def splits(draw):
    """Rows of some files, shuffled: names, times and probabilities of two classes."""
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    hop = draw(st.sampled_from([10.0, 12.5, 50.0]))
    own_hop = draw(st.booleans())
    cells = [
        (f"{file}.wav", 5.0 + frame * hop * (1 + file * own_hop))
        for file, length in enumerate(lengths)
        for frame in range(length)
    ]
    cells = draw(st.permutations(cells))
    names, times = zip(*cells, strict=True)
    value = st.sampled_from([0.0, 0.4, 0.5, float(np.nextafter(np.float32(0.5), 1)), 0.9, 1.0])
    values = draw(st.lists(value, min_size=2 * len(cells), max_size=2 * len(cells)))
    return names, times, np.array(values, dtype=np.float32).reshape(-1, 2)


@settings(max_examples=150, deadline=None)
@given(
    split=splits(),
    filter_ms=st.one_of(st.just(0), st.integers(0, 500), st.sampled_from([25.0, 125.0, 4000.0])),
    min_duration=st.sampled_from([0, 10, 60, 125.0]),
)
def test_predicted_events_are_those_of_the_plain_reference(split, filter_ms, min_duration):
    names, times, probabilities = split
    ours = events_of(probabilities, Timeline.of(names, times), filter_ms, min_duration)
    assert rows(ours) == plain_events(probabilities, names, times, filter_ms, min_duration)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 70),
    width=st.one_of(st.integers(1, 40), st.integers(250, 520)),
    seed=st.integers(0, 10**6),
)
@example(length=2, width=256, seed=0)
def test_counting_is_a_median_filter_for_odd_and_even_widths(length, width, seed):
    probabilities = np.random.default_rng(seed).random((length, 3), dtype=np.float32)
    timeline = Timeline.of(["a"] * length, 20.0 * np.arange(length))
    ours = events_of(probabilities, timeline, 20.0 * width, 0)
    filtered = plain_median(probabilities, width if length > 1 else 1)
    frames = np.zeros_like(filtered, dtype=bool)
    for _, label, start, end in rows(ours):
        frames[round(start / 20) : round(end / 20) + 1, label] = True
    np.testing.assert_array_equal(frames, filtered > 0.5)


def test_width_is_rounded_half_to_even():
    timeline = Timeline.of(["a"] * 3 + ["b"], [0, 100, 200, 0])
    for milliseconds, width in ((0, 1), (149, 1), (150, 2), (250, 2), (251, 3), (350, 4)):
        assert timeline.filter_widths(milliseconds).tolist() == [width, 1]


def test_probabilities_are_checked():
    timeline = Timeline.of(["a", "a"], [0, 50])
    with pytest.raises(TaskError, match="2 rows"):
        events_of(np.zeros((3, 2)), timeline, 250, 125)
    with pytest.raises(TaskError, match="NaN"):
        events_of(np.array([[0.1], [np.nan]]), timeline, 250, 125)
    for milliseconds in (-1, math.nan):
        with pytest.raises(TaskError, match="median_filter_ms"):
            events_of(np.zeros((2, 2)), timeline, milliseconds, 125)
        with pytest.raises(TaskError, match="min_duration"):
            events_of(np.zeros((2, 2)), timeline, 250, milliseconds)


# --- timeline and target --------------------------------------------------------------------


def test_timeline_sorts_rows_within_files_in_order_of_appearance():
    timeline = Timeline.of(["b", "a", "b", "a", "c"], [70, 30, 20, 10, 5])
    assert timeline.files == ("b", "a", "c")
    assert timeline.order.tolist() == [2, 0, 3, 1, 4]
    assert timeline.starts.tolist() == [0, 2, 4, 5]
    np.testing.assert_array_equal(timeline.hops, [50, 20, np.nan])


@pytest.mark.parametrize(
    ("files", "times", "message"),
    [
        (["a", "b", "b"], [1, 2, 2], "b has two rows at 2 ms"),
        (["a", "b"], [1, math.nan], "timestamp of b is nan"),
        (["a", "b"], [math.inf, 1], "timestamp of a is inf"),
        (["a", "b"], [1], "2 file names"),
        ([], [], "at least one row"),
    ],
)
def test_timeline_is_checked(files, times, message):
    with pytest.raises(TaskError, match=message):
        Timeline.of(files, times)


def test_target_events_and_back():
    split = {
        "a": [{"label": "dog", "start": 10, "end": 20.5}, {"label": "cat", "start": 5, "end": 5}],
        "b": [],
    }
    events = target_events(split, ["b", "a"], {"cat": 0, "dog": 1})
    assert rows(events) == [(1, 1, 10, 20.5), (1, 0, 5, 5)]
    assert events.by_file(["b", "a"], ["cat", "dog"]) == split
    assert len(target_events({"a": []}, ["a"], {"cat": 0})) == 0


def test_split_and_rows_must_name_the_same_files():
    with pytest.raises(TaskError, match=r"b\.wav has rows"):
        target_events({"a.wav": []}, ["a.wav", "b.wav"], {})
    with pytest.raises(TaskError, match=r"names b\.wav, which has no rows"):
        target_events({"a.wav": [], "b.wav": []}, ["a.wav"], {})


def test_scorer_checks_files_and_classes():
    timeline = Timeline.of(["a", "a"], [0, 50])
    with pytest.raises(TaskError, match="file index 1"):
        EventScorer(table((1, 0, 0, 50)), timeline)
    with pytest.raises(TaskError, match="1 classes"):
        EventScorer(table((0, 1, 0, 50)), timeline).score(np.ones((2, 1)), [(0, 0)])


# --- scores ---------------------------------------------------------------------------------

event_tuples = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 2),
        # Distances on the collar, as 1000 to 1200 ms or 2000 to 2200 ms, are rounded differently.
        st.integers(0, 40).map(lambda n: 50.0 * n) | st.floats(0, 2000, allow_nan=False),
        st.integers(0, 30).map(lambda n: 100.0 * n),
    ).map(lambda event: (*event[:3], event[2] + event[3])),
    max_size=14,
)


@settings(max_examples=200, deadline=None)
@given(target=event_tuples, predicted=event_tuples, collar=st.sampled_from([50.0, 200.0, 400.0]))
@example(target=[(0, 0, 0, 0), (0, 0, 300, 300)], predicted=[(0, 0, 150, 150)] * 2, collar=200.0)
def test_greedy_pairs_are_as_many_as_the_largest_matching(target, predicted, collar):
    scores = scores_of(table(*target), table(*predicted), Collar(collar))
    pairs = plain_matches(target, predicted, collar)
    assert scores["precision"] == (pairs / len(predicted) if predicted else 0)
    assert scores["recall"] == (pairs / len(target) if target else 0)
    both = len(target) + len(predicted)
    assert scores["f_measure"] == pytest.approx(2 * pairs / both if both else 0)


near_events = st.lists(
    st.tuples(
        st.just(0),
        st.integers(0, 1),
        # Onsets and offsets on the collar, and lengths of which 20 % are less and more than it.
        st.integers(0, 12).map(lambda n: 25.0 * n) | st.floats(0, 300, allow_nan=False),
        st.integers(0, 24).map(lambda n: 25.0 * n),
    ).map(lambda event: (*event[:3], event[2] + event[3])),
    max_size=7,
)


@settings(max_examples=300, deadline=None)
@given(target=near_events, predicted=near_events)
# The earliest free pair is a mistake: the first target event must leave the first predicted one.
@example(target=[(0, 0, 0, 500), (0, 0, 10, 420)], predicted=[(0, 0, 5, 450), (0, 0, 6, 590)])
def test_pairs_of_onsets_and_offsets_are_as_many_as_can_be(target, predicted):
    scores = scores_of(table(*target), table(*predicted), OFFSETS)
    pairs = brute_force_matches(target, predicted, 50.0, 0.2)
    assert pairs == plain_matches(target, predicted, 50.0, 0.2)
    assert scores["precision"] == (pairs / len(predicted) if predicted else 0)
    assert scores["recall"] == (pairs / len(target) if target else 0)


@settings(max_examples=100, deadline=None)
@given(target=event_tuples, predicted=event_tuples, share=st.sampled_from([0.0, 0.2, 1.0]))
def test_many_pairs_are_as_many_as_can_be(target, predicted, share):
    """Long chains of events that may change partners, in a collar of two seconds."""
    scores = scores_of(table(*target), table(*predicted), Collar(2000.0, share))
    pairs = plain_matches(target, predicted, 2000.0, share)
    assert scores["recall"] == (pairs / len(target) if target else 0)


def test_offsets_may_differ_by_a_share_of_the_target_event():
    long, short = (0, 0, 100, 1100), (0, 0, 100, 200)
    for event, end, found in ((long, 1300, 1), (long, 1301, 0), (short, 250, 1), (short, 251, 0)):
        predicted = table((0, 0, 150, end))
        assert scores_of(table(event), predicted, OFFSETS)["f_measure"] == found
        assert scores_of(table(event), predicted, ONSETS)["f_measure"] == 1
    late = table((0, 0, 151, 1100))
    assert scores_of(table(long), late, OFFSETS)["f_measure"] == 0
    assert scores_of(table(long), late, ONSETS)["f_measure"] == 0
    # The share is of the target event: 100 ms here, though the predicted one is longer.
    assert scores_of(table((0, 0, 0, 500)), table((0, 0, 0, 601)), OFFSETS)["f_measure"] == 0


@settings(max_examples=200, deadline=None)
@given(target=event_tuples, predicted=event_tuples, segment_ms=st.sampled_from([250.0, 1000.0]))
def test_error_rate_is_that_of_the_plain_reference(target, predicted, segment_ms):
    ours = error_rate_of(table(*target), table(*predicted), segment_ms)
    expected = plain_error_rate(target, predicted, segment_ms / 1000)
    assert ours == pytest.approx(expected, nan_ok=True)


def test_scores_by_hand():
    target = table((0, 0, 100, 1500), (0, 1, 2000, 2500), (1, 0, 0, 900))
    predicted = table((0, 0, 250, 900), (0, 2, 2000, 2500), (1, 0, 201, 900))
    scores = scores_of(target, predicted)
    assert scores["f_measure"] == pytest.approx(1 / 3)
    # Wanted: file 0 segments 0 and 1 (class 0) and 2 (class 1), file 1 segment 0. One deletion (in
    # segment 1) and one substitution (in segment 2).
    assert error_rate_of(target, predicted) == 2 / 4


def test_segments_must_have_a_length():
    with pytest.raises(TaskError, match="more than 0"):
        error_rate_of(table(), table(), 0)


def test_a_filter_of_absurdly_many_rows_is_refused():
    timeline = Timeline.of(["a", "a"], [0.0, 1e-9])
    with pytest.raises(TaskError, match="only 1e-09 ms apart"):
        timeline.filter_widths(250.0)


def test_absurdly_many_segments_are_refused():
    one = np.zeros(1, dtype=np.int64)
    table = EventTable(one, one, np.zeros(1), np.full(1, 1e13))
    with pytest.raises(TaskError, match=r"last 2777778 hours in all.*segment_1s_er"):
        error_rate_of(table, table)
