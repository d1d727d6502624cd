"""Pictures of scenes, sounds, windows and directions: what they show, looked up in the figure."""

import dataclasses
import re
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib import colormaps, rc_context, rcParams
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.patches import Circle, Polygon, Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from gram_hear.audio.excerpts import Excerpt
from gram_hear.audio.layouts import CHANNEL_NAMES
from gram_hear.config import named_config
from gram_hear.errors import OptionError
from gram_hear.localisation import NEAR, Located, sphere
from gram_hear.nn.patches import patchify
from gram_hear.plots.directions import direction_figure
from gram_hear.plots.mel import band_centres
from gram_hear.plots.reconstruction import reconstruction_figure, unpatchify
from gram_hear.plots.scene import FRAMES, scene_figure, spectrogram
from gram_hear.plots.sound import (
    SIDE,
    SoundPicture,
    average,
    feature_titles,
    principal_components,
    similarity,
    sound_figure,
)
from gram_hear.plots.waveform import COLUMNS
from gram_hear.scenes.acoustics import BANDS
from gram_hear.scenes.rendering import Rendered
from gram_hear.scenes.rooms import Room, Scene
from gram_hear.scenes.single import MadeScene
from gram_hear.style import COLOURS, CONFIDENCE, DPI, FORMATS, LEVELS, SIGNED, drawing, save_figure

pytestmark = pytest.mark.slow

SVG = "{http://www.w3.org/2000/svg}"
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


def test_every_format_is_the_same_each_time_and_keeps_its_text(tmp_path):
    """Drawn twice, more than a second apart: without dates, and without random names."""
    found = {}
    for turn in (0, 1):
        figure = scene_figure(made_scene())
        for suffix in FORMATS:
            save_figure(figure, tmp_path / f"{turn}{suffix}")
            found.setdefault(suffix, []).append((tmp_path / f"{turn}{suffix}").read_bytes())
        time.sleep(1.1 * (1 - turn))
    assert [set(each) for each in found.values()] == [{each[0]} for each in found.values()]
    png, svg, pdf = (found[suffix][0] for suffix in (".png", ".svg", ".pdf"))
    assert png.startswith(b"\x89PNG")
    assert round(0.0254 * int.from_bytes(png[png.index(b"pHYs") + 4 :][:4], "big")) == DPI == 200
    texts = ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "listener" in texts
    assert b"sans-serif" in svg  # for readers without the font
    assert "time (s)" in texts
    assert b"Date" not in svg + pdf
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf
    assert len(svg) < 1_500_000  # a spectrogram is kept as pixels


def test_settings_of_ones_own_change_no_picture(tmp_path):
    own = {
        "axes.facecolor": "black",
        "font.size": 30,
        "lines.linewidth": 9,
        "savefig.bbox": "tight",
        "savefig.facecolor": "black",
        "text.color": "white",
        "text.usetex": True,
        "xtick.color": "white",
    }
    for suffix in FORMATS:
        save_figure(draw_directions(), tmp_path / f"usual{suffix}")
        with rc_context(own):
            before = dict(rcParams)
            save_figure(draw_directions(), tmp_path / f"own{suffix}")
            assert dict(rcParams) == before
        drawn, usual = (tmp_path / f"{name}{suffix}" for name in ("own", "usual"))
        assert drawn.read_bytes() == usual.read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a", "png"])
def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path, name):
    with pytest.raises(OptionError, match=r"must end in \.png, \.svg or \.pdf\.$"):
        save_figure(None, tmp_path / name)


@pytest.mark.parametrize(
    "name", ["\x01\x1b[31m\x08.wav", "a\tb\nc", "$x^{2$", "\ud800\uffff", "[b]:smile:"]
)
def test_a_title_of_any_name_makes_a_picture_that_can_be_read(tmp_path, name):
    with drawing(3, 1, name) as figure:
        pass
    save_figure(figure, tmp_path / "a.svg")
    texts = ["".join(each.itertext()) for each in ElementTree.parse(tmp_path / "a.svg").iter()]
    assert " ".join(re.sub(r"[^\t\n -~]", "?", name).split()) in texts


