"""gram-hear plot and gram-hear locate, from the command line to the picture."""

import csv
import io
import json
import math
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from gram_hear import localisation, style
from gram_hear.audio.excerpts import read_excerpt
from gram_hear.audio.files import read_audio
from gram_hear.checkpoints.store import encoder_only, load_checkpoint, save_checkpoint
from gram_hear.commands.gram_hear.locate import _cells
from gram_hear.hear import Options, from_checkpoint, load_model
from gram_hear.localisation import Head, Locator, describe_head
from gram_hear.plots import directions, sound
from gram_hear.plots.sound import picture_sound
from gram_hear.scenes.geometry import unit_vector
from gram_hear.scenes.single import make_scene

TESTS = Path(__file__).parent
SOUNDS = TESTS / "data" / "sounds"
PAGE = (TESTS.parent / "docs" / "how-to" / "pictures.md").read_text(encoding="utf-8")
MODEL = "gram-tiny-untrained"


@pytest.fixture
def binaural(tmp_path):
    """A second of noise and a second of silence at 16 kHz, in tmp_path."""
    samples = 0.1 * np.random.default_rng(0).standard_normal((32000, 2))
    samples[16000:] = 0
    soundfile.write(tmp_path / "sound.wav", samples, 16000)
    return "sound.wav"


@pytest.fixture
def head(tmp_path):
    """A head that hears everything at azimuth 90."""
    return write_head(tmp_path / "head.safetensors", load_checkpoint(MODEL), MODEL)


def write_head(path, checkpoint, name, azimuths=(90,)):
    """Write a head that hears everything at some azimuths."""
    size = checkpoint.config.frequency_patches * checkpoint.config.encoder.width
    options, head = Options(layer=1), Head(size, 0, 256)
    head.output.weight.data.zero_()
    at = torch.tensor(np.array([unit_vector(each, 0.0) for each in azimuths]).T).float()
    head.output.bias.data.copy_(40 * (head.grid @ at).max(dim=1).values)
    config = describe_head(checkpoint, name, options, size, 0, 256)
    return Locator(from_checkpoint(checkpoint, options), head, config).save(path)


# --- plot -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sound", "height"),
    [("mono_vowels.mp3", 1000), ("binaural_passing.flac", 1000), ("ambix_circling.wav", 2000)],
)
def test_a_sound_of_any_layout_and_rate_becomes_a_picture(command, tmp_path, sound, height):
    code, out, err = command(
        "plot", SOUNDS / sound, "-o", "a.png", "-m", MODEL, "--layer", 1, "--duration", 1.5
    )
    assert (code, out) == (0, "a.png\n"), err
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape[1] == 1440
    assert pixels.shape[0] > height
    assert pixels[..., :3].std() > 0.1


@pytest.mark.slow
def test_the_picture_is_named_after_the_sound_and_not_replaced(command, tmp_path, binaural):
    options = ("plot", binaural, "--layer", 1)
    assert command(*options)[:2] == (0, "sound.png\n")
    code, out, err = command(*options)
    assert (code, out) == (1, "")
    assert "sound.png is there already. Use --force" in err
    assert command(*options, "--force")[0] == 0


