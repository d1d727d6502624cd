"""RIRs: geometry, level, decay and coherence, against plain references and physics."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gram_hear.audio.layouts import encode_ambix
from gram_hear.errors import OptionError
from gram_hear.scenes.acoustics import BANDS, SPEED, energy_decay, measured_rt60, octave
from gram_hear.scenes.geometry import angles, unit_vector
from gram_hear.scenes.heads import load_head
from gram_hear.scenes.rendering import diffuse_tail, render, render_images, tune
from gram_hear.scenes.rooms import ImageSources, Room, draw_room, draw_room_and_scene, draw_scene

pytestmark = pytest.mark.slow

RATE = 32000


def images(directions, distances, gains=0.0):
    """Image sources with flat gains, the first one the nearest."""
    directions, distances = np.array(directions, dtype=float), np.array(distances, dtype=float)
    levels = np.broadcast_to(np.asarray(gains, dtype=float), distances.shape)
    return ImageSources(directions, distances, np.repeat(levels[:, None], len(BANDS), axis=1))


def delayed(response, delay, samples):
    """A response moved by a fractional number of samples: band-limited, and plainly written."""
    size = 2 * samples
    frequencies = np.fft.rfftfreq(size)
    fade = 0.5 + 0.5 * np.cos(np.pi * np.clip((2 * frequencies - 0.95) / 0.05, 0, 1))
    spectrum = np.fft.rfft(response, size) * np.exp(-2j * np.pi * frequencies * delay) * fade
    return np.fft.irfft(spectrum, size)[:samples]


def direct_sound(scene, layout, head=None):
    """The direct sound alone."""
    alone = images([scene.direction], [scene.distance], [-math.log(scene.distance)])
    return render_images(alone, head, RATE, (2 if head else 4, 4096), exact=True)


def test_image_sources_are_added_as_a_plain_sum():
    generator = np.random.default_rng(1)
    directions = generator.standard_normal((300, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distances = np.sort(generator.uniform(1, 30, 300))
    gains = generator.uniform(-3, 0, 300)
    samples = 4096
    found = render_images(images(directions, distances, gains), None, RATE, (4, samples))
    plain = np.zeros((4, samples))
    for direction, distance, gain in zip(directions, distances, gains, strict=True):
        pulse = delayed(np.array([math.exp(gain)]), distance / SPEED * RATE, samples)
        plain += encode_ambix(direction)[:, None] * pulse
    assert np.abs(found - plain).max() < 2e-3  # what rings 40 samples before a pulse of 1
    head = load_head("kemar", RATE)
    found = render_images(images(directions, distances, gains), head, RATE, (2, samples))
    plain = np.zeros((2, samples))
    for row, distance, gain in zip(head.nearest(directions), distances, gains, strict=True):
        delay = (distance / SPEED - head.delay) * RATE
        for ear in range(2):
            plain[ear] += delayed(math.exp(gain) * head.responses[row, ear], delay, samples)
    assert np.abs(found - plain).max() < 2e-3 * np.abs(plain).max()


def test_octave_band_gains_shape_an_image():
    gains = np.log(np.linspace(0.9, 0.1, len(BANDS)))
    source = ImageSources(np.array([[1.0, 0, 0]]), np.array([3.43]), gains[None])
    rir = render_images(source, None, RATE, (4, 4096))[0]
    spectrum = np.abs(np.fft.rfft(rir))
    bins = np.fft.rfftfreq(4096, 1 / RATE)
    for band, gain in zip(BANDS, gains, strict=True):
        assert spectrum[np.abs(bins - band).argmin()] == pytest.approx(math.exp(gain), rel=0.02)
    arrival = 3.43 / SPEED * RATE
    assert np.abs(rir[: int(arrival) - 40]).max() < 1e-3  # minimum phase: nothing comes early


@pytest.mark.parametrize("seed", range(4))
def test_the_direct_sound_of_ambisonic_rirs_points_to_the_source(seed):
    scene = draw_room_and_scene([seed, 1])
    direct = direct_sound(scene, "ambisonic").astype(np.float64)
    vector = (direct[[3, 1, 2]] * direct[0]).sum(axis=1)
    cosine = vector @ scene.direction / np.linalg.norm(vector)
    assert math.degrees(math.acos(min(cosine, 1.0))) < 0.5
    rir = render(scene, "ambisonic", seconds=0.1).rirs[0]
    assert np.abs(rir[:, : int(scene.distance / SPEED * RATE) - 60]).max() < 0.01
    at = int(scene.distance / SPEED * RATE)
    assert np.abs(direct[0]).argmax() in (at, at + 1)


def interaural_time(rir):
    """Seconds by which the right ear is later, by cross-correlation below 1.5 kHz, upsampled."""
    size, factor = 2 * rir.shape[1], 4
    left, right = np.fft.rfft(rir, size)
    low = np.fft.rfftfreq(size, 1 / RATE) < 1500
    correlation = np.fft.irfft(np.where(low, right * left.conj(), 0), size * factor)
    lag = correlation.argmax()
    return (lag if lag < size * factor // 2 else lag - size * factor) / factor / RATE


@pytest.mark.parametrize("name", ["kemar", "sphere"])
def test_the_ears_of_a_scene_hear_the_heads_own_times_and_levels(name):
    head = load_head(name, RATE)
    room = draw_room([3])
    levels, times = {}, {}
    for azimuth in range(-170, 181, 10):
        scene = draw_scene(room, [4, azimuth + 180], azimuth=azimuth, elevation=0.0, distance=1.0)
        rir = direct_sound(scene, "binaural", head).astype(np.float64)
        times[azimuth] = interaural_time(rir)
        own = interaural_time(head.response(unit_vector(azimuth, 0)).astype(np.float64))
        assert abs(times[azimuth] - own) < 40e-6
        energies = (rir**2).sum(axis=1)
        levels[azimuth] = 10 * math.log10(energies[0] / energies[1])
    for azimuth in range(10, 171, 10):
        assert abs(times[azimuth] + times[-azimuth]) < 40e-6
        assert levels[azimuth] > 0 > levels[-azimuth]
    assert 500e-6 < times[90] < 900e-6
    rising = [levels[azimuth] for azimuth in range(0, 61, 10)]
    assert rising == sorted(rising)


@pytest.mark.parametrize("wanted", [0.2, 0.4, 0.7, 1.0])
def test_a_tuned_scene_has_the_rt60_that_was_asked_for(wanted):
    ears = []
    for seed in range(4):
        scene = tune(draw_room_and_scene([7, seed], rt60=wanted, noise_sources=0))
        ambisonic = render(scene, "ambisonic")
        assert measured_rt60(ambisonic.rirs[0, :1], RATE) == pytest.approx(wanted, rel=0.15)
        binaural = render(scene, "binaural")
        assert binaural.metadata["rt60_measured"] == measured_rt60(binaural.rirs[0], RATE)
        ears.append(binaural.metadata["rt60_measured"] / wanted)
    assert np.median(ears) == pytest.approx(1, rel=0.1)  # ears favour some directions


def test_the_tail_goes_on_where_images_end():
    """Few and many images of one room leave the same energy in every 20 ms, on average.

    Below about 300 Hz image sources add up in phase, as the room's modes, and say more than a tail.
    """
    differences = {1000.0: [], 4000.0: []}
    for seed in range(5):
        scene = draw_room_and_scene([8, seed], rt60=0.5, noise_sources=0)
        few, many = (
            render(scene, "ambisonic", images=images, seconds=0.25).rirs[0, :1]
            for images in (1000, 40000)
        )
        for centre, found in differences.items():
            energies = []
            for rir in (few, many):
                filtered = octave(rir, RATE, centre)[0, : 12 * 640].reshape(12, 640)
                energies.append((filtered**2).sum(axis=1)[3:])
            found.append(10 * np.log10(energies[0] / energies[1]))
    for found in differences.values():
        assert abs(np.mean(found)) < 1.0
        assert np.abs(np.mean(found, axis=0)).max() < 3.0


@pytest.mark.parametrize("name", ["kemar", "sphere"])
def test_the_tail_is_as_coherent_as_the_heads_diffuse_field(name):
    head = load_head(name, RATE)
    room = Room((8.0, 9.0, 4.0), tuple((0.0005,) * len(BANDS) for _ in range(6)), 10.0)
    tail = diffuse_tail(room, 0.01, head, RATE, (2, 12 * RATE), np.random.default_rng(0))
    size = 2048
    pieces = tail[:, size : tail.shape[1] // size * size].reshape(2, -1, size) * np.hanning(size)
    spectra = np.fft.rfft(pieces)
    powers = (np.abs(spectra) ** 2).sum(axis=1)
    cross = (spectra[0] * spectra[1].conj()).sum(axis=0)
    coherence = np.abs(cross) / np.sqrt(powers[0] * powers[1])
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    low = (frequencies >= 50) & (frequencies <= 300)
    assert coherence[(frequencies >= 2000) & (frequencies <= 6000)].mean() < 0.2
    own = head.diffuse_covariance(size)
    expected = np.abs(own[:, 0, 1]) / np.sqrt(own[:, 0, 0].real * own[:, 1, 1].real)
    assert expected[low].mean() > 0.8
    assert coherence[low].mean() == pytest.approx(expected[low].mean(), abs=0.02)


def test_the_tail_of_ambisonic_rirs_is_diffuse():
    scene = draw_room_and_scene([10], rt60=1.0, noise_sources=0)
    late = render(scene, "ambisonic").rirs[0][:, int(0.4 * RATE) :].astype(np.float64)
    covariance = late @ late.T / (late[0] @ late[0])
    assert np.allclose(np.diag(covariance), [1, 1 / 3, 1 / 3, 1 / 3], atol=0.1)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.1


def test_noise_sources_share_the_room_and_stand_elsewhere():
    scene = draw_room_and_scene([11], noise_sources=3)
    rendered = render(scene, "ambisonic", seconds=0.2)
    assert rendered.rirs.shape == (4, 4, int(0.2 * RATE))
    assert rendered.rirs.dtype == np.float32
    for rir, place, delay in zip(
        rendered.rirs, (scene.source, *scene.noises), rendered.metadata["direct_delay"], strict=True
    ):
        distance = math.dist(place, scene.listener)
        assert delay == pytest.approx(distance / SPEED)
        assert np.abs(rir[0, : int(delay * RATE) - 60]).max() < 0.02
        peak = np.abs(rir[0, int(delay * RATE) - 2 : int(delay * RATE) + 4]).max()
        assert peak == pytest.approx(1 / distance, rel=0.5)
    swapped = replace(scene, source=scene.noises[0], noises=(scene.source,))
    again = render(swapped, "ambisonic", seconds=0.05)
    before = int(0.045 * RATE)  # nearer than where images end
    assert np.allclose(again.rirs[0, :, :before], rendered.rirs[1, :, :before], atol=1e-3)


@pytest.mark.parametrize("layout", ["binaural", "ambisonic"])
def test_the_same_scene_is_rendered_bit_for_bit(layout):
    scene = draw_room_and_scene([12])
    first = render(scene, layout)
    again = render(type(scene).from_dict(scene.to_dict()), layout)
    assert np.array_equal(first.rirs, again.rirs)
    assert first.metadata == again.metadata
    assert np.isfinite(first.rirs).all()
    assert energy_decay((first.rirs[0].astype(np.float64) ** 2).sum(axis=0))[-1] < -55


def test_metadata_say_what_was_rendered():
    scene = draw_room_and_scene([13], azimuth=40.0, elevation=-5.0, distance=1.5)
    metadata = render(scene, "binaural", seconds=0.3).metadata
    assert metadata["azimuth"] == pytest.approx(40)
    assert metadata["elevation"] == pytest.approx(-5)
    assert metadata["distance"] == pytest.approx(1.5)
    assert angles(np.array(metadata["direction"]))[0] == pytest.approx(40)
    assert metadata["head"] == "kemar"
    assert metadata["convention"] is None
    near = render(draw_room_and_scene([13], distance=0.5), "ambisonic").metadata
    far = render(draw_room_and_scene([13], distance=3.0), "ambisonic").metadata
    assert near["direct_to_reverberant_ratio"] > far["direct_to_reverberant_ratio"]
    assert near["convention"] == "ambix"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "stereo"}, "Unknown layout 'stereo'; allowed are binaural, ambisonic"),
        ({"layout": "binaural", "seconds": 0.0}, "seconds 0.0"),
        ({"layout": "binaural", "seconds": 0.002}, "the direct sound of this scene needs"),
        ({"layout": "binaural", "images": 0}, "images 0"),
        ({"layout": "binaural", "rate": 16000, "head": "kemar"}, "sampled at 32000 Hz"),
    ],
)
def test_wrong_options_are_refused(options, message):
    if "head" in options:
        options = options | {"head": load_head("kemar", RATE)}
    with pytest.raises(OptionError, match=message):
        render(draw_room_and_scene([1]), **options)