def test_a_long_title_stays_in_the_picture():
    with drawing(4, 2, f"{'n' * 200}.flac, of a long name") as figure:
        pass
    [title] = [each for each in figure.findobj(Text) if "flac" in each.get_text()]
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_a_png_is_never_higher_than_matplotlib_can_draw(tmp_path):
    with drawing(0.1, 400) as figure:
        pass
    save_figure(figure, tmp_path / "a.png")
    assert int.from_bytes((tmp_path / "a.png").read_bytes()[20:24], "big") < 2**16


def luminance(colour):
    """Relative luminance, as WCAG defines it."""
    values = np.array(to_rgb(colour))
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_colours_are_told_apart_in_grey_and_seen_on_white():
    for number, colour in enumerate(COLOURS[:3]):
        assert contrast(colour, "white") > 2.5
        for other in COLOURS[:number]:
            assert contrast(colour, other) > 1.5, (colour, other)


@pytest.mark.parametrize("name", [LEVELS, SIGNED, CONFIDENCE])
def test_maps_of_colours_grow_lighter_or_darker_all_the_way(name):
    steps = np.diff([luminance(each[:3]) for each in colormaps[name](np.linspace(0, 1, 64))])
    assert (steps > 0).all() or (steps < 0).all()


@pytest.mark.parametrize("layout", ["binaural", "ambisonic"])
def test_a_scene_becomes_a_png_that_depends_on_nothing_else(tmp_path, layout):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        save_figure(scene_figure(made_scene(layout)), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    pixels = imread(paths[0])
    assert pixels.shape[:2] == (1320, 1440)
    assert pixels[..., :3].std() > 0.1
    assert sorted(tmp_path.iterdir()) == paths


def test_the_plan_has_the_walls_and_everybody_in_metres():
    axes = axes_of(
        scene_figure(made_scene()),
        "Room from above: 4.0 x 6.0 m, 2.5 m high,\nRT60 0.40 s at 1 kHz",
    )
    [walls] = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (walls.get_xy(), walls.get_width(), walls.get_height()) == ((0, 0), 4.0, 6.0)
    assert axes.get_aspect() == 1
    positions = [
        tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() in ("o", "s")
    ]
    assert positions == [(3.0, 1.0), (3.5, 5.0), (1.0, 4.0)]


def boxes_of(axes):
    """The boxes of the labels of a plan, and of what they must not lie on, in pixels."""
    axes.figure.figure.draw_without_rendering()
    labels = {each.get_text(): Text.get_window_extent(each) for each in axes.texts}
    bodies = [each.get_window_extent() for each in axes.patches[1:]]
    return labels, bodies + [Bbox([at, at]).padded(4) for at in marks_of(axes).values()]


def marks_of(axes):
    lines = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    return {n: axes.transData.transform(line.get_xydata()[0]) for n, line in enumerate(lines)}


CROWDED = dataclasses.replace(
    SCENE,
    source=(1.3, 2.0, 1.5),
    noises=((1.0, 2.5, 1), (1.4, 2.4, 1), (0.6, 1.6, 1), (2.0, 2.0, 1)),
)


@pytest.mark.parametrize("scene", [SCENE, CROWDED], ids=["roomy", "crowded"])
@pytest.mark.parametrize("yaw", [0.0, 90.0, -135.0])
def test_labels_of_the_plan_overlap_nothing(scene, yaw):
    figure = scene_figure(made_scene(scene=dataclasses.replace(scene, yaw=yaw)))
    axes = axes_of(figure, "Room")
    labels, marks = boxes_of(axes)
    noises = [f"noise {number}" for number in range(1, 1 + len(scene.noises))]
    assert set(labels) >= {"source", "listener", *noises}
    for name, box in labels.items():
        others = [other for each, other in labels.items() if each != name] + marks
        assert not any(box.overlaps(other) for other in others), name
        assert axes.get_window_extent().padded(1).containsx(box.x0)
        assert axes.get_window_extent().padded(1).containsx(box.x1)


@pytest.mark.parametrize("yaw", [0.0, 90.0, -135.0])
def test_the_nose_points_where_the_listener_looks(yaw):
    figure = scene_figure(made_scene(scene=dataclasses.replace(SCENE, yaw=yaw)))
    [nose] = [p for p in axes_of(figure, "Room").patches if isinstance(p, Polygon)]
    away = nose.get_xy() - np.array(SCENE.listener[:2])
    tip = away[np.linalg.norm(away, axis=1).argmax()]
    np.testing.assert_allclose(np.degrees(np.arctan2(tip[1], tip[0])), yaw, atol=1e-6)
    # It stands out from the head, in another colour.
    [head] = [p for p in axes_of(figure, "Room").patches if isinstance(p, Circle)]
    assert np.linalg.norm(tip) > 1.4 * head.get_radius()
    assert contrast(nose.get_facecolor()[:3], head.get_facecolor()[:3]) > 3


def test_the_key_says_where_the_source_is():
    def key(scene):
        figure = scene_figure(made_scene(scene=scene))
        [legend] = [a.get_legend() for a in figure.axes if not a.axison]
        return " ".join(text.get_text().replace("\n", " ") for text in legend.get_texts())

    ahead = key(SCENE)
    assert "2.0 m away, azimuth 0°, elevation 0°, 1.5 m above the floor" in ahead
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
    axes = axes_of(scene_figure(made_scene()), "RT60 0.40 s, 0.50 s asked for")
    curve, slope, mark = axes.lines
    time, level = curve.get_data()
    early = (level < -5) & (level > -25)
    assert abs(-60 / np.polyfit(time[early], level[early], 1)[0] - RT60) < 0.1 * RT60
    # The dashed line goes through that part, with the measured slope, to the mark at -60 dB.
    np.testing.assert_allclose(np.diff(slope.get_xdata()), RT60)
    assert np.abs(np.interp(time[early], *slope.get_data()) - level[early]).max() < 2
    assert mark.get_xydata()[0].tolist() == slope.get_xydata()[-1].tolist()


def test_a_decay_without_rt60_is_drawn_without_slope():
    axes = axes_of(scene_figure(made_scene(measured=None)), "Decay at 1 kHz: RT60 0.50 s asked for")
    assert len(axes.lines) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_the_shortest_sounds_and_silence_are_drawn(tmp_path, seconds):
    made = made_scene(seconds=seconds)
    save_figure(scene_figure(made), tmp_path / "short.png")
    silent = dataclasses.replace(made, audio=0 * made.audio)
    save_figure(scene_figure(silent), tmp_path / "silent.png")
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
        save_figure(scene_figure(made_scene()), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_not_loaded_before_a_picture_is_drawn(tmp_path):
    kinds = ["directions", "mel", "reconstruction", "scene", "sound"]
    modules = ", ".join(f"gram_hear.plots.{kind}" for kind in kinds)
    code = f"import {modules}, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def excerpt(audio, start):
    return Excerpt(audio, RATE, start, file_rate=RATE, goes_on=False)


# --- sounds ---------------------------------------------------------------------------------


def sound_picture(channels=2, features=2, seconds=3.0, start=10.0, rows=None):
    """A sound of noise from ``start`` on, and rows of noise."""
    generator = np.random.default_rng(1)
    frames = 1 + round(100 * seconds)
    rows = round(seconds / 0.08) if rows is None else rows
    values = -5 + generator.standard_normal((features, frames, 32))
    if features == 7:
        values[4:] = generator.uniform(-1, 1, (3, frames, 32))
    return SoundPicture(
        title="noise",
        excerpt=excerpt(0.1 * generator.standard_normal((channels, round(seconds * RATE))), start),
        times=start + 0.035 + 0.08 * np.arange(rows),
        row=0.08,
        features=values,
        hop=0.01,
        mel_frequencies=np.geomspace(60, 7800, 32),
        rows=generator.standard_normal((rows, 20)),
    )


@pytest.mark.parametrize(("channels", "features"), [(1, 1), (2, 2), (4, 7)])
def test_a_sound_is_drawn_on_one_time_axis_in_seconds_of_its_file(channels, features):
    sound = sound_picture(channels, features)
    figure = sound_figure(sound)
    shown = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(shown) == 1 + features + 2
    assert {axes.get_xlim() for axes in shown} == {(10.0, 13.0)}
    figure.draw_without_rendering()
    # The axes lie under each other: one time is one position on the page.
    edges = np.array([[axes.get_position().x0, axes.get_position().x1] for axes in shown])
    np.testing.assert_allclose(edges, edges[:1].repeat(len(edges), axis=0), atol=1e-6)
    assert shown[-1].get_xlabel() == "time (s)"
    components = axes_of(figure, "Principal components")
    title, key = components._left_title, components.get_legend()  # matplotlib has no other name
    assert not title.get_window_extent().overlaps(key.get_window_extent())
    titles = [axes.get_title(loc="left") for axes in shown[1:-2]]
    assert all(
        name in title.lower()
        for name, title in zip(map(str.lower, feature_titles(features)), titles, strict=True)
    )


def test_log_mels_share_one_scale_in_decibels():
    sound = sound_picture(4, 7)
    sound.features[2] -= 3 / (10 / np.log(10))  # 3 dB
    images = [axes.images[0] for axes in sound_figure(sound).axes if axes.images]
    assert {image.get_clim() for image in images[:4]} == {(-70.0, 0.0)}
    assert {image.get_clim() for image in images[4:7]} == {(-1.0, 1.0)}
    peak = max(float(image.get_array().max()) for image in images[:4])
    np.testing.assert_allclose(peak, 0, atol=1e-9)
    # Frame k is centred at start + 10 k ms.
    np.testing.assert_allclose(images[0].get_extent()[:2], (9.995, 13.005))


def test_silence_has_the_colour_of_silence():
    sound = dataclasses.replace(sound_picture(2, 2), features=np.full((2, 50, 32), -11.5))
    [image] = axes_of(sound_figure(sound), "Log-mel, left").get_images()
    np.testing.assert_allclose(image.get_array(), -70)


def test_rows_are_drawn_around_their_centres():
    axes = axes_of(sound_figure(sound_picture()), "cosine similarity")
    np.testing.assert_allclose(axes.images[0].get_extent()[:2], (9.995, 9.995 + 38 * 0.08))


def test_a_waveform_keeps_its_extremes_however_long_it_is():
    sound = sound_picture(2, 2, seconds=20.0)
    sound.excerpt.audio[0, 123456] = 0.9
    axes = axes_of(sound_figure(sound), "Waveform, peak 0.9 of full scale")
    [left, right] = [collection.get_paths()[0].vertices for collection in axes.collections]
    np.testing.assert_allclose(left[:, 1].max(), 1.0)
    assert right[:, 1].max() < -1.5
    assert abs(left[left[:, 1].argmax(), 0] - (10 + 123456 / RATE)) < 20 / COLUMNS
    assert len(left) < 3 * COLUMNS


@pytest.mark.parametrize("rows", [1, 2])
def test_the_shortest_embeddings_and_silence_are_drawn(tmp_path, rows):
    short = sound_picture(seconds=0.01, rows=rows)
    save_figure(sound_figure(short), tmp_path / "short.png")
    silence = dataclasses.replace(short.excerpt, audio=0 * short.excerpt.audio)
    same = dataclasses.replace(short, rows=np.ones((rows, 20)), excerpt=silence)
    save_figure(sound_figure(same), tmp_path / "silent.png")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("shape", [(40, 10), (10, 40)])
def test_principal_components_are_those_of_the_singular_values(shape):
    rows = np.random.default_rng(0).standard_normal(shape) + 5
    scores, parts = principal_components(rows, 3)
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(scores), np.abs(left[:, :3] * values[:3]), atol=1e-9)
    np.testing.assert_allclose(parts, values[:3] ** 2 / (values**2).sum())
    assert (scores[np.abs(scores).argmax(axis=0), range(3)] > 0).all()


def test_what_has_no_variance_has_no_components_and_no_similarity():
    scores, parts = principal_components(np.full((5, 8), 7.3, dtype=np.float32), 3)
    assert not scores.any()
    assert not parts.any()
    assert not similarity(np.full((5, 8), 7.3, dtype=np.float32)).any()


def test_similarity_is_the_cosine_without_the_mean():
    rows = np.array([[1.0, 0], [3, 0], [2, 2], [2, -2]]) + 100
    expected = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]
    np.testing.assert_allclose(similarity(rows), expected, atol=1e-9)


