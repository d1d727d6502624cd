"""Where a sound comes from: heads and their files, rows and silence, and the recipe's training."""

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from math import atan2, cos, degrees, nan, radians, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from gram_hear import localisation
from gram_hear.audio.files import read_audio
from gram_hear.audio.layouts import encode_ambix
from gram_hear.checkpoints.store import encoder_only, load_checkpoint, save_checkpoint
from gram_hear.errors import AudioError, CheckpointError, OptionError
from gram_hear.hear import Options, from_checkpoint, get_timestamp_embeddings
from gram_hear.localisation import (
    HEAD_KEY,
    Head,
    Located,
    Locator,
    answers,
    describe_head,
    fingerprint,
    is_silent,
    load_locator,
    pooled,
    row_levels,
    row_powers,
    sphere,
)
from gram_hear.scenes.geometry import angles, unit_vector
from gram_hear.scenes.rendering import Rendered
from gram_hear.scenes.rir_building import RirPlan, build_rirs

MODEL = "gram-tiny-untrained"
RATE = 32000
SIZE = 8 * 192
COUNT = 256
SOUND = Path(__file__).parent / "data" / "sounds" / "binaural_room.flac"
RECIPE = Path(__file__).parent.parent / "weights" / "recipe" / "locator.py"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is untrained")]


@pytest.fixture(scope="session")
def checkpoint():
    return load_checkpoint(MODEL)


@pytest.fixture(scope="session")
def ambisonic(published_file):
    """A small Ambisonic model of random weights."""
    return load_checkpoint(published_file(7))


def locator_of(checkpoint, direction=None, hidden=8):
    """A locator on the first block; its head is random, or hears all from azimuth, elevation."""
    torch.manual_seed(0)
    size = checkpoint.config.frequency_patches * checkpoint.config.encoder.width
    head = Head(size, hidden, COUNT)
    if direction is not None:
        head.output.weight.data.zero_()
        head.output.bias.data.copy_(
            40 * head.grid @ torch.from_numpy(unit_vector(*direction)).float()
        )
    options = Options(layer=1)
    config = describe_head(checkpoint, MODEL, options, size, hidden, COUNT)
    return Locator(from_checkpoint(checkpoint, options), head, config)


def noise(seconds, rate=RATE, seed=0, channels=2):
    samples = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return (0.1 * samples).astype(np.float32)


# --- directions -----------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [(0, 0), (90, 0), (-90, 0), (180, 0), (30, 45), (-135, -60)])
def test_the_likeliest_directions_are_the_answer(checkpoint, direction):
    found = locator_of(checkpoint, direction).locate(noise(0.5))
    expected = unit_vector(*direction)
    for azimuth, elevation in [
        *zip(found.azimuth, found.elevation, strict=True),
        found.overall[:2],
    ]:
        angle = np.degrees(np.arccos(np.dot(unit_vector(azimuth, elevation), expected).clip(-1, 1)))
        assert angle < 3
    assert ((found.confidence > 0.8) & (found.confidence <= 1)).all()


def test_the_sphere_is_evenly_covered():
    grid = sphere(COUNT)
    np.testing.assert_allclose(np.linalg.norm(grid, axis=1), 1)
    np.testing.assert_allclose(grid.mean(axis=0), 0, atol=0.005)
    anywhere = np.random.default_rng(0).standard_normal((1000, 3))
    anywhere /= np.linalg.norm(anywhere, axis=1, keepdims=True)
    assert np.degrees(np.arccos((anywhere @ grid.T).max(axis=1))).max() < 12