def test_of_a_long_file_a_part_is_shown_and_that_is_said(command, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", 0.1 * np.ones((8000 * 12, 1)), 8000)
    monkeypatch.setattr("gram_hear.commands.gram_hear.plot.SHOWN", 1.0)
    code, _, err = command("plot", "long.wav", "--layer", 1, "--start", 10.5)
    assert code == 0
    assert "long.wav goes on: 10.5 to 11.5 s are shown; see --duration" in err
    code, _, err = command("plot", "long.wav", "--start", 12, "--force")
    assert code == 1
    assert "start is 12 s, and long.wav ends at 12.00 s" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--start", -1), "start is -1 s; it must be 0 or more"),
        (("--duration", 0), "duration is 0 s; it must be more than 0"),
        (("--duration", 601), "at most 600 s"),
        (("--reconstruction", "--layer", 1), "--layer and --reconstruction were both given"),
        (("--reconstruction", "--seed", 2**64), "--seed is 18446744073709551616"),
        (("-o", "a.jpg"), "a.jpg must end in .png, .svg or .pdf"),
        (("-o", "none/a.png"), "no folder none"),
        (("-m", "gram-tiny-untraned"), "Did you mean"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_and_writes_nothing(
    command, tmp_path, binaural, options, message
):
    code, out, err = command("plot", binaural, *options)
    assert (code, out) == (1, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["sound.wav"]


def plane_wave(convention, azimuth=60.0):
    """A second of noise from the left front at 32 kHz, (4, samples), W Y Z X or as it is asked."""
    w = 0.1 * np.random.default_rng(0).standard_normal(32000)
    y, x = (f(math.radians(azimuth)) * w for f in (math.sin, math.cos))
    channels = {"ambix": (w, y, 0 * w, x), "fuma": (w / math.sqrt(2), x, y, 0 * w)}
    return np.stack(channels[convention]).astype(np.float32)


def sound_picture(path, model, convention=None):
    excerpt = read_excerpt(path, model.sample_rate, convention=convention)
    return picture_sound(path, excerpt, model)


@pytest.mark.parametrize("convention", ["ambix", "fuma"])
def test_ambisonic_sound_is_drawn_in_ambix_with_the_cosines_of_their_direction(
    tmp_path, convention
):
    soundfile.write(tmp_path / "wave.wav", plane_wave(convention).T, 32000, subtype="FLOAT")
    model = load_model(MODEL, layer=1)
    picture = sound_picture(tmp_path / "wave.wav", model, convention)
    np.testing.assert_allclose(picture.excerpt.audio, plane_wave("ambix"), atol=1e-6)
    left, up, front = picture.features[4:].mean(axis=1)  # over time, (mels,)
    np.testing.assert_allclose(left, math.sin(math.radians(60)), atol=0.01)
    np.testing.assert_allclose(up, 0, atol=0.01)
    np.testing.assert_allclose(front, 0.5, atol=0.01)


def test_rows_are_drawn_less_those_of_silence(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros((32000 * 3, 1)), 32000)
    picture = sound_picture(tmp_path / "silence.wav", load_model(MODEL))
    assert picture.rows.shape == (38, 1536)
    np.testing.assert_allclose(picture.rows, 0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mono$_$.wav", os.fsdecode(b"bad\xff.wav")])
def test_names_are_not_read_as_formulas(command, tmp_path, head, name):
    try:
        with open(tmp_path / name, "wb") as file:
            soundfile.write(file, 0.1 * np.ones((8000, 2)), 16000, format="WAV")
    except OSError:
        pytest.skip("the file system takes no such name")
    assert command("plot", name, "--layer", 1, "-o", "a.png")[0] == 0
    assert command("locate", name, "--locator", head, "-o", "b.png")[0] == 0


def test_files_that_are_no_sound_are_errors(command, tmp_path):
    (tmp_path / "empty.wav").touch()
    for name, message in {"none.wav": "no file none.wav", "empty.wav": "is empty"}.items():
        code, _, err = command("plot", name, "--layer", 1)
        assert code == 1
        assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("sound", ["mono_vowels.mp3", "ambix_circling.wav"])
def test_a_masked_window_is_reconstructed(command, tmp_path, sound):
    options = ("plot", SOUNDS / sound, "--reconstruction", "-m", MODEL, "--start", 0.5)
    code, out, err = command(*options)
    assert (code, out) == (0, f"{Path(sound).stem}.reconstruction.png\n"), err
    first = imread(tmp_path / out.strip())
    assert command(*options, "-o", "again.png")[0] == 0
    assert command(*options, "-o", "other.png", "--seed", 1)[0] == 0
    np.testing.assert_array_equal(imread(tmp_path / "again.png"), first)
    assert (imread(tmp_path / "other.png") != first).any()


def test_an_encoder_alone_does_not_reconstruct(command, tmp_path, binaural):
    save_checkpoint(encoder_only(load_checkpoint(MODEL)), tmp_path / "encoder.safetensors")
    code, _, err = command("plot", binaural, "--reconstruction", "-m", "encoder.safetensors")
    assert code == 1
    assert "encoder.safetensors holds an encoder alone" in err
    assert "without --encoder-only" in err


# --- locate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("azimuth", "cell"),
    [
        (0.0, "0 front"),
        (-0.3, "0 front"),
        (2.0, "2 front"),
        (49.0, "49 front left"),
        (90.0, "90 left"),
        (153.0, "153 behind left"),
        (179.7, "180 behind"),
        (-180.0, "-180 behind"),
        (-115.0, "-115 behind right"),
        (-57.0, "-57 front right"),
        (-70.0, "-70 right"),
    ],
)
def test_directions_are_named_in_front_and_behind(azimuth, cell):
    assert _cells((azimuth, -0.2, 0.5)) == (cell, "0", "0.50")


def test_locate_prints_directions_and_draws_them(command, tmp_path, binaural, head):
    code, out, err = command("locate", binaural, "--locator", head, "-o", "a.png", "--step", 1)
    assert code == 0, err
    _, sounds, silent, overall = (re.split("  +", line) for line in out.splitlines())
    assert (sounds[0], overall[0]) == ("0.00 - 1.00", "overall")
    assert sounds[1:4] == overall[1:4]
    azimuth, side = sounds[1].split()
    assert (abs(int(azimuth) - 90) < 4, side) == (True, "left")
    assert abs(int(sounds[2])) < 4
    assert silent[:5] == ["1.00 - 2.00", "silent", "-", "-", "-"]
    assert "note" not in err  # all rows agree, and are sure
    assert "drawn: a.png" in err
    assert imread(tmp_path / "a.png").shape[:2] == (900, 1440)


def test_no_angle_is_minus_zero(command):
    code, out, err = command("locate", SOUNDS / "binaural_room.flac", "--device", "cpu")
    assert code == 0, err
    assert "  0  " in out
    assert " -0 " not in out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
def test_pictures_are_vectors_where_the_name_says_so(
    command, tmp_path, binaural, head, name, begin
):
    options = ("locate", binaural, "--locator", head, "-o", name)
    assert command(*options)[0] == 0
    first = (tmp_path / name).read_bytes()
    assert first.startswith(begin)
    assert command(*options, "--force")[0] == 0
    assert (tmp_path / name).read_bytes() == first


def test_locate_prints_every_row_as_json_and_csv(command, binaural, head):
    code, out, _ = command("locate", binaural, "--locator", head, "--json", "--start", 0.5)
    assert code == 0
    found = json.loads(out)
    assert abs(found["overall"]["azimuth_deg"] - 90) < 4
    assert (found["file"], found["model"]) == ("sound.wav", MODEL)
    times = [row["time_s"] for row in found["rows"]]
    np.testing.assert_allclose(times, 0.535 + 0.08 * np.arange(19))
    assert abs(found["rows"][0]["azimuth_deg"] - 90) < 4
    assert found["rows"][-1]["azimuth_deg"] is None
    assert [row["silent"] for row in found["rows"]] == [
        row["azimuth_deg"] is None for row in found["rows"]
    ]
    code, out, _ = command("locate", binaural, "--head", head, "--csv", "--start", 0.5)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["time_s"]) for row in rows] == times
    assert float(rows[0]["azimuth_deg"]) == found["rows"][0]["azimuth_deg"]
    assert rows[-1]["azimuth_deg"] == ""
    assert all(row["mirrored_azimuth_deg"] == "" for row in rows)  # from the side
    assert found["overall"]["mirrored_probability"] is None
    assert math.isclose(float(rows[0]["level_dbfs"]), -20, abs_tol=1.5)


@pytest.mark.slow
@pytest.mark.parametrize(("azimuth", "mirrored"), [(30, 150), (-30, -150), (180, 0), (0, 180)])
def test_the_mirrored_direction_stands_beside_the_direction(
    command, tmp_path, binaural, azimuth, mirrored
):
    azimuths = (azimuth, mirrored)
    head = write_head(tmp_path / "h.safetensors", load_checkpoint(MODEL), MODEL, azimuths)
    code, out, _ = command("locate", binaural, "--locator", head, "--step", 1)
    assert code == 0
    columns, sounds, _, overall = (re.split("  +", line) for line in out.splitlines())
    place = columns.index("mirrored (°)")
    assert sounds[place] == overall[place]
    found = re.fullmatch(r"(-?\d+) \((0\.\d\d)\)", sounds[place])
    assert (180 - int(found[1]) - int(sounds[1].split()[0])) % 360 in (0, 1, 359)
    assert 0.3 < float(found[2]) < 0.6
    _, out, _ = command("locate", binaural, "--locator", head, "--json")
    facts = json.loads(out)
    for each in (facts["overall"], facts["rows"][0]):
        turned = 180 - each["azimuth_deg"] - each["mirrored_azimuth_deg"]
        assert abs(turned) < 0.01 or abs(turned - 360) < 0.01
        assert -180 < each["mirrored_azimuth_deg"] <= 180
        assert 0.3 < each["mirrored_probability"] < 0.6
    assert facts["rows"][-1]["mirrored_probability"] is None


def in_a_room(layout):
    """White noise from one direction in a mild room."""
    white = 0.1 * np.random.default_rng(0).standard_normal(64000)
    options = {"azimuth": -45, "elevation": 0, "distance": 1.5, "rt60": 0.3}
    return make_scene(white, 32000, layout, seed=1, **options).audio


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sound", "words"),
    [
        ("binaural_room.flac", "seems to move, or to come from several directions"),
        ("ambix_circling.wav", "seems to move, or to come from several directions"),
        ("binaural", ""),
        ("ambisonic", ""),
        ("faint", r"doubtful \(confidence 0\.1\d\), and may be on the wrong side\.$"),
    ],
)
def test_what_the_overall_direction_is_worth_is_said(command, tmp_path, sound, words):
    path = SOUNDS / sound
    if sound == "faint":
        vowels = read_audio(SOUNDS / "mono_vowels.mp3", 32000).audio[0]
        made = make_scene(vowels, 32000, seed=8, azimuth=180, distance=2, rt60=0.5)
        soundfile.write(path := tmp_path / "faint.wav", made.audio.T, 32000)
    elif not path.suffix:
        soundfile.write(path := tmp_path / "white.wav", in_a_room(sound).T, 32000)
    code, _, err = command("locate", path)
    assert code == 0
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == bool(words), err
    assert not words or re.search(words, notes[0])


