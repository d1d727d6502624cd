"""One's own sound in a room: gram-hear scene, and make_scene behind it."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from hear_tasks import SPLITS, write_task

from gram_hear.audio.files import read_audio
from gram_hear.errors import GramError
from gram_hear.scenes.heads import icosphere, sphere_responses
from gram_hear.scenes.noises import open_noise
from gram_hear.scenes.rendering import render
from gram_hear.scenes.rooms import Ranges, Scene
from gram_hear.scenes.single import make_scene

TESTS = Path(__file__).parent
SOUNDS = TESTS / "data" / "sounds"
AMBISONIC = ("--format", "ambisonics")  # needs no head, and so less time


@pytest.fixture
def sound(tmp_path):
    """Half a second of noise at 16 kHz, in tmp_path."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "sound.flac", samples, 16000)
    return "sound.flac"


def read(path):
    """What a scene's files hold: audio (channels, samples), and the metadata."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    metadata = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))
    assert rate == metadata["rate"]
    return audio.T, metadata


def heard(sound, metadata, rate=32000):
    """The sound convolved with the RIR of the scene in the metadata, plainly."""
    rirs = render(Scene.from_dict(metadata), metadata["layout"], rate).rirs
    dry = read_audio(sound, rate).audio[0].astype(np.float64)
    return np.stack([np.convolve(dry, channel) for channel in rirs[0]])


@pytest.mark.slow
def test_a_sound_becomes_what_is_heard_in_the_room_that_the_json_says(command, sound):
    code, out, err = command(
        *("scene", sound, "-o", "scene.wav", "--azimuth", 60, "--elevation", -10),
        *("--distance", 1.5, "--rt60", 0.3, "--seed", 4),
    )
    assert (code, out) == (0, "scene.wav\n"), err
    audio, metadata = read("scene.wav")
    np.testing.assert_allclose(audio, metadata["gain"] * heard(sound, metadata), atol=1e-6)
    assert soundfile.info("scene.wav").subtype == "FLOAT"
    assert metadata["layout"] == "binaural"
    assert metadata["channels"] == ["left", "right"]
    assert metadata["convention"] is None
    assert metadata["head"] == "kemar"
    np.testing.assert_allclose(metadata["azimuth"], 60)
    np.testing.assert_allclose(metadata["elevation"], -10)
    np.testing.assert_allclose(metadata["distance"], 1.5)
    np.testing.assert_allclose(metadata["direct_delay"], [1.5 / 343])
    assert metadata["rt60"] == 0.3
    assert metadata["noise"] is None
    assert metadata["noises"] == []
    energy = (audio**2).sum(axis=1)
    assert energy[0] > 2 * energy[1]  # the source is on the left


def test_both_formats_hear_the_same_scene_and_say_their_channels(command, sound):
    for name, format in (("ears", "binaural"), ("field", "ambisonics")):
        code, _, err = command(
            *("scene", sound, "-o", f"{name}.wav", "--format", format),
            *("--azimuth", 90, "--snr", 30, "--head" if name == "ears" else "--rate"),
            "sphere" if name == "ears" else 32000,
        )
        assert code == 0, err
    ears, of_ears = read("ears.wav")
    field, of_field = read("field.wav")
    assert len(ears) == 2
    assert len(field) == 4
    assert Scene.from_dict(of_ears) == Scene.from_dict(of_field)
    assert of_ears["head"] == "sphere"
    assert of_ears["noise"]["name"] == of_field["noise"]["name"]
    assert of_field["channels"] == ["W", "Y", "Z", "X"]
    assert of_field["convention"] == "ambix"
    assert 1 <= len(of_field["noises"]) <= 5
    assert (field[0] * field[1]).sum() > 0.2 * (field[0] ** 2).sum()  # Y is left
    assert (ears[0] ** 2).sum() > (ears[1] ** 2).sum()


@pytest.mark.slow
def test_a_seed_gives_the_same_bytes_and_another_one_another_room(command, sound):
    options = (*AMBISONIC, "--snr", 10)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert command("scene", sound, "-o", f"{name}.wav", *options, "--seed", seed)[0] == 0
    first, second, other = (Path(f"{name}.wav").read_bytes() for name in "abc")
    assert first == second
    assert b"PEAK" not in first[:200]  # which would hold the time of day
    texts = [Path(f"{name}.json").read_text() for name in "ab"]
    assert texts[0].replace("a.wav", "b.wav") == texts[1]
    assert first != other
    assert read("a.wav")[1]["room"] != read("c.wav")[1]["room"]


@pytest.mark.slow
def test_the_metadata_makes_the_scene_again(command, sound):
    assert command("scene", sound, "-o", "s.wav", *AMBISONIC, "--snr", 3, "--rt60", 0.3)[0] == 0
    audio, metadata = read("s.wav")
    dry = read_audio(sound, metadata["rate"]).audio[0]
    again = make_scene(dry, metadata["rate"], metadata["layout"], **metadata["options"])
    np.testing.assert_array_equal(again.audio, audio)
    assert json.loads(json.dumps(again.metadata)).items() <= metadata.items()


@pytest.mark.slow
@pytest.mark.parametrize("snr", [-5.0, 20.0])
def test_noise_has_the_ratio_that_is_asked_for(command, sound, snr):
    for name, options in (("dry", ()), ("noisy", ("--snr", snr))):
        code, _, err = command("scene", sound, "-o", f"{name}.wav", *AMBISONIC, *options)
        assert code == 0, err
    (_, of_clean), (noisy, of_noisy) = read("dry.wav"), read("noisy.wav")
    for key in ("room", "listener", "yaw", "source"):
        assert of_clean[key] == of_noisy[key]
    clean = heard(sound, of_noisy)
    noise = noisy / of_noisy["gain"] - clean
    start = of_noisy["noise"]["start"]
    window = slice(start, start + of_noisy["noise"]["samples"])
    ratio = (clean[:, window] ** 2).sum() / (noise[:, window] ** 2).sum()
    assert abs(10 * np.log10(ratio) - snr) < 0.05


@pytest.mark.slow
def test_noise_shorter_than_the_sound_comes_from_the_set_and_starts_somewhere(command, sound):
    Path("noises").mkdir()
    hum = 0.1 * np.random.default_rng(1).standard_normal(3200)
    soundfile.write("noises/hum.wav", hum, 16000)
    code, _, err = command(
        "scene", sound, "-o", "s.wav", *AMBISONIC, "--snr", 0, "--noise", "noises"
    )
    assert code == 0, err
    _, metadata = read("s.wav")
    assert "hum" in metadata["noise"]["name"]
    assert metadata["noise"]["set"] == "noises"
    assert metadata["noise"]["identity"]["sounds"] == 1
    assert metadata["noise"]["whole"]
    assert metadata["noise"]["samples"] == 6400
    assert 0 < metadata["noise"]["start"] <= metadata["samples"] - 6400
    assert metadata["noise"]["gain"] > 0


def test_the_tail_is_kept_or_cut(command, sound):
    for name, option in (("whole", "--tail"), ("cut", "--no-tail")):
        assert command("scene", sound, "-o", f"{name}.wav", *AMBISONIC, option)[0] == 0
    whole, cut = read("whole.wav")[0], read("cut.wav")[0]
    assert cut.shape[1] == 16000
    assert whole.shape[1] > 20000
    np.testing.assert_allclose(whole[:, :16000], cut, atol=1e-6)


def test_what_would_exceed_full_scale_gets_one_gain(command):
    soundfile.write("loud.wav", np.sign(np.random.default_rng(0).standard_normal(8000)), 32000)
    code, _, err = command("scene", "loud.wav", "-o", "s.wav", *AMBISONIC, "--distance", 0.3)
    assert code == 0, err
    audio, metadata = read("s.wav")
    assert 0.99 < np.abs(audio).max() <= 1
    assert 0 < metadata["gain"] < 0.5
    np.testing.assert_allclose(audio / metadata["gain"], heard("loud.wav", metadata), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("azimuth", "words"),
    [(37.4, "37° (left)"), (-90, "-90° (right)"), (0.2, "0° (front)"), (180, "180° (behind)")],
)
def test_what_was_drawn_is_said_beside_the_path(command, sound, azimuth, words):
    options = ("--azimuth", azimuth, "--elevation", -2, "--rt60", 0.4, "--no-tail", *AMBISONIC)
    code, out, err = command("scene", sound, "-o", "s.wav", *options)
    assert (code, out) == (0, "s.wav\n"), err
    distance = read("s.wav")[1]["distance"]
    said = f"azimuth {words}, elevation -2°, distance {distance:.1f} m, RT60 0.40 s"
    assert err.splitlines() == [said]


def test_of_several_channels_the_first_is_used_and_it_is_said(command, sound):
    samples, rate = soundfile.read(sound)
    soundfile.write("two.wav", np.stack([samples, -0.5 * samples], axis=1), rate)
    code, _, err = command("scene", "two.wav", "-o", "two-scene.wav", *AMBISONIC)
    assert code == 0
    assert "two.wav has 2 channels" in err
    assert command("scene", sound, "-o", "one-scene.wav", *AMBISONIC)[0] == 0
    np.testing.assert_allclose(read("two-scene.wav")[0], read("one-scene.wav")[0], atol=1e-4)


@pytest.mark.slow
def test_a_silent_sound_stays_silent_and_it_is_said(command):
    soundfile.write("silent.wav", np.zeros(8000), 32000)
    code, _, err = command("scene", "silent.wav", "-o", "s.wav", *AMBISONIC, "--snr", 10)
    assert code == 0
    assert "silent.wav is silent" in err
    audio, metadata = read("s.wav")
    assert not audio.any()
    assert metadata["silent"]
    assert metadata["noise"]["gain"] == 0


@pytest.mark.slow
def test_the_picture_is_drawn_and_the_json_printed(command, sound):
    code, out, err = command("scene", sound, "-o", "s.wav", *AMBISONIC, "--plot", "s.png", "--json")
    assert code == 0, err
    assert json.loads(out) == read("s.wav")[1]
    assert Path("s.png").read_bytes().startswith(b"\x89PNG")
    assert command("scene", sound, "-o", "t.wav", *AMBISONIC, "--plot", "t.svg")[0] == 0
    assert "listener</text>" in Path("t.svg").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("existing", ["s.wav", "s.json", "s.png"])
def test_nothing_is_replaced_without_force(command, sound, existing):
    Path(existing).write_text("precious")
    arguments = ("scene", sound, "-o", "s.wav", *AMBISONIC, "--plot", "s.png")
    code, _, err = command(*arguments)
    assert code == 1
    assert f"{existing} is there already. Use --force" in err
    assert sorted(path.name for path in Path().iterdir()) == sorted([existing, sound])
    assert command(*arguments, "--force")[0] == 0
    assert Path(existing).read_bytes() != b"precious"


def test_the_sound_itself_is_never_replaced(command):
    soundfile.write("sound.wav", np.ones(800), 32000)
    before = Path("sound.wav").read_bytes()
    for output in ("sound.wav", "./sound.wav"):
        code, _, err = command("scene", "sound.wav", "-o", output, *AMBISONIC, "--force")
        assert code == 1
        assert "is the sound itself" in err
    assert Path("sound.wav").read_bytes() == before


def test_wav_and_json_are_written_both_or_neither(command, sound):
    Path("s.json").mkdir()
    code, _, err = command("scene", sound, "-o", "s.wav", *AMBISONIC, "--force")
    assert code == 1
    assert "s.json is a folder" in err
    assert sorted(path.name for path in Path().iterdir()) == ["s.json", sound]


WRONG = [
    (("--distance", 0.05), "from the head's centre"),
    (("--distance", 60), "no position was found for a source at distance 60 m"),
    (("--rt60", 0.001), "RT60"),
    (("--rt60", 1000), "10 s at most"),
    (("--rt60", "nan"), "rt60 is nan"),
    (("--elevation", 91), "-90 (below) to 90 (above)"),
    (("--azimuth", "inf"), "azimuth is inf"),
    (("--snr", 1000), "1000"),
    (("--snr", "nan"), "nan"),
    (("--seed", -1), "The seed is -1"),
    (("--rate", 100), "The rate is 100"),
    (("--head", "nobody.sofa"), "nobody.sofa"),
    ((*AMBISONIC, "--head", "sphere"), "Ambisonic scenes have none"),
    (("--noise", "noises"), "without snr"),
    (("--noise", "nowhere", "--snr", 5), "nowhere"),
    (("--plot", "s.jpg"), "s.jpg must end in .png, .svg or .pdf"),
    (("--plot", "nowhere/s.png"), "no folder nowhere"),
    (("-o", "s.flac"), "must end in .wav"),
    (("-o", "nowhere/s.wav"), "no folder nowhere"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value))
def test_what_is_wrong_is_said_and_nothing_is_written(command, sound, options, message):
    Path("noises").mkdir()
    soundfile.write("noises/hum.wav", np.ones(3200), 16000)
    before = sorted(Path().rglob("*"))
    code, out, err = command("scene", sound, "-o", "s.wav", *options)
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("error: ")
    assert sorted(Path().rglob("*")) == before


def test_a_head_that_contradicts_itself_is_taken_only_when_asked(command, sound):
    directions = icosphere(1)
    with h5py.File("head.sofa", "w") as file:
        file.attrs["SOFAConventions"] = "SimpleFreeFieldHRIR"
        file["Data.IR"] = sphere_responses(directions, 32000)[:, ::-1]
        file["Data.SamplingRate"] = [32000.0]
        file["SourcePosition"] = 1.4 * directions
        file["ReceiverPosition"] = [[0.0, 0.09, 0.0], [0.0, -0.09, 0.0]]
    head = ("--head", "head.sofa", "--azimuth", 90, "--elevation", 0, "--rt60", 0.2)
    code, _, err = command("scene", sound, "-o", "s.wav", *head)
    assert code == 1
    assert "the nearer ear is the quieter one in 8 and the later one in 8" in " ".join(err.split())
    code, _, _ = command("scene", sound, "-o", "s.wav", *head, "--no-check-head")
    assert code == 0
    left, right = (soundfile.read("s.wav")[0] ** 2).sum(axis=0)
    assert left < right


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no file"), (b"", "empty"), (b"no sound", "could not be read")]
)
def test_a_sound_that_cannot_be_read_is_an_error(command, content, message):
    if content is not None:
        Path("bad.wav").write_bytes(content)
    code, _, err = command("scene", "bad.wav", "-o", "s.wav")
    assert code == 1
    assert message in err
    assert "bad.wav" in err


def test_a_sound_with_nan_is_an_error(command):
    samples = np.ones(1000, dtype=np.float32)
    samples[5] = np.nan
    soundfile.write("bad.wav", samples, 32000, subtype="FLOAT")
    code, _, err = command("scene", "bad.wav", "-o", "s.wav")
    assert code == 1
    assert "NaN" in err


@pytest.mark.parametrize(
    ("module", "extra", "options"),
    [("matplotlib", "plot", ("--plot", "s.png")), ("pyroomacoustics", "scenes", ())],
)
def test_a_missing_extra_is_named(command, sound, monkeypatch, module, extra, options):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = command("scene", sound, "-o", "s.wav", *options)
    assert code == 1
    assert f"gram-hear[{extra}]" in err
    assert not Path("s.wav").exists()


@pytest.mark.parametrize(
    ("audio", "options", "message"),
    [
        (np.ones((2, 100)), {}, "2 channels"),
        (np.ones(0), {}, "no samples"),
        (np.full(100, np.inf), {}, "NaN or infinite"),
        (np.ones(100), {"layout": "mono"}, "Unknown layout 'mono'"),
        (np.ones(100), {"snr": 5.0, "noise": 16000}, "16000 Hz"),
    ],
)
def test_make_scene_refuses_what_it_cannot_place(audio, options, message):
    options = {"layout": "ambisonic", **options}
    if "noise" in options:
        options["noise"] = open_noise(None, options["noise"])
    with pytest.raises(GramError, match=message):
        make_scene(audio, 32000, **options)


@pytest.mark.slow
def test_the_audio_that_is_given_stays_as_it_is():
    audio = 0.1 * np.random.default_rng(0).standard_normal(1000)
    before = audio.copy()
    made = make_scene(audio, 32000, "ambisonic", snr=0.0)
    np.testing.assert_array_equal(audio, before)
    assert made.audio.dtype == np.float32


# --- the documentation ------------------------------------------------------------------------


DOCS = TESTS.parent / "docs"
DOCUMENT = (DOCS / "how-to" / "scenes.md").read_text(encoding="utf-8")
REFERENCE = (DOCS / "reference" / "scenes.md").read_text(encoding="utf-8")


@pytest.fixture
def tasks(tmp_path):
    """A HEAR task of three short tones, in tmp_path."""
    time = np.arange(1600) / 8000
    pitches = {"low": 300, "high": 900}
    write_task(
        tmp_path / "tasks" / "digits-v1-full",
        {
            split: {f"{label}.wav": [label]}
            for split, label in zip(SPLITS, ["high", "low", "low"], strict=True)
        },
        labels=("high", "low"),
        sound=lambda labels: 0.3 * np.sin(2 * np.pi * pitches[labels[0]] * time),
        rate=8000,
        task_name="digits",
    )


@pytest.mark.slow
def test_the_examples_run(command, tasks):
    shutil.copy(SOUNDS / "mono_vowels.mp3", "speech.mp3")
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    commands = 0
    for language, block in blocks:
        if language == "python":
            names = {}
            exec(compile(block, "scenes.md", "exec"), names)
            continue
        for line in block.splitlines():
            name, *arguments = shlex.split(line)
            if name == "gram-hear":
                # In this process: the result is the same, and the start of others takes longer.
                arguments += [] if arguments[0] == "scene" else ["--jobs", "1"]
                code, _, err = command(*arguments)
                assert code == 0, f"{line}: {err}"
                commands += 1
    assert commands == 8
    assert len(names["responses"]) == 1 + len(names["metadata"]["noises"])
    party, of_party = read("party.wav")
    ambix, of_ambix = read("party-ambix.wav")
    assert (len(party), len(ambix)) == (2, 4)
    assert Scene.from_dict(of_party) == Scene.from_dict(of_ambix)
    for format in ("binaural", "ambisonics"):
        for task in (f"digits-v1-full-{format}", f"digits-v1-full-{format}-localization"):
            assert (Path("natural") / task / "task_metadata.json").exists()


def test_the_table_of_ranges_is_what_is_drawn_from():
    [table] = re.findall(r"^\| drawn \|.*?\n\n", REFERENCE, re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")[2:-2]]
    stated = {name: tuple(map(float, re.findall(r"[\d.]+", text)[:2])) for name, text in rows}
    ranges = Ranges()
    assert stated == {
        "width": ranges.width,
        "depth": ranges.depth,
        "height": ranges.height,
        "RT60": ranges.rt60,
        "height of the listener": ranges.listener_height,
        "height of sources": ranges.source_height,
        "distance of the source": ranges.distance,
        "noise sources": ranges.noise_sources,
    }
    assert f"{ranges.gap} m" in REFERENCE