def test_of_rows_together_the_surest_count_most():
    sure, unsure = np.zeros(100, dtype=np.float32), np.full(100, 0.01, dtype=np.float32)
    sure[7] = 1
    rows = np.stack([sure, *[unsure] * 100])
    together = pooled(rows)
    assert together.dtype == np.float64
    np.testing.assert_allclose(together.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(together[7], 0.505, rtol=1e-6)  # each unsure row counts 1 / 100
    np.testing.assert_allclose(pooled(rows[1:]), unsure, rtol=1e-6)
    two = np.stack([np.roll(sure, 1), sure])  # as sure as one another
    np.testing.assert_allclose(pooled(two)[[7, 8]], 0.5)


def test_where_front_and_back_sound_alike_the_answer_is_one_of_them_and_unsure():
    grid = sphere(COUNT)
    front, back = (np.exp(40 * (grid @ unit_vector(azimuth, 0) - 1)) for azimuth in (30, 150))
    probabilities = 0.6 * front / front.sum() + 0.4 * back / back.sum()
    [answer] = answers(probabilities[None])
    azimuth, elevation = angles(answer)
    assert abs(azimuth - 30) < 2
    assert abs(elevation) < 2
    assert 0.5 < np.linalg.norm(answer) < 0.61


def test_rows_are_those_of_the_model_whatever_the_blocks(checkpoint, monkeypatch):
    locator, audio = locator_of(checkpoint), noise(5.0)
    rows, timestamps = get_timestamp_embeddings(audio[None], locator.model)
    expected = locator.head(rows[0]).exp().detach().numpy()
    for seconds in (60.0, 0.7):
        monkeypatch.setattr(localisation, "BLOCK_SECONDS", seconds)
        found = locator.locate(audio)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
        np.testing.assert_allclose(found.timestamps, timestamps[0], atol=1e-3)
        assert found.hop_ms == 80
    assert not found.silent.any()
    assert len(found.azimuth) == 63  # the last is centred at 4.995 s


@pytest.mark.parametrize(
    ("azimuths", "confidence", "quieter", "agreement"),
    [
        ((30, 30, 30), 0.5, 0, 1.0),
        ((0, 90, 180, -90), 0.5, 0, 0.0),
        ((0, 90), 0.3, 0, sqrt(0.5)),
        ((0, 180), 0.3, 20, 0.9 / 1.1),  # dB by which the second is quieter
        ((0, 90), 0.1, 0, nan),
    ],
)
def test_rows_agree_where_they_have_one_direction(azimuths, confidence, quieter, agreement):
    rows = len(azimuths) + 1  # and one that says nothing
    empty, level = np.full(rows, np.nan), np.full(rows, -20.0)
    level[1] -= quieter
    found = Located(
        *(empty, np.array([*azimuths, 100.0]), np.zeros(rows)),
        *(np.array([confidence] * len(azimuths) + [0.15]), level, empty > 0, empty[:, None], 80.0),
    )
    assert found.agreement == pytest.approx(agreement, nan_ok=True, abs=1e-9)


def test_silent_rows_are_marked_and_get_no_direction(checkpoint):
    audio = noise(2.0)
    audio[:, RATE:] = 0
    found = locator_of(checkpoint, (90, 0)).locate(torch.from_numpy(audio).double())
    late = found.timestamps > 1100
    assert found.silent[late].all()
    assert not found.silent[found.timestamps < 900].any()
    for name in ("azimuth", "elevation"):
        assert np.isnan(getattr(found, name)[late]).all()
    assert (found.confidence[late] == 0).all()
    np.testing.assert_allclose(found.overall[:2], (90, 0), atol=3)
    assert found.direction(late) is None


def test_all_silence_has_no_overall_direction(checkpoint):
    found = locator_of(checkpoint).locate(np.zeros((2, 100), dtype=np.float32))
    assert found.silent.tolist() == [True]
    assert found.overall is None


@pytest.mark.parametrize("amplitude", [1.0, 0.01])
@pytest.mark.parametrize("frequency", [250, 5000])
def test_levels_are_dbfs(checkpoint, amplitude, frequency):
    sine = amplitude * np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE)
    found = locator_of(checkpoint).locate(np.stack([sine, 0 * sine]))
    # One ear of two: half the mean square.
    expected = 20 * np.log10(amplitude) - 10 * np.log10(4)
    np.testing.assert_allclose(found.level[1:-1], expected, atol=0.1)


def test_ambisonic_sound_is_located_at_the_level_of_w(ambisonic):
    locator = locator_of(ambisonic, (30, 45))
    assert locator.layout == "ambisonic"
    sine = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    found = locator.locate(np.stack([sine, 0.5 * sine, sine, 0 * sine]))
    np.testing.assert_allclose(found.overall[:2], (30, 45), atol=3)
    np.testing.assert_allclose(found.level[1:-1], -20 - 10 * np.log10(2), atol=0.1)