def test_silence_has_no_direction(command, tmp_path, head):
    soundfile.write(tmp_path / "silence.wav", np.zeros((8000, 2)), 16000)
    code, out, err = command("locate", "silence.wav", "--locator", head, "--json")
    assert code == 0
    assert json.loads(out)["overall"] is None
    assert "all of it is silent" in err


def spy(monkeypatch, module, name):
    """Return what a module's function will have returned."""
    returned, call = [], getattr(module, name)

    def wrapper(*arguments, **options):
        returned.append(call(*arguments, **options))
        return returned[-1]

    monkeypatch.setattr(module, name, wrapper)
    return returned


@pytest.mark.parametrize("convention", ["ambix", "fuma"])
def test_ambisonic_sound_is_located_and_drawn_in_ambix(
    command, tmp_path, published_file, monkeypatch, convention
):
    """With four channels the other head answers, and nobody has to name it."""
    model = published_file(7)
    head = write_head(tmp_path / "head.safetensors", load_checkpoint(model), str(model))
    monkeypatch.setitem(localisation.BUNDLED, "ambisonic", str(head))
    drawn = []
    monkeypatch.setattr(
        directions, "direction_figure", lambda name, sound, found: drawn.append(sound)
    )
    monkeypatch.setattr(style, "save_figure", lambda *_: None)
    loaded = spy(monkeypatch, localisation, "load_locator")
    soundfile.write(tmp_path / "wave.wav", plane_wave(convention).T, 32000, subtype="FLOAT")
    options = ("--model", model, "--convention", convention, "-o", "a.png", "--json")
    code, out, err = command("locate", "wave.wav", *options)
    assert code == 0, err
    assert abs(json.loads(out)["overall"]["azimuth_deg"] - 90) < 4
    assert loaded[0].model.options.convention is None  # it is handed AmbiX
    np.testing.assert_allclose(drawn[0].audio, plane_wave("ambix"), atol=1e-6)