def test_averages_are_of_equal_parts():
    np.testing.assert_allclose(average(np.arange(12.0), 4), [1, 4, 7, 10])
    np.testing.assert_allclose(average(np.ones((1001, 2)), 10), np.ones((10, 2)))
    few = np.arange(3.0)
    assert average(few, 4) is few
    figure = sound_figure(sound_picture(rows=SIDE + 10))
    assert axes_of(figure, "cosine").images[0].get_array().shape == (SIDE, SIDE)


# --- windows --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_a_window_is_drawn_heard_hidden_and_reconstructed(channels):
    config = named_config("tiny", channels)
    generator = torch.Generator().manual_seed(0)
    window = torch.randn(1, channels, 200, 128, generator=generator)
    np.testing.assert_array_equal(unpatchify(patchify(window, config.patch), config), window)
    target = window[0].numpy()
    hidden = np.zeros(target.shape, dtype=bool)
    hidden[:, 8:16, :16] = True
    figure = reconstruction_figure(target, target + 1, hidden, config, "title", start=4.0)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    first = images[0].axes
    assert "frequency (Hz)" in first.get_ylabel()
    frequencies = [int(each.get_text()) for each in first.get_yticklabels()]
    assert frequencies == [8000, 4000, 2000, 1000, 500, 125]
    centres = band_centres(config.front_end)
    np.testing.assert_allclose(
        np.interp(first.get_yticks() - 0.5, np.arange(128), centres), frequencies, rtol=0.05
    )
    assert figure.axes[3 * channels - 1].get_xlabel() == "time (s)"
    assert len(images) == 3 * channels
    assert images[0].get_extent() == [4.0, 6.0, 0, 128]
    heard, seen, made = (np.ma.filled(image.get_array(), np.nan).T for image in images[-3:])
    np.testing.assert_array_equal(heard, target[-1])
    assert np.isnan(seen[8:16, :16]).all()
    assert np.isfinite(seen).sum() == 200 * 128 - 8 * 16
    np.testing.assert_array_equal(made[8:16, :16], target[-1][8:16, :16] + 1)


