"""Windows, rows and timestamps: both rules, against plain references and by hand."""

from fractions import Fraction
from itertools import count, pairwise, takewhile

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gram_hear.windows import FILLS, corrected_plan, cut_windows, fill_of, reference_plan

PATCHINGS = pytest.mark.parametrize("patching", ["frame", "time"])
TEN_MINUTES = 600 * 32000


def plain_plan(samples, patch_frames, rows_per_window):
    """Rule by rule: frame k at 10 k ms, row i at (i p + (p - 1) / 2) * 10 ms, kept to the end.

    Also the first row of each window: one after the other, the last of several where it ends with
    the clip's rows.
    """
    duration = Fraction(1000 * samples, 32000)
    first = Fraction(patch_frames - 1, 2) * 10
    centres = takewhile(lambda t: t <= duration, (first + 10 * patch_frames * i for i in count()))
    timestamps = list(centres) or [duration / 2]
    last = max(0, len(timestamps) - rows_per_window)
    first_rows = [*range(0, last, rows_per_window), last]
    return first_rows, np.array([float(t) for t in timestamps], dtype=np.float32)


# --- the corrected rule ---------------------------------------------------------------------


@PATCHINGS
@settings(max_examples=40, deadline=None)
@given(samples=st.one_of(st.integers(1, 100_000), st.integers(1, TEN_MINUTES)))
@example(samples=1)
@example(samples=1119)  # one sample before the first centre of frame patches
@example(samples=1120)
@example(samples=TEN_MINUTES)
def test_corrected_plan_follows_the_words(make_config, patching, samples):
    config = make_config(2, patching)
    plan = corrected_plan(samples, config)
    frames = config.patch.frames
    first_rows, timestamps = plain_plan(samples, frames, config.time_patches)
    assert plan.window_starts() == [row * frames for row in first_rows]
    assert plan.rows == len(timestamps)
    np.testing.assert_array_equal(plan.timestamps(), timestamps)


@PATCHINGS
@settings(deadline=None)
@given(samples=st.integers(1, TEN_MINUTES))
def test_every_window_has_a_kept_row_and_every_row_lies_in_the_clip(make_config, patching, samples):
    config = make_config(2, patching)
    plan = corrected_plan(samples, config)
    assert (
        (plan.windows - 1) * config.time_patches < plan.rows <= plan.windows * config.time_patches
    )
    assert (plan.windows - 1) * config.window_frames < 1 + samples // 320
    assert plan.timestamps().dtype == np.float64
    assert plan.timestamps()[0] >= 0
    assert plan.timestamps()[-1] <= samples / 32
    np.testing.assert_array_equal(np.diff(plan.timestamps()), np.full(plan.rows - 1, config.hop_ms))


@pytest.mark.parametrize(
    ("seconds", "patching", "windows", "rows", "first", "last"),
    [
        (0.01, "frame", 1, 1, 5, 5),
        (1, "frame", 1, 13, 35, 995),
        (1.07, "frame", 1, 13, 35, 995),
        (2, "frame", 1, 25, 35, 1955),
        (4, "frame", 2, 50, 35, 3955),
        (5, "frame", 3, 63, 35, 4995),
        (10, "frame", 5, 125, 35, 9955),
        (0.01, "time", 1, 1, 5, 5),
        (1, "time", 1, 50, 5, 985),
        (1.07, "time", 1, 54, 5, 1065),
        (2, "time", 1, 100, 5, 1985),
        (4, "time", 2, 200, 5, 3985),
        (5, "time", 3, 250, 5, 4985),
        (10, "time", 5, 500, 5, 9985),
    ],
)
def test_corrected_plan_by_hand(make_config, seconds, patching, windows, rows, first, last):
    plan = corrected_plan(round(32000 * seconds), make_config(2, patching))
    assert (plan.windows, plan.rows) == (windows, rows)
    assert (plan.timestamps()[0], plan.timestamps()[-1]) == (first, last)


@PATCHINGS
@settings(max_examples=60, deadline=None)
@given(samples=st.one_of(st.integers(1, 400_000), st.integers(1, TEN_MINUTES)), data=st.data())
def test_every_row_is_kept_once_however_the_windows_come(make_config, patching, samples, data):
    """Windows of numbers that tell each row's place in the clip."""
    config = make_config(2, patching)
    plan = corrected_plan(samples, config)
    starts = torch.tensor(plan.window_starts()) // config.patch.frames
    places = starts[:, None] + torch.arange(config.time_patches)
    cuts = sorted(data.draw(st.lists(st.integers(0, plan.windows), max_size=3)))
    edges = [0, *cuts, plan.windows]
    parts = [plan.keep(places[a:b], a) for a, b in pairwise(edges)]
    assert torch.cat(parts).tolist() == list(range(plan.rows))


@PATCHINGS
@given(samples=st.integers(64001, TEN_MINUTES))
def test_windows_of_longer_clips_are_full(make_config, patching, samples):
    """But for half a row, whose centre is inside the clip."""
    config = make_config(2, patching)
    plan = corrected_plan(samples, config)
    if plan.windows > 1:
        end = plan.window_starts()[-1] + config.window_frames
        assert end - config.patch.frames // 2 <= 1 + samples // 320
    assert plan.overlap < config.window_frames
    assert plan.overlap % config.patch.frames == 0