def test_ambisonic_sound_of_any_convention_is_heard_alike(ambisonic, tmp_path):
    head = locator_of(ambisonic).save(tmp_path / "head.safetensors")
    w, y, z, x = noise(0.5, channels=4)
    conventions = {"ambix": (w, y, z, x), "fuma": (w / 2**0.5, x, y, z)}
    model = save_checkpoint(ambisonic, tmp_path / "model.safetensors")
    ambix, fuma = (
        load_locator(head, model=model, convention=name).locate(np.stack(channels))
        for name, channels in conventions.items()
    )
    np.testing.assert_allclose(ambix.probabilities, fuma.probabilities, atol=1e-5)
    with pytest.raises(OptionError, match="convention 'b-format'"):
        load_locator(head, model=model, convention="b-format")


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (1, "is mono.*Give a first-order"),
        (2, "has 2 channels.*layout 'binaural'"),
        (3, "3 channels"),
    ],
)
def test_other_audio_for_an_ambisonic_head_is_an_error(ambisonic, channels, message):
    with pytest.raises(AudioError, match=message):
        locator_of(ambisonic).locate(noise(0.1, channels=channels))


def test_silence_is_absolute_and_relative():
    assert is_silent(np.array([-10.0, -49, -51])).tolist() == [False, False, True]
    assert is_silent(np.array([-69.0, -71])).tolist() == [False, True]
    assert is_silent(np.array([-200.0])).tolist() == [True]


def test_what_fills_a_window_past_the_clip_has_no_part_in_levels(checkpoint):
    """The last row of 0.52 s is centred at 515 ms: half of it lies past the end."""
    sine = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(16640) / RATE)
    falling = np.stack([sine, sine]) * np.linspace(1, 0, 16640) ** 2
    found = locator_of(checkpoint).locate(falling)
    assert len(found.level) == 7
    assert (np.diff(found.level) < 0).all()  # the loud start is not in the last row again
    assert (locator_of(checkpoint).locate(np.zeros((2, 300))).level < -120).all()


def test_levels_of_rows_are_means_over_the_clips_frames(checkpoint):
    config = checkpoint.config
    windows = torch.full((2, 2, 200, 128), config.front_end.log_floor).log()
    powers = row_powers(windows, config)
    assert powers.shape == (2, 25, 8)
    powers[:] = 0.01
    powers[0, 1, 4:] = 1.0
    np.testing.assert_allclose(row_levels(powers[0, :2], 12), [-20, -20], atol=1e-4)


@pytest.mark.filterwarnings("ignore:.* far outside")
def test_embeddings_that_are_not_finite_are_an_error(checkpoint):
    with pytest.raises(AudioError, match="The audio: its embeddings hold NaN"):
        locator_of(checkpoint).locate(noise(1.0) * 1e20)


def test_autocast_around_the_call_changes_nothing(checkpoint):
    locator, audio = locator_of(checkpoint), noise(1.0)
    expected = locator.locate(audio)
    with torch.autocast("cpu", torch.bfloat16):
        found = locator.locate(audio)
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_other_rates_are_resampled(checkpoint):
    locator = locator_of(checkpoint)
    time = np.arange(48000) / 48000
    sound = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 550 * time)])
    found = locator.locate(sound, 48000)
    assert len(found.timestamps) == 13
    np.testing.assert_allclose(found.level[1:-1], -3, atol=0.1)
    with pytest.raises(OptionError, match="rate is -1 Hz"):
        locator.locate(sound, -1)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(RATE), "is mono"),
        (np.zeros((1, RATE)), "is mono"),
        (np.zeros((4, RATE)), "Ambisonic"),
        (np.zeros((RATE, 2)), "channels"),
        (np.zeros((2, RATE), dtype=np.int16), "int16"),
        (np.full((2, RATE), np.nan), "NaN"),
        (np.zeros((2, 0)), "no samples"),
    ],
)
def test_other_audio_is_an_error(checkpoint, audio, message):
    with pytest.raises(AudioError, match=message):
        locator_of(checkpoint).locate(audio)


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [0, 8])
def test_a_saved_head_answers_the_same(checkpoint, tmp_path, hidden):
    locator, audio = locator_of(checkpoint, hidden=hidden), noise(0.5)
    locator.head.mean += 0.1
    path = locator.save(tmp_path / "head.safetensors")
    loaded = load_locator(path)
    assert loaded.config == locator.config
    assert loaded.model.options == locator.model.options
    np.testing.assert_array_equal(
        loaded.locate(audio).probabilities, locator.locate(audio).probabilities
    )
    assert [each.name for each in tmp_path.iterdir()] == ["head.safetensors"]