@pytest.mark.slow
def test_b_format_is_drawn_and_located_as_its_ambix_copy(
    command, published_file, b_format, monkeypatch
):
    model = published_file(7)
    head = write_head(b_format[0].with_name("h.safetensors"), load_checkpoint(model), str(model))
    pictures = spy(monkeypatch, sound, "picture_sound")
    answers = []
    for path in b_format:
        code, out, err = command("locate", path, "--locator", head, "--model", model, "--csv")
        assert code == 0, err
        answers.append(out)
        assert command("plot", path, "--model", model, "-o", f"{path.stem}.png")[0] == 0
    assert answers[0] == answers[1]
    assert np.array_equal(pictures[0].excerpt.audio, pictures[1].excerpt.audio)
    for name in ("features", "rows"):
        assert np.array_equal(getattr(pictures[0], name), getattr(pictures[1], name))
    for verb, more in (("locate", ("--locator", head)), ("plot", ("-o", "new.png"))):
        code, out, err = command(
            verb, b_format[0], "--model", model, "--convention", "ambix", *more
        )
        assert (code, out) == (1, "")
        assert "'fuma', and 'ambix' was asked for" in err


def test_locate_says_of_mono_that_it_has_no_direction(command):
    code, out, err = command("locate", SOUNDS / "mono_impacts.ogg")
    assert (code, out) == (1, "")
    assert "mono_impacts.ogg is mono" in err
    assert (
        "a binaural sound (2 channels, the left ear first) or a first-order Ambisonic sound" in err
    )