def test_five_seconds_by_hand(make_config):
    plan = corrected_plan(160000, make_config(2, "frame"))
    assert plan.window_starts() == [0, 200, 304]  # the third would begin at 400
    assert plan.window_starts(2) == [304]
    assert plan.window_starts(3) == []
    assert plan.overlap == 96


@pytest.mark.parametrize("fill", ["silence", "zero"])
def test_windows_are_cut_where_they_begin_and_filled_past_the_end(make_config, fill):
    config = make_config(7)
    features = torch.arange(2 * 7 * 250 * 128, dtype=torch.float32).view(2, 7, 250, 128)
    starts = torch.tensor([[0, 50, 51], [249, 250, 400]])
    cut = cut_windows(features, starts, config, fill)
    assert cut.shape == (6, 7, 200, 128)
    assert torch.equal(cut[1], features[0, :, 50:250])
    assert torch.equal(cut[2][:, :199], features[0, :, 51:])
    assert torch.equal(cut[3][:, 0], features[1, :, 249])
    level = torch.tensor(config.front_end.log_floor).log() if fill == "silence" else 0
    for window in (cut[2][:, 199:], cut[3][:, 1:], cut[4], cut[5]):
        assert (window[:4] == level).all()
        assert (window[4:] == 0).all()


def test_a_repeated_window_begins_again_where_its_clip_ends(make_config):
    features = torch.arange(2 * 250.0).view(2, 1, 250, 1)
    starts = torch.tensor([[0, 200], [50, 249]])
    cut = cut_windows(features, starts, make_config(1), "repeat").squeeze()
    assert cut[0].tolist() == list(range(200))
    assert cut[1].tolist() == 4 * list(range(200, 250))
    assert cut[2].tolist() == list(range(300, 500))
    assert cut[3].tolist() == 200 * [499]


def test_a_mirrored_window_goes_back_and_forth(make_config):
    features = torch.arange(250.0).view(1, 1, 250, 1)
    cut = cut_windows(features, torch.tensor([[200, 248, 249]]), make_config(1), "mirror").squeeze()
    assert cut[0, :150].tolist() == [
        *range(200, 250),
        *range(248, 199, -1),
        *range(201, 250),
        248,
        247,
    ]
    assert cut[1].tolist() == 100 * [248, 249]
    assert cut[2].tolist() == 200 * [249]


def test_a_short_clip_is_repeated_and_the_end_of_a_longer_one_mirrored():
    assert fill_of(1, "repeat") == "repeat"
    assert fill_of(2, "repeat") == "mirror"
    assert [fill_of(2, fill) for fill in FILLS[1:]] == list(FILLS[1:])


def test_a_row_whose_centre_is_the_end_is_kept(make_config):
    config = make_config(2, "frame")
    end = 1120  # 35 ms, the centre of row 0
    assert corrected_plan(end + 80 * 32, config).rows == 2
    assert corrected_plan(end + 80 * 32 - 1, config).rows == 1


# --- the authors' rule ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "patching", "windows", "rows"),
    [
        (400, "frame", 3, 50),
        (421, "frame", 3, 53),
        (201, "frame", 2, 26),
        (199, "frame", 1, 25),
        (400, "time", 3, 200),
        (421, "time", 3, 211),
        (1, "time", 1, 1),
    ],
)
def test_reference_plan_by_hand(make_config, frames, patching, windows, rows):
    config, samples = make_config(2, patching), (frames - 1) * 320
    plan = reference_plan(samples, config, per_window=False)
    assert (plan.windows, plan.rows) == (windows, rows)
    plan = reference_plan(samples, config, per_window=True)
    assert (plan.windows, plan.rows) == (windows, windows)


@PATCHINGS
@given(samples=st.integers(1, TEN_MINUTES))
def test_reference_plan_fills_up_to_a_further_window_and_cuts_from_the_end(
    make_config, patching, samples
):
    config = make_config(2, patching)
    plan = reference_plan(samples, config, per_window=False)
    frames = 1 + samples // 320
    padded = 200 - (frames % 200)
    assert plan.windows * 200 == frames + padded
    n_time = config.time_patches
    assert plan.rows == plan.windows * n_time - int(n_time * padded / 200)


@PATCHINGS
@pytest.mark.parametrize("per_window", [False, True])
@pytest.mark.parametrize("samples", [3200, 64000, 134400])
def test_reference_timestamps_stretch_with_the_duration(make_config, patching, per_window, samples):
    plan = reference_plan(samples, make_config(2, patching), per_window)
    duration = samples / 32
    expected = [i * duration / plan.rows for i in range(plan.rows)]
    np.testing.assert_allclose(plan.timestamps(), expected, rtol=1e-6)


def test_two_seconds_show_the_difference(make_config):
    config = make_config(2, "frame")
    ours, theirs = corrected_plan(64000, config), reference_plan(64000, config, False)
    assert (ours.windows, ours.rows, theirs.windows, theirs.rows) == (1, 25, 2, 26)
    assert theirs.timestamps()[1] == pytest.approx(76.923, abs=1e-3)
    assert ours.timestamps()[1] - ours.timestamps()[0] == 80