# --- directions -----------------------------------------------------------------------------


def located(azimuth, doubt=0.3, silent=False):
    """What is found where directions have .5 of the probability, and their mirrors ``doubt``."""
    azimuth = np.asarray(azimuth, float)
    grid = sphere(256)
    probabilities = np.zeros((len(azimuth), len(grid)))
    for row, degrees in enumerate(azimuth):
        for angle, share in ((degrees, 0.5), (180 - degrees, doubt)):
            ahead = (np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0)
            near = grid @ ahead > np.cos(np.radians(NEAR - 5))
            probabilities[row] += share * near / max(1, near.sum())
    return Located(
        timestamps=35.0 + 80 * np.arange(len(azimuth)),
        azimuth=azimuth,
        elevation=0 * azimuth,
        confidence=np.where(np.isnan(azimuth), 0, 0.5),
        level=np.full(len(azimuth), -20.0),
        silent=np.isnan(azimuth),
        probabilities=probabilities.astype(np.float32),
        hop_ms=80.0,
    )


AZIMUTHS = (40.0, 30, np.nan, np.nan, -170, 100)


def draw_directions(found=None):
    sound = excerpt(np.random.default_rng(0).uniform(-0.5, 0.5, (2, RATE // 2)), 2.0)
    return direction_figure("a sound", sound, located(AZIMUTHS) if found is None else found)


def points_of(collection):
    return np.ma.filled(collection.get_offsets(), np.nan)


def test_directions_are_drawn_over_time_with_silence_marked():
    figure = draw_directions()
    azimuth, elevation = axes_of(figure, "Azimuth (deg"), axes_of(figure, "Elevation (deg")
    assert azimuth.get_xlim() == elevation.get_xlim() == (2.0, 2.5)
    mirrored, found = (points_of(each) for each in azimuth.collections)
    np.testing.assert_allclose(found[0], (2.035, 40))
    np.testing.assert_allclose(mirrored[[0, 1, 4], 1], (140, 150, -10))
    [silence] = azimuth.patches
    np.testing.assert_allclose((silence.get_x(), silence.get_width()), (2.155, 0.16))
    [key] = figure.legends
    assert "silence" in [each.get_text() for each in key.get_texts()]
    assert all("°" in each.get_text() for each in azimuth.get_yticklabels())
    assert elevation.get_xlabel() == "time (s)"


def test_doubt_between_front_and_back_is_drawn_as_strong_as_it_is():
    found = located(AZIMUTHS, doubt=0.3)
    np.testing.assert_allclose(found.mirrored[[0, 1, 4]], 0.3, atol=0.01)
    assert np.isnan(found.mirrored[[2, 3, 5]]).all()  # silent, and from the side
    np.testing.assert_allclose(located([40.0], doubt=0.0).mirrored, 0, atol=1e-6)
    alone = located([40.0], doubt=0.3)
    assert abs(alone.overall_mirrored - 0.3) < 0.01
    figure = draw_directions(alone)
    colours = axes_of(figure, "Azimuth (deg").collections[0].get_array()
    np.testing.assert_allclose(colours, 0.3, atol=0.01)
    [polar] = [each for each in figure.axes if each.name == "polar"]
    tips = [line.get_xydata()[-1] for line in polar.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(np.degrees([tip[0] for tip in tips]), (40, 140), atol=5)
    np.testing.assert_allclose([tip[1] for tip in tips], (0.5, 0.3), atol=0.01)
    assert "mirrored, front to back: 0.30" in polar.get_title()


@pytest.mark.parametrize(
    ("found", "key"),
    [
        (located([40.0], doubt=0.3), ["found", "mirrored", "overall", "overall, mirrored"]),
        (located([40.0], doubt=0.0), ["found", "mirrored", "overall"]),  # too short to be seen
        (located([90.0]), ["found", "overall"]),  # its own mirror image
        (located([np.nan]), ["silence"]),
    ],
)
def test_the_key_of_directions_lists_what_is_drawn(found, key):
    figure = draw_directions(found)
    [legend] = figure.legends
    shown = [each.get_text() for each in legend.get_texts()]
    names = {
        "direction found in a time step": "found",
        "mirrored, front to back": "mirrored",
        "overall direction": "overall",
    }
    assert [names.get(each, each) for each in shown] == key
    [polar] = [each for each in figure.axes if each.name == "polar"]
    arrows = [line for line in polar.lines if len(line.get_xdata()) == 2]
    assert len(arrows) == sum("overall" in each for each in key)


@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5])
def test_low_confidence_does_not_vanish_on_white(confidence):
    found = dataclasses.replace(located([40.0]), confidence=np.array([confidence]))
    figure = draw_directions(found)
    [polar] = [each for each in figure.axes if each.name == "polar"]
    for points in (axes_of(figure, "Azimuth (deg").collections[1], polar.collections[0]):
        [edge] = points.get_edgecolors()
        assert edge[3] == 1
        assert contrast(edge[:3], "white") > 7
        assert points.get_linewidths()[0] >= 0.5


def test_the_radius_is_named_and_the_scale_holds_all():
    figure = draw_directions(located(AZIMUTHS))
    labels = " ".join(each.get_xlabel() for each in figure.axes)
    assert f"probability of the directions within {NEAR:g}°" in labels.replace("\n", " ")
    assert "distance from the centre" in labels
    for confidence, limit in ((0.1, 0.25), (0.5, 0.5), (0.6, 1.0)):
        found = dataclasses.replace(located([40.0], doubt=0.0), confidence=np.array([confidence]))
        [polar] = [each for each in draw_directions(found).axes if each.name == "polar"]
        assert polar.get_rmax() == limit


def test_on_the_circle_the_front_is_above_and_left_is_left():
    [axes] = [each for each in draw_directions().axes if each.name == "polar"]
    axes.figure.figure.draw_without_rendering()
    centre, front, left = (
        axes.transData.transform((angle, radius))
        for angle, radius in ((0, 0), (0, 0.5), (np.pi / 2, 0.5))
    )
    assert front[1] > centre[1] + 50
    assert left[0] < centre[0] - 50
    np.testing.assert_allclose(points_of(axes.collections[0])[0], (np.radians(40), 0.5))


def test_silence_alone_is_drawn(tmp_path):
    figure = draw_directions(located([np.nan] * 6))
    save_figure(figure, tmp_path / "a.png")
    [polar] = [each for each in figure.axes if each.name == "polar"]
    assert polar.get_title() == "All time steps are silent"