def test_a_binaural_head_takes_two_ears_alone(command, head):
    for name, message in {
        "mono_impacts.ogg": "is mono",
        "ambix_circling.wav": "Ambisonic",
    }.items():
        code, out, err = command("locate", SOUNDS / name, "--locator", head)
        assert (code, out) == (1, "")
        assert message in err
        assert "Give a binaural sound" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--json", "--csv"), "choose one"),
        (("--step", 0), "--step is 0 s"),
        (("--step", "inf"), "--step is inf s"),
        (("--duration", -1), "duration is -1 s"),
        (("--locator", "none.safetensors"), "no such file"),
        (("--model", "gramm-tiny-untrained"), "another model"),
        (("-o", "sound.wav"), "must end in .png, .svg or .pdf"),
    ],
)
def test_what_cannot_be_located_is_an_error(command, binaural, head, options, message):
    code, out, err = command("locate", binaural, "--locator", head, *options)
    assert (code, out) == (1, "")
    assert message in err


# --- the documentation ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_examples_run(command, tmp_path):
    shutil.copy(SOUNDS / "mono_vowels.mp3", "speech.mp3")
    shutil.copy(SOUNDS / "binaural_passing.flac", "street.flac")
    printed, names = "", {}
    for language, block in re.findall(
        r"^```(python|sh)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
    ):
        if language == "python":
            exec(compile(block, "pictures.md", "exec"), names)
            continue
        for line in block.splitlines():
            code, out, err = command(*shlex.split(line)[1:])
            assert code == 0, f"{line}: {err}"
            printed += out + err
    shown = set(re.findall(r"images/(\w+\.png)", PAGE))
    assert shown == {"sound.png", "window.png", "directions.png"}
    for name in shown | {"scene.png"}:
        drawn, kept = imread(tmp_path / name), imread(TESTS.parent / "docs" / "images" / name)
        assert drawn.shape[:2] == kept.shape[:2]  # those on the page are not of an older version
    # The table of the page is what was printed.
    [table] = re.findall(r"^```text\n(time.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in table.splitlines():
        for cell in re.split(r" {2,}", line):
            assert cell in printed