def test_a_head_with_another_model_is_an_error(checkpoint, tmp_path):
    path = locator_of(checkpoint).save(tmp_path / "head.safetensors")
    tensors = dict(checkpoint.tensors)
    tensors["patches.bias"] = tensors["patches.bias"] + 1e-3
    other = save_checkpoint(replace(checkpoint, tensors=tensors), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"trained on gram-tiny-untrained .* another model"):
        load_locator(path, model=other)
    with pytest.raises(CheckpointError, match="another model"):
        load_locator(path, model="gramm-tiny-untrained")


def test_the_fingerprint_is_the_encoders_in_whatever_file(checkpoint, tmp_path):
    same = save_checkpoint(encoder_only(checkpoint), tmp_path / "encoder.safetensors")
    assert fingerprint(load_checkpoint(same)) == fingerprint(checkpoint)
    head = locator_of(checkpoint).save(tmp_path / "head.safetensors")
    assert load_locator(head, model=same).model.source.name == str(same)


def write_head(path, tensors=None, **changes):
    """A head's file with something wrong in it."""
    belongs = describe_head(load_checkpoint(MODEL), MODEL, Options(layer=1), SIZE, 0, COUNT)
    metadata = {HEAD_KEY: json.dumps(asdict(belongs) | changes)}
    save_file(Head(SIZE, 0, COUNT).state_dict() | (tensors or {}), path, metadata)


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({"output.bias": torch.zeros(2)}, {}, "do not fit"),
        ({"mean": torch.full((SIZE,), torch.nan)}, {}, "not finite"),
        ({"more": torch.zeros(2)}, {}, "do not fit"),
        ({}, {"hidden": 4}, "do not fit"),
        *(({}, {key: 10**9}, "do not fit") for key in ("size", "hidden", "directions")),
        ({}, {"size": 10**101}, "a number of 102 digits"),
        ({}, {"hidden": -1}, "cannot be"),
        ({}, {"directions": 0}, "cannot be"),
        ({}, {"strategy": "cls"}, "cannot be"),
        ({}, {"layer": "two"}, "cannot be"),
        ({}, {"colour": "blue"}, "not understood"),
    ],
)
def test_a_broken_head_is_an_error(tmp_path, tensors, changes, message):
    write_head(tmp_path / "head.safetensors", tensors, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_locator(tmp_path / "head.safetensors")


def test_what_is_no_head_is_an_error(checkpoint, tmp_path):
    model = save_checkpoint(checkpoint, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="may be an embedding model"):
        load_locator(model)
    with pytest.raises(CheckpointError, match="no such file"):
        load_locator(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(model.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a whole"):
        load_locator(tmp_path / "cut.safetensors")
    with pytest.raises(OptionError, match="must end in"):
        locator_of(checkpoint).save(tmp_path / "head.pt")


def test_a_head_of_another_layout_than_asked_for_is_an_error(checkpoint, tmp_path):
    path = locator_of(checkpoint).save(tmp_path / "head.safetensors")
    assert load_locator(path, layout="binaural").layout == "binaural"
    with pytest.raises(OptionError, match="hears binaural sound, and the layout 'ambisonic'"):
        load_locator(path, layout="ambisonic")


def test_a_mono_model_has_no_directions(published_file):
    with pytest.raises(CheckpointError, match="is mono"):
        locator_of(load_checkpoint(published_file(1)))


def test_without_the_bundled_head_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(localisation.BUNDLED, "binaural", "none.safetensors")
    with pytest.raises(
        CheckpointError, match=r"comes without none\.safetensors.*recipe/locator\.py"
    ):
        load_locator()


def test_a_layout_without_a_head_is_an_error():
    messages = {"mono": "allowed are binaural", "binaral": "Did you mean 'binaural'"}
    for layout, message in messages.items():
        with pytest.raises(OptionError, match=message):
            load_locator(layout=layout)


def test_the_bundled_head_hears_left_right_and_middle():
    """As the demo has it: three syllables, at azimuths 70, -50 and 0, 2.3 s each."""
    heard = read_audio(SOUND, RATE)
    locator = load_locator()
    assert locator.config.model == "gram-tiny"
    found = locator.locate(heard.audio)
    parts = [found.direction(found.timestamps // 2300 == part) for part in range(3)]
    left, right, middle = (sin(radians(azimuth)) for azimuth, _, _ in parts)
    assert left > 0.5
    assert right < -0.3
    assert abs(middle) < 0.5


def test_the_bundled_ambisonic_head_follows_what_circles_the_listener():
    """Pulses of noise from all around in 2 s, counter-clockwise from the front."""
    heard = read_audio(SOUND.with_name("ambix_circling.wav"), RATE)
    locator = load_locator(layout="ambisonic")
    assert locator.config.model == "gram-tiny-ambisonics"
    found = locator.locate(heard.audio)
    heard_at = ~found.silent
    errors = found.azimuth[heard_at] - 0.18 * found.timestamps[heard_at]
    assert heard_at.sum() > 15
    assert np.median(np.abs((errors + 180) % 360 - 180)) < 30
    assert np.median(np.abs(found.elevation[heard_at])) < 30


# --- the recipe -----------------------------------------------------------------------------


@pytest.fixture
def recipe(monkeypatch):
    spec = importlib.util.spec_from_file_location("locator_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NOISES", 2)
    return module


def one_sided(plan, index):
    """RIRs by which the source is heard at one ear alone, or from there: 90 degrees left or right.

    With them the four channels of AmbiX, in which it is a plane wave.
    """
    left = (index.room + index.scene) % 2 == 0
    direction = np.array([0.0, 1.0 if left else -1.0, 0.0])
    [layout] = plan.layouts
    gains = [left, not left] if layout == "binaural" else encode_ambix(direction)
    rirs = np.zeros((1, len(gains), 8), dtype=np.float32)
    rirs[0, :, 0] = gains
    metadata = {"direction": direction.tolist(), "layout": layout}
    return [Rendered(rirs, plan.rate, layout, metadata)]


@pytest.mark.parametrize("layout", ["binaural", "ambisonic"])
def test_the_recipe_trains_a_head_that_hears_left_and_right(
    recipe, ambisonic, layout, tmp_path, monkeypatch, capsys
):
    plan = RirPlan(rooms=4, scenes_per_room=2, layouts=(layout,), valid=0.25, test=0.25, rate=RATE)
    if layout == "binaural":
        model, heard = MODEL, noise(1.0) * [[1.0], [0.0]]
    else:
        model = save_checkpoint(ambisonic, tmp_path / "model.safetensors")
        heard = noise(1.0)[:1] * [[1.0], [1.0], [0.0], [0.0]]
    build_rirs(tmp_path / "rirs", plan, jobs=1, simulator=one_sided)
    (tmp_path / "clips").mkdir()
    for i in range(10):
        soundfile.write(tmp_path / "clips" / f"{i}.flac", noise(1.0, 16000, i)[0], 16000)
    heads = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for head in heads:
        options = ["--layer", 1, "--hidden", 0, "--sounds", 2, "--learning-rate", 1e-2]
        options += ["--turns", 2] * (layout == "ambisonic")
        arguments = [RECIPE, model, tmp_path / "clips", tmp_path / "rirs", head, *options]
        monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
        recipe.main()
        errors = json.loads(capsys.readouterr().out)
    assert heads[0].read_bytes() == heads[1].read_bytes()
    assert errors["test"]["scenes"]["count"] == 4
    assert errors["test"]["scenes"]["median_azimuth_error"] < 20
    azimuth, _, confidence = load_locator(heads[0], model=model).locate(heard, 16000).overall
    assert abs(azimuth - 90) < 20
    assert confidence > 0.3


@pytest.mark.parametrize(
    ("channels", "clips", "options", "message"),
    [
        (2, 10, ["head.pt"], "must end in .safetensors"),
        (2, 10, ["none/head.safetensors"], "in a folder that is there"),
        (2, 3, ["head.safetensors"], "too few sound files: train 2, valid 1, test 0"),
        (2, 0, ["head.safetensors"], "too few sound files"),
        (2, 10, ["head.safetensors", "--turns", "2"], "--turns is 2; it must be 1 with two ears"),
        (1, 10, ["head.safetensors"], "is a mono model"),
    ],
)
def test_the_recipe_finds_what_is_wrong_first(
    recipe, published_file, tmp_path, monkeypatch, capsys, channels, clips, options, message
):
    plan = RirPlan(
        rooms=4, scenes_per_room=1, layouts=("binaural",), valid=0.25, test=0.25, rate=RATE
    )
    build_rirs(tmp_path / "rirs", plan, jobs=1, simulator=one_sided)
    (tmp_path / "clips").mkdir()
    for i in range(clips):
        soundfile.write(tmp_path / "clips" / f"{i}.flac", noise(0.1, 16000, i)[0], 16000)
    model = MODEL if channels == 2 else published_file(channels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(RECIPE), str(model), "clips", "rirs", *options])
    with pytest.raises(SystemExit):
        recipe.main()
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def test_a_mirrored_scene_has_left_and_right_exchanged(recipe):
    ears = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    audio, direction = recipe.mirrored(ears, torch.tensor([0.6, 0.8, 0.0]))
    assert audio.tolist() == [[3, 4], [1, 2]]
    torch.testing.assert_close(direction, torch.tensor([0.6, -0.8, 0.0]))
    torch.testing.assert_close(recipe.mirrored(*plane_wave(30.0)), plane_wave(-30.0))


def plane_wave(azimuth):
    direction = unit_vector(azimuth, 20.0)
    return tuple(
        torch.from_numpy(each).float() for each in (encode_ambix(direction)[:, None], direction)
    )


def test_a_turned_scene_comes_from_elsewhere(recipe):
    torch.testing.assert_close(recipe.turned(*plane_wave(30.0), 0.0), plane_wave(30.0))
    torch.testing.assert_close(recipe.turned(*plane_wave(30.0), 50.0), plane_wave(80.0))
    torch.testing.assert_close(recipe.turned(*plane_wave(-30.0), -170.0), plane_wave(160.0))


def test_errors_fold_front_and_back(recipe):
    def vectors(*pairs):
        return np.array(
            [
                (
                    cos(radians(a)) * cos(radians(e)),
                    sin(radians(a)) * cos(radians(e)),
                    sin(radians(e)),
                )
                for a, e in pairs
            ]
        )

    true = vectors((30, 10), (170, 0), (-95, 0))
    errors = recipe.direction_errors(0.3 * vectors((150, 0), (-170, 0), (-85, 0)), true)
    assert errors["count"] == 3
    np.testing.assert_allclose(errors["median_azimuth_error"], 20)
    np.testing.assert_allclose(errors["median_azimuth_error_folded"], 0, atol=1e-6)
    # The third lies too near the plane through the ears to count.
    assert errors["front_back_confusions"] == 0.5
    assert errors["median_elevation_error"] == pytest.approx(0, abs=1e-6)
    assert degrees(atan2(true[0, 1], true[0, 0])) == pytest.approx(30)


def test_clips_and_rooms_of_the_splits_are_different(recipe, checkpoint):
    model = from_checkpoint(checkpoint, Options(layer=1))
    paths = [Path(f"{i}.flac") for i in range(23)]
    maker = recipe.SceneMaker(model, [], paths, 0)
    assert sorted(path for clips in maker.clips.values() for path in clips) == sorted(paths)
    assert {split: len(clips) for split, clips in maker.clips.items()} == {
        "train": 18,
        "valid": 3,
        "test": 2,
    }
    again = recipe.SceneMaker(model, [], paths, 0)
    assert again.clips == maker.clips


def test_noise_sources_of_training_rooms_are_sources_too(recipe):
    metadata = {
        "direction": [1.0, 0.0, 0.0],
        "listener": [1.0, 1.0, 1.0],
        "yaw": 90.0,
        "noises": [[1.0, 3.0, 1.0], [0.0, 1.0, 1.0]],
    }
    found = recipe._directions(metadata, 3)
    np.testing.assert_allclose(found, [[1, 0, 0], [1, 0, 0], [0, 1, 0]], atol=1e-12)
    # Where a silent one was left out, nobody knows which is which.
    assert len(recipe._directions(metadata, 2)) == 1
    assert len(recipe._directions({"direction": [1.0, 0.0, 0.0]}, 2)) == 1
