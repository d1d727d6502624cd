"""Pictures of scenes: what they show, looked up in the figure that is drawn."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.patches import Polygon, Rectangle

from gram_hear.audio.layouts import CHANNEL_NAMES
from gram_hear.errors import OptionError
from gram_hear.plots import FRAMES, plot_scene, scene_figure, spectrogram
from gram_hear.scenes.acoustics import BANDS
from gram_hear.scenes.rendering import Rendered
from gram_hear.scenes.rooms import Room, Scene
from gram_hear.scenes.single import MadeScene

RATE = 16000
RT60 = 0.4
DELAY = 2.0 / 343.0
ROOM = Room((4.0, 6.0, 2.5), ((0.2,) * len(BANDS),) * 6, 0.5)
SCENE = Scene((1,), ROOM, (1.0, 2.0, 1.5), 90.0, (1.0, 4.0, 1.5), ((3.0, 1.0, 0.4), (3.5, 5.0, 2)))


def made_scene(layout="binaural", scene=SCENE, seconds=1.0, measured=RT60):
    """A scene whose RIR is noise that decays by 60 dB in RT60, and whose sound is noise."""
    generator = np.random.default_rng(0)
    channels = CHANNEL_NAMES[layout]
    start = round(DELAY * RATE)
    time = np.arange(round(0.6 * RATE)) / RATE
    rir = np.zeros((1, len(channels), start + len(time)), dtype=np.float32)
    rir[0, :, start:] = generator.standard_normal((len(channels), len(time))) * 10 ** (
        -3 * time / RT60
    )
    audio = 0.1 * generator.standard_normal((len(channels), max(1, round(seconds * RATE))))
    metadata = {"direct_delay": [DELAY], "rt60": 0.5, "rt60_measured": measured}
    rendered = Rendered(rir, RATE, layout, metadata)
    return MadeScene(audio.astype(np.float32), RATE, channels, scene, rendered, metadata)


def axes_of(figure, title):
    [axes] = [each for each in figure.axes if title in each.get_title(loc="left")]
    return axes


@pytest.mark.parametrize("layout", ["binaural", "ambisonic"])
def test_a_scene_becomes_a_png_that_depends_on_nothing_else(tmp_path, layout):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        plot_scene(made_scene(layout), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    pixels = imread(paths[0])
    assert pixels.shape[:2] == (1080, 1320)
    assert pixels[..., :3].std() > 0.1
    assert sorted(tmp_path.iterdir()) == paths


def test_the_plan_has_the_walls_and_everybody_in_metres():
    axes = axes_of(scene_figure(made_scene()), "Room from above, 4.0 x 6.0 m, 2.5 m high")
    [walls] = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (walls.get_xy(), walls.get_width(), walls.get_height()) == ((0, 0), 4.0, 6.0)
    assert axes.get_aspect() == 1
    places = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() in "os"]
    assert places == [(3.0, 1.0), (3.5, 5.0), (1.0, 4.0)]


@pytest.mark.parametrize("yaw", [0.0, 90.0, -135.0])
def test_the_nose_points_where_the_listener_looks(yaw):
    figure = scene_figure(made_scene(scene=dataclasses.replace(SCENE, yaw=yaw)))
    [nose] = [p for p in axes_of(figure, "Room").patches if isinstance(p, Polygon)]
    away = nose.get_xy() - np.array(SCENE.listener[:2])
    tip = away[np.linalg.norm(away, axis=1).argmax()]
    np.testing.assert_allclose(np.degrees(np.arctan2(tip[1], tip[0])), yaw, atol=1e-6)


def test_the_key_says_where_the_source_is():
    def key(scene):
        figure = scene_figure(made_scene(scene=scene))
        [legend] = [a.get_legend() for a in figure.axes if not a.axison]
        return " ".join(text.get_text().replace("\n", " ") for text in legend.get_texts())

    ahead = key(SCENE)
    assert "2.0 m away, azimuth 0°, elevation 0°; 1.5 m above the floor" in ahead
    assert "noise sources: 0.4, 2.0 m" in ahead
    assert "azimuth -90° (right)" in key(dataclasses.replace(SCENE, yaw=180.0))
    assert "azimuth 90° (left)" in key(dataclasses.replace(SCENE, yaw=0.0))
    assert "noise" not in key(dataclasses.replace(SCENE, noises=()))


@pytest.mark.parametrize(("layout", "rows"), [("binaural", 2), ("ambisonic", 1)])
def test_the_rir_is_drawn_from_the_direct_sound_on(layout, rows):
    made = made_scene(layout)
    axes = axes_of(scene_figure(made), "Impulse response")
    assert len(axes.lines) == rows
    assert [label.get_text() for label in axes.get_yticklabels()] == (
        ["left ear", "right ear"] if rows == 2 else ["W"]
    )
    for number, line in enumerate(axes.lines):
        time, level = line.get_data()
        row = made.rendered.rirs[0, number]
        peak = np.abs(made.rendered.rirs[0, :rows]).max()
        samples = np.round((time / 1000 + DELAY) * RATE).astype(int)
        np.testing.assert_allclose(level - level[0], row[samples] / peak, atol=1e-6)
        assert time.max() <= 100


def test_the_decay_falls_by_60_db_in_the_rt60():
    axes = axes_of(scene_figure(made_scene()), "RT60 0.40 s, 0.50 s asked")
    curve, slope, mark = axes.lines
    time, level = curve.get_data()
    early = (level < -5) & (level > -25)
    assert abs(-60 / np.polyfit(time[early], level[early], 1)[0] - RT60) < 0.1 * RT60
    # The dashed line goes through that part, with the measured slope, to the mark at -60 dB.
    np.testing.assert_allclose(np.diff(slope.get_xdata()), RT60)
    assert np.abs(np.interp(time[early], *slope.get_data()) - level[early]).max() < 2
    assert mark.get_xydata()[0].tolist() == slope.get_xydata()[-1].tolist()


def test_a_decay_without_rt60_is_drawn_without_slope():
    axes = axes_of(scene_figure(made_scene(measured=None)), "RT60 0.50 s asked")
    assert len(axes.lines) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_the_shortest_sounds_and_silence_are_drawn(tmp_path, seconds):
    made = made_scene(seconds=seconds)
    plot_scene(made, tmp_path / "short.png")
    plot_scene(dataclasses.replace(made, audio=0 * made.audio), tmp_path / "silent.png")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("layout", ["binaural", "ambisonic"])
def test_each_channel_has_its_spectrogram_on_one_scale(layout):
    made = made_scene(layout)
    titles = {
        "binaural": ["Left ear", "Right ear"],
        "ambisonic": ["W (all directions)", "Y (left)", "Z (up)", "X (front)"],
    }[layout]
    figure = scene_figure(made)
    meshes = [axes_of(figure, title).collections[0] for title in titles]
    assert {mesh.get_clim() for mesh in meshes} == {(-70.0, 0.0)}
    assert max(mesh.get_array().max() for mesh in meshes) == 0


def test_a_spectrogram_has_a_tone_at_its_frequency_and_time():
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 1000 * time) * (time >= 0.5)
    levels, times, frequencies = spectrogram(np.stack([tone, 0.1 * tone]), RATE)
    assert levels.shape == (2, len(frequencies), len(times))
    peak, frame = np.unravel_index(levels[0].argmax(), levels[0].shape)
    assert abs(frequencies[peak] - 1000) < 5
    assert times[frame] > 0.5
    np.testing.assert_allclose(levels[0].max() - levels[1].max(), 20, atol=0.1)
    before = levels[0][:, times < 0.4]
    assert before.max() < levels[0].max() - 100


def test_the_spectrogram_of_a_long_sound_has_no_more_frames_than_there_are_pixels():
    levels, times, _ = spectrogram(np.ones((1, 300 * RATE)), RATE)
    assert FRAMES / 2 < levels.shape[2] <= FRAMES + 1
    assert 299 < times[-1] <= 300


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=r"gram-hear\[plot\]"):
        plot_scene(made_scene(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_not_loaded_before_a_picture_is_drawn(tmp_path):
    code = "import gram_hear.plots, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
