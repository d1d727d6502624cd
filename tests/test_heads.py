"""Heads: the bundled one, SOFA files, the sphere; what lies between measured directions."""

import importlib.util
import math
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_hear.errors import OptionError, SceneError
from gram_hear.scenes import heads, sofa
from gram_hear.scenes.acoustics import SPEED
from gram_hear.scenes.geometry import angles, turn, unit_vector
from gram_hear.scenes.heads import (
    EAR,
    RADIUS,
    Head,
    icosphere,
    load_head,
    onsets,
    solid_angles,
    sphere_responses,
    sphere_transfer,
)

RATE = 32000
KEMAR = files("gram_hear.scenes") / "data" / "kemar.npz"
MAKER = Path(__file__).parent / "data" / "make_kemar.py"


@pytest.fixture(scope="module", params=["kemar", "sphere"])
def head(request):
    return load_head(request.param, RATE)


@pytest.fixture(scope="module")
def kemar():
    return load_head("kemar", RATE)


@pytest.fixture(scope="module")
def sphere():
    """The sphere before it is levelled and trimmed: at its centre, the sound is at 8 ms."""
    directions = icosphere(heads.SUBDIVISIONS)
    return Head("sphere", RATE, directions, sphere_responses(directions, RATE), 0.008)


def time_difference(responses, rate=RATE):
    """How much later the right ear hears what is under 1.5 kHz: microseconds."""
    size = 4096
    spectra = np.fft.rfft(responses, size)
    low = np.exp(-((np.fft.rfftfreq(size, 1 / rate) / 1500) ** 4))
    correlation = np.fft.irfft(spectra[1] * spectra[0].conj() * low, 32 * size)
    lag = int(correlation.argmax())
    return (lag - 32 * size if lag > 16 * size else lag) / 32 / rate * 1e6


def level_difference(responses):
    """How much louder the left ear is: dB."""
    energy = (responses.astype(np.float64) ** 2).sum(axis=-1)
    return 10 * math.log10(energy[0] / energy[1])


def error_of(found, expected):
    """Energy of the difference against that of what is expected, by ear: dB."""
    difference = ((found - expected) ** 2).sum(axis=-1)
    return 10 * np.log10(difference / (np.asarray(expected) ** 2).sum(axis=-1))


def without(head, row):
    kept = np.arange(len(head.directions)) != row
    found = replace(head, directions=head.directions[kept], responses=head.responses[kept])
    vars(found)["onsets"] = head.onsets[kept]  # each is its response's own
    return found


def horizon(head):
    return np.flatnonzero(np.abs(head.directions[:, 2]) < 0.01)


# --- the bundled head -----------------------------------------------------------------------


def test_bundled_head_holds_the_measured_numbers():
    measured = heads._read_kemar()
    assert measured.rate == 44100
    assert measured.responses.shape == (710, 2, 512)
    # the file's first response, at azimuth 0 and elevation -40, and its largest sample
    first = (measured.responses[0, 0, :12] * 32768).tolist()
    assert first == [2, 2, 2, 1, 1, -1, -1, -1, -1, -1, -2, -3]
    assert np.abs(measured.responses).max() * 32768 == 26793
    with KEMAR.open("rb") as file:
        data = np.load(file, allow_pickle=False)
        assert "Gardner" in str(data["citation"])
        assert "without any usage restrictions" in str(data["licence"])


def test_bundled_head_is_small():
    assert len(KEMAR.read_bytes()) <= 500_000


def test_bundled_head_can_be_made_again(tmp_path):
    measured = heads._read_kemar()
    path = write_sofa(tmp_path / "kemar.sofa", measured.directions, measured.responses, 44100)
    specification = importlib.util.spec_from_file_location("make_kemar", MAKER)
    maker = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(maker)
    maker.main(path, tmp_path / "again.npz")
    with KEMAR.open("rb") as file, np.load(tmp_path / "again.npz") as again:
        shipped = np.load(file)
        assert set(shipped) == set(again)
        for name in ("high", "low", "mirror", "rate"):
            assert np.array_equal(shipped[name], again[name])


def test_missing_bottom_is_filled_from_the_ring_above(kemar):
    below = kemar.nearest([[0, 0, -1]])[0]
    assert len(kemar.directions) == 711
    assert kemar.directions[below].tolist() == [0, 0, -1]
    pole = kemar.responses[below].astype(np.float64)
    assert np.abs(pole[0] - pole[1]).max() < 1e-6  # in the median plane
    ring = kemar.responses[np.abs(angles(kemar.directions)[1] + 40) < 1].astype(np.float64)
    spectra = np.abs(np.fft.rfft(np.concatenate([pole[None], ring]), 1024)) ** 2
    inside = (np.fft.rfftfreq(1024, 1 / RATE) > 100) & (np.fft.rfftfreq(1024, 1 / RATE) < 14000)
    ratio = 10 * np.log10(spectra[0] / spectra[1:].mean(axis=0))[:, inside]
    assert np.abs(ratio).max() < 1
    expected = onsets(ring, RATE).mean()
    assert onsets(pole, RATE) == pytest.approx(expected, abs=0.1)


def test_level_does_not_jump_under_the_lowest_measurements(kemar):
    elevations = range(-90, -20, 5)
    energy = [(kemar.response(unit_vector(60, each)) ** 2).sum(axis=1) for each in elevations]
    assert np.abs(np.diff(10 * np.log10(energy), axis=0)).max() < 2.5


# --- what every head is ---------------------------------------------------------------------


def test_shapes_types_and_units(head):
    assert head.directions.dtype == np.float64
    assert head.responses.dtype == np.float32
    assert head.responses.shape[:2] == (len(head.directions), 2)
    assert np.allclose(np.linalg.norm(head.directions, axis=1), 1)
    assert head.weights.sum() == pytest.approx(1)
    assert head.weights.min() > 0
    with pytest.raises(ValueError, match="read-only"):
        head.responses[0] = 0


def test_level_at_low_frequencies_is_one(head):
    frequencies = np.arange(150, 301, 10)
    taps = np.arange(head.responses.shape[2])
    spectra = head.responses @ np.exp(-2j * np.pi * np.outer(taps, frequencies) / RATE)
    energy = head.weights @ (np.abs(spectra) ** 2).mean(axis=2)
    assert energy == pytest.approx([1, 1], rel=0.02)


def test_delay_is_the_mean_onset(head):
    """But for the time by which a smoothed pulse is found too early."""
    mean = (head.weights[:, None] * head.onsets).sum() / 2
    assert head.delay - mean / RATE == pytest.approx(45e-6, abs=5e-6)
    assert head.onsets.min() > 20  # room for interpolation to ring in


def test_delay_of_the_sphere_is_from_its_centre(sphere):
    """Woodworth: a wave comes at -a cos, or goes round by a (angle - 90 degrees)."""
    around = ((math.pi / 2 - 1) / 2 - 1 / 4) * RADIUS / SPEED  # averaged over the sphere
    head = load_head("sphere", RATE)
    whole = sphere.responses[0, 0]
    start = int(np.correlate(whole, head.responses[0, 0], "valid").argmax())
    assert head.delay + start / RATE - 0.008 == pytest.approx(around, abs=10e-6)


def test_nearest_is_the_largest_cosine(head):
    directions = np.random.default_rng(0).standard_normal((500, 3)) * 3
    plain = (directions @ head.directions.T).argmax(axis=1)
    found = head.nearest(directions)
    assert found.dtype == np.int64
    assert np.array_equal(found, plain)


def test_own_directions_give_own_responses(head):
    for row in range(0, len(head.directions), 13):
        found = head.response(head.directions[row])
        assert found.dtype == np.float32
        assert np.abs(found - head.responses[row]).max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(azimuth=st.floats(-180, 180), elevation=st.floats(-90, 90), length=st.floats(0.1, 100))
def test_three_directions_surround_every_direction(azimuth, elevation, length):
    head = load_head("kemar", RATE)
    direction = unit_vector(azimuth, elevation)
    rows, weights = head.around(length * direction)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    middle = weights @ head.directions[rows]
    assert middle / np.linalg.norm(middle) == pytest.approx(direction, abs=1e-6)
    assert np.array_equal(head.response(length * direction), head.response(length * direction))


@pytest.mark.parametrize("wrong", [(0, 0, 0), (1, 0), (1, math.nan, 0), (math.inf, 0, 0)])
def test_what_is_no_direction_is_refused(kemar, wrong):
    with pytest.raises(SceneError, match="direction is"):
        kemar.response(wrong)


# --- what the ears hear ---------------------------------------------------------------------


def test_time_differences_are_antisymmetric(head):
    for elevation in (-50, -20, 0, 33, 60):
        for azimuth in range(0, 181, 9):
            left = time_difference(head.response(unit_vector(azimuth, elevation)))
            right = time_difference(head.response(unit_vector(-azimuth, elevation)))
            assert abs(left + right) < 15


def test_time_differences_grow_to_the_side(head):
    found = [time_difference(head.response(unit_vector(azimuth, 0))) for azimuth in range(0, 81, 2)]
    assert found[0] == pytest.approx(0, abs=5)
    assert np.diff(found).min() > 0
    assert 650 < found[-1] < 850


def test_level_differences_have_the_right_sign_and_grow_to_60_degrees(head):
    for side in (1, -1):
        found = [
            side * level_difference(head.response(unit_vector(side * azimuth, 0)))
            for azimuth in range(0, 61, 5)
        ]
        assert found[0] == pytest.approx(0, abs=0.1)
        assert np.diff(found).min() > 0
        assert found[-1] > 5


def test_kemar_between_directions_is_as_what_was_measured_there(kemar):
    """A direction is left out, and interpolated across a gap twice as wide as any."""
    errors = []
    for row in horizon(kemar):
        found = without(kemar, row).response(kemar.directions[row])
        measured = kemar.responses[row]
        assert abs(time_difference(found) - time_difference(measured)) < 20
        errors.append(error_of(found, measured))
    assert np.median(errors) < -24
    assert np.max(errors) < -6  # in the head's shadow, where waves interfere


def test_sphere_between_directions_is_as_computed_there(sphere):
    directions = np.random.default_rng(1).standard_normal((60, 3))
    directions[:30, 2] = 0
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    errors = []
    for direction, exact in zip(directions, sphere_responses(directions, RATE), strict=True):
        found = sphere.response(direction)
        assert abs(time_difference(found) - time_difference(exact)) < 5
        errors.append(error_of(found, exact))
    assert np.median(errors) < -34
    assert np.max(errors) < -9


def test_interpolation_makes_no_comb_filter(kemar):
    """Half-way between neighbours, high frequencies are as strong as at them, on average."""
    band = slice(4000 * 1024 // RATE, 12000 * 1024 // RATE)

    def strength(responses):
        return (np.abs(np.fft.rfft(responses, 1024))[..., band] ** 2).sum(axis=-1)

    around = horizon(kemar)
    around = around[np.argsort(angles(kemar.directions[around])[0])]
    changes, plain = [], []
    for first, second in zip(around, np.roll(around, -1), strict=True):
        found = kemar.response(kemar.directions[first] + kemar.directions[second])
        pair = kemar.responses[[first, second]]
        changes.append(strength(found) / strength(pair).mean(axis=0))
        plain.append(strength(pair.mean(axis=0)) / strength(pair).mean(axis=0))
    assert 10 * np.log10(np.mean(changes)) > -0.3
    assert 10 * np.log10(np.min(changes)) > -3
    assert 10 * np.log10(np.mean(plain)) < -0.6  # what averaging without alignment loses


# --- the sphere -----------------------------------------------------------------------------


def test_sphere_at_low_frequencies():
    """Kuhn 1977: 3 a sin(azimuth) / c, for ears at 90 degrees."""
    for azimuth in (15, 45, 90):
        cosines = np.cos(np.radians([azimuth - EAR, azimuth + EAR]))
        phases = np.unwrap(np.angle(sphere_transfer(cosines, np.array([0.0, 20.0, 40.0]))), axis=1)
        difference = (phases[0] - phases[1])[1] / (2 * math.pi * 20)
        expected = 3 * RADIUS / SPEED * math.sin(math.radians(azimuth))
        assert difference == pytest.approx(expected * math.sin(math.radians(EAR)), rel=2e-3)


def test_sphere_at_high_frequencies(sphere):
    """Woodworth: a (angle + sin angle) / c for ears at 90 degrees, here for ears at 100."""
    for azimuth in (20, 40, 60):
        near, far = np.radians([EAR - azimuth, EAR + azimuth])
        way = far - math.pi / 2
        way += math.cos(near) if near < math.pi / 2 else math.pi / 2 - near
        set_in = onsets(sphere.response(unit_vector(azimuth, 0)), RATE)
        assert (set_in[1] - set_in[0]) / RATE == pytest.approx(way * RADIUS / SPEED, abs=40e-6)


def test_sphere_doubles_pressure_in_front_and_is_bright_behind():
    cosines = np.cos(np.radians([0, 90, 150, 180]))
    gains = np.abs(sphere_transfer(cosines, np.array([0.0, 15000.0, 80000.0])))
    assert gains[:, 0] == pytest.approx(np.ones(4))
    assert gains[0, 2] == pytest.approx(2, rel=0.01)
    assert gains[1, 2] == pytest.approx(1.399, rel=0.02)  # grazing: Fock 1946
    assert gains[2, 1] < 0.3 < 0.7 < gains[3, 1]  # waves from all sides meet behind the sphere


def test_sphere_is_finite_where_terms_overflow():
    frequencies = np.array([0.0, 1.0, 20.0, 1000.0, 96000.0])
    gains = sphere_transfer(np.linspace(-1, 1, 5), frequencies)
    assert np.abs(gains[:, 1]) == pytest.approx(np.ones(5), abs=1e-3)
    assert np.abs(gains).max() < 2.01


def test_sphere_depends_on_the_angle_to_the_ear_alone():
    ear = unit_vector(EAR, 0)
    across = np.cross(ear, [0, 0, 1])
    turns = np.linspace(0, 2 * math.pi, 7)[:, None]
    circle = ear * 0.4 + math.sqrt(1 - 0.16) * (
        np.cos(turns) * across + np.sin(turns) * np.array([0, 0, 1])
    )
    responses = sphere_responses(circle, RATE)[:, 0]
    assert np.abs(responses - responses[0]).max() < 1e-9


@pytest.mark.parametrize("rate", [16000, 48000])
def test_sphere_is_causal_at_any_rate(rate):
    responses = sphere_responses(icosphere(1), rate)
    begin = int(rate * (0.008 - RADIUS / SPEED - 0.002))
    assert np.abs(responses[..., :begin]).max() < 2e-3


def test_icosphere_is_even():
    directions = icosphere(12)
    assert directions.shape == (1442, 3)
    for axis in np.concatenate([np.eye(3), -np.eye(3)]):
        assert (directions @ axis).max() == pytest.approx(1)
    mirrored = directions * [1, -1, 1]
    assert (mirrored @ directions.T).max(axis=1) == pytest.approx(np.ones(1442))
    areas = solid_angles(directions) * 1442
    assert 0.6 < areas.min() < areas.max() < 1.25


# --- a diffuse field ------------------------------------------------------------------------


@pytest.mark.parametrize("n_fft", [64, 333, 1024, 2000])
def test_diffuse_covariance_is_the_mean_over_directions(head, n_fft):
    taps = np.arange(head.responses.shape[2])
    bins = np.arange(n_fft // 2 + 1)
    spectra = head.responses @ np.exp(-2j * np.pi * np.outer(taps, bins) / n_fft)
    plain = np.einsum("m,mif,mjf->fij", head.weights, spectra, spectra.conj())
    found = head.diffuse_covariance(n_fft)
    assert found.shape == (n_fft // 2 + 1, 2, 2)
    assert np.abs(found - plain).max() < 1e-5 * np.abs(plain).max()
    assert np.linalg.eigvalsh(found).min() > -1e-9
    assert found == pytest.approx(np.conj(np.swapaxes(found, 1, 2)))


def test_ears_in_a_diffuse_field_are_coherent_at_low_frequencies(head):
    covariance = head.diffuse_covariance(2048)
    energy = np.sqrt(covariance[:, 0, 0].real * covariance[:, 1, 1].real)
    coherence = covariance[:, 0, 1].real / energy
    frequencies = np.fft.rfftfreq(2048, 1 / RATE)
    assert coherence[(frequencies > 50) & (frequencies < 120)].min() > 0.9
    assert np.abs(coherence[frequencies > 3000]).max() < 0.35


# --- rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
@pytest.mark.parametrize("name", ["kemar", "sphere"])
def test_other_rates_hold_the_same(name, rate):
    head, other = load_head(name, RATE), load_head(name, rate)
    assert other.rate == rate
    assert np.array_equal(head.directions, other.directions)
    frequencies = np.arange(200, 6500, 100)

    def spectra(head):
        time = np.arange(head.responses.shape[2]) / head.rate - head.delay
        return head.responses @ np.exp(-2j * np.pi * np.outer(time, frequencies))

    one, two = spectra(head), spectra(other)
    ratio = 10 * np.log10((np.abs(two) ** 2).mean(axis=2) / (np.abs(one) ** 2).mean(axis=2))
    assert np.abs(ratio).max() < 0.1
    away = np.unwrap(np.angle((two * one.conj()).sum(axis=(0, 1)))) / (2 * np.pi * frequencies)
    assert np.abs(away[frequencies > 1000]).max() < 30e-6


@pytest.mark.parametrize("rate", [0, 4000, 44100.5, 10**6, True])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(OptionError, match="rate is"):
        load_head("kemar", rate)


# --- SOFA files -----------------------------------------------------------------------------

DIRECTIONS = icosphere(4)
RESPONSES = sphere_responses(DIRECTIONS, RATE)


def write_sofa(
    path,
    directions=DIRECTIONS,
    responses=RESPONSES,
    rate=RATE,
    convention="SimpleFreeFieldHRIR",
    spherical=True,
    drop=(),
    **fields,
):
    """A SOFA file as others write them; ``fields`` replace fields, by name with _ for a dot."""
    azimuth, elevation = angles(directions)
    positions = np.stack([azimuth % 360, elevation, np.full(len(directions), 1.4)], axis=1)
    values = {
        "Data.IR": responses,
        "Data.SamplingRate": np.array([float(rate)]),
        "Data.Delay": np.zeros((1, 2)),
        "SourcePosition": positions if spherical else 1.4 * np.asarray(directions),
        "ReceiverPosition": np.array([[[0.0], [0.09], [0.0]], [[0.0], [-0.09], [0.0]]]),
        "ListenerPosition": np.zeros((1, 3)),
        "ListenerView": np.array([[1.0, 0.0, 0.0]]),
        "ListenerUp": np.array([[0.0, 0.0, 1.0]]),
    }
    values |= {name.replace("_", "."): value for name, value in fields.items()}
    with h5py.File(path, "w") as file:
        if convention is not None:
            file.attrs["SOFAConventions"] = np.bytes_(convention)
        for name, value in values.items():
            if name not in drop:
                file[name] = value
        if "SourcePosition" not in drop:
            kind = b"spherical" if spherical else b"cartesian"
            file["SourcePosition"].attrs["Type"] = np.bytes_(kind)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_head(write_sofa(tmp_path_factory.mktemp("heads") / "plain.sofa"), RATE)


def same(found, expected, tolerance=1e-5):
    """Whether two heads hold the same responses, in whatever order of directions."""
    rows = found.nearest(expected.directions)
    assert np.abs(found.directions[rows] - expected.directions).max() < 1e-9
    assert found.delay == pytest.approx(expected.delay, abs=1e-6)
    assert np.abs(found.responses[rows] - expected.responses).max() < tolerance


def test_bundled_head_as_a_sofa_file(tmp_path, kemar):
    measured = heads._read_kemar()
    path = write_sofa(tmp_path / "kemar.sofa", measured.directions, measured.responses, 44100)
    found = load_head(path, RATE)
    assert found.name == "kemar.sofa"
    same(found, kemar)


def test_sofa_gives_what_was_written(plain, sphere):
    assert len(plain.directions) == len(DIRECTIONS)
    row = plain.nearest([unit_vector(30, 0)])[0]
    exact = sphere_responses(plain.directions[row : row + 1], RATE)[0]
    found = plain.responses[row].astype(np.float64)
    start = int(np.correlate(exact[0], found[0], "valid").argmax())
    assert error_of(found, exact[:, start : start + found.shape[1]]).max() < -30


def test_cartesian_positions(tmp_path, plain):
    same(load_head(str(write_sofa(tmp_path / "a.sofa", spherical=False))), plain)


def test_receivers_in_the_other_order(tmp_path, plain):
    receivers = np.array([[0.0, -0.09, 0.0], [0.0, 0.09, 0.0]])
    delays = np.array([[5.0, 5.0]])
    path = write_sofa(
        tmp_path / "a.sofa",
        responses=RESPONSES[:, ::-1],
        ReceiverPosition=receivers,
        Data_Delay=delays,
    )
    same(load_head(path), plain)


def test_receivers_in_spherical_coordinates(tmp_path, plain):
    receivers = np.array([[-90.0, 0.0, 0.09], [90.0, 0.0, 0.09]])
    path = write_sofa(tmp_path / "a.sofa", responses=RESPONSES[:, ::-1], ReceiverPosition=receivers)
    with h5py.File(path, "a") as file:
        file["ReceiverPosition"].attrs["Type"] = "spherical"
    same(load_head(path), plain)


def describe(path, field, **attributes):
    with h5py.File(path, "a") as file:
        for name, value in attributes.items():
            file[field].attrs[name] = np.bytes_(value)


def test_units_are_the_files_own(tmp_path, plain):
    azimuth, elevation = angles(DIRECTIONS)
    positions = np.stack([np.radians(azimuth), np.radians(elevation), np.full(162, 1400)], axis=1)
    path = write_sofa(
        tmp_path / "a.sofa",
        SourcePosition=positions,
        ReceiverPosition=np.array([[0.0, 9.0, 0.0], [0.0, -9.0, 0.0]]),
        ListenerPosition=np.zeros((1, 3)),
        Data_SamplingRate=np.array([RATE / 1000]),
        Data_Delay=np.array([[2.0, 2.0]]),
    )
    describe(path, "SourcePosition", Units="radian, radian, millimetre")
    describe(path, "ReceiverPosition", Units="centimeters")
    describe(path, "ListenerPosition", Units="metre, metre, metre")
    describe(path, "Data.SamplingRate", Units="kHz")
    describe(path, "Data.Delay", Units="milliseconds")
    same(load_head(path), plain)


@pytest.mark.parametrize("own", [{}, {"Type": "cartesian", "Units": "metre"}])
def test_up_is_of_the_views_type_unless_it_says_another(tmp_path, plain, own):
    path = write_sofa(
        tmp_path / "a.sofa",
        ListenerView=np.array([[0.0, 0.0, 1.0]]),
        ListenerUp=np.array([[0.0, 0.0, 1.0]] if own else [[0.0, np.pi / 2, 1.0]]),
    )
    describe(path, "ListenerView", Type="spherical", Units="radian, radian, metre")
    describe(path, "ListenerUp", **own)
    same(load_head(path), plain)


def test_delays_apart_from_the_responses(tmp_path, plain):
    """Every response is moved to set in early; Data.Delay says by how much."""
    moves = np.random.default_rng(2).integers(0, 100, (len(RESPONSES), 2))
    moved = np.stack(
        [
            [np.roll(ear, -by) for ear, by in zip(pair, each, strict=True)]
            for pair, each in zip(RESPONSES, moves, strict=True)
        ]
    )
    path = write_sofa(tmp_path / "a.sofa", responses=moved, Data_Delay=moves + 1000.0)
    same(load_head(path), plain, 2e-3)


def test_fractional_delays(tmp_path):
    delays = np.array([[0.0, 6.4]])
    responses = np.repeat(RESPONSES[:, :1], 2, axis=1)
    path = write_sofa(tmp_path / "a.sofa", responses=responses, Data_Delay=delays)
    head = load_head(path, check=False)  # the right ear is the later one wherever a sound is
    assert np.diff(head.onsets, axis=1) == pytest.approx(np.full((len(RESPONSES), 1), 6.4), abs=0.1)


def test_listener_that_looks_elsewhere_and_stands_elsewhere(tmp_path, plain):
    place = np.array([[3.0, -2.0, 1.0]])
    path = write_sofa(
        tmp_path / "a.sofa",
        spherical=False,
        SourcePosition=turn(1.4 * DIRECTIONS, 70) + place,
        ListenerPosition=place,
        ListenerView=2 * unit_vector(70, 0)[None],
    )
    same(load_head(path), plain)
    lying = DIRECTIONS @ np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])  # front up, up back
    path = write_sofa(
        tmp_path / "b.sofa",
        lying,
        spherical=False,
        ListenerView=np.array([[0.0, 0.0, -1.0]]),
        ListenerUp=np.array([[1.0, 0.0, 0.0]]),
    )
    same(load_head(path), plain)


def test_farthest_of_several_distances(tmp_path, plain):
    positions = np.concatenate([0.5 * DIRECTIONS, 2 * DIRECTIONS])
    responses = np.concatenate([RESPONSES[::-1], RESPONSES])
    path = write_sofa(tmp_path / "a.sofa", positions, responses, spherical=False)
    same(load_head(path), plain)


def test_horizontal_measurements_are_enough(tmp_path):
    directions = np.array([unit_vector(azimuth, 0) for azimuth in range(0, 360, 15)])
    path = write_sofa(tmp_path / "a.sofa", directions, sphere_responses(directions, RATE))
    with pytest.raises(SceneError, match=r"24 directions lie in one plane.*--no-check-head"):
        load_head(path)
    head = load_head(path, check=False)
    assert len(head.directions) == 26  # with both poles
    found = time_difference(head.response(unit_vector(52, 0)))
    exact = time_difference(sphere_responses(unit_vector(52, 0)[None], RATE)[0])
    assert found == pytest.approx(exact, abs=20)
    assert np.isfinite(head.response(unit_vector(52, 50))).all()


def test_open_side_of_frontal_measurements_is_as_their_edge(tmp_path):
    front = DIRECTIONS[:, 0] > -0.01
    path = write_sofa(tmp_path / "a.sofa", DIRECTIONS[front], RESPONSES[front])
    head = load_head(path)
    behind = unit_vector(160, 10)
    nearest = head.responses[head.nearest([behind])[0]]
    assert np.abs(head.response(behind) - nearest).max() < 1e-6
    assert np.isfinite(head.diffuse_covariance(256)).all()


def spoiled(value):
    responses = RESPONSES.copy()
    responses[7, 1] = value
    return responses


WRONG = {
    "convention": ({"convention": "MultiSpeakerBRIR"}, "'MultiSpeakerBRIR'.*SimpleFreeFieldHRIR"),
    "no convention": ({"convention": None}, "'none'"),
    "no responses": ({"drop": ["Data.IR"]}, "no field Data.IR"),
    "no rate": ({"drop": ["Data.SamplingRate"]}, "no field Data.SamplingRate"),
    "no positions": ({"drop": ["SourcePosition"]}, "no field SourcePosition"),
    "no receivers": ({"drop": ["ReceiverPosition"]}, "no field ReceiverPosition"),
    "NaN": ({"responses": spoiled(np.nan)}, "Data.IR must hold finite numbers"),
    "silent": ({"responses": spoiled(0)}, "1 of 162 responses are silent.*measurement 7"),
    "one receiver": ({"responses": RESPONSES[:, :1]}, "of two receivers"),
    "no taps": ({"responses": RESPONSES[..., :0]}, "empty"),
    "rates": ({"Data_SamplingRate": np.array([1.0, 2.0])}, "one number of 8000"),
    "no rate at all": ({"Data_SamplingRate": np.array([0.0])}, "one number of 8000"),
    "1 Hz": ({"Data_SamplingRate": np.array([1.0])}, "is 1 Hz"),
    "kilohertz, not told": ({"Data_SamplingRate": np.array([44.1])}, "is 44.1 Hz"),
    "far away": ({"SourcePosition": np.full((162, 3), 1e300)}, "has the value 1e"),
    "positions": ({"SourcePosition": np.ones((5, 3))}, r"shape \(5, 3\).*\(162, 3\)"),
    "delays": ({"Data_Delay": np.zeros((3, 2))}, r"Data.Delay has the shape \(3, 2\)"),
    "long delays": ({"Data_Delay": np.array([[0.0, 9000.0]])}, "in samples"),
    "receivers": ({"ReceiverPosition": np.ones((2, 3))}, "one receiver must be on the left"),
    "receiver": ({"ReceiverPosition": np.ones((1, 3))}, r"shape \(1, 3\)"),
    "text": ({"ReceiverPosition": np.bytes_(b"left")}, "no number"),
    "view": ({"ListenerView": np.array([[0.0, 0.0, 3.0]])}, "parallel or zero"),
    "in the head": ({"SourcePosition": np.zeros((162, 3))}, "inside the listener's head"),
    "one place": ({"SourcePosition": np.ones((162, 3))}, "holds 1 directions"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_sofa_files(tmp_path, name):
    options, message = WRONG[name]
    path = write_sofa(tmp_path / "wrong.sofa", **options)
    with pytest.raises(SceneError, match=message) as raised:
        load_head(path)
    assert "wrong.sofa" in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "units", "message"),
    [
        ("SourcePosition", "gon, gon, metre", "SourcePosition is in 'gon'.*degree.*radian"),
        ("SourcePosition", "degree, degree", "units 'degree, degree'; three are needed"),
        ("ReceiverPosition", "inch", "ReceiverPosition is in 'inch'.*metre"),
        ("Data.SamplingRate", "samples", "Data.SamplingRate is in 'samples'.*hertz"),
        ("Data.Delay", "metre", "Data.Delay is in 'metre'.*sample"),
    ],
)
def test_unknown_units(tmp_path, name, units, message):
    path = write_sofa(tmp_path / "wrong.sofa")
    describe(path, name, Units=units)
    with pytest.raises(SceneError, match=message):
        load_head(path)


def test_unknown_type_of_positions(tmp_path):
    path = write_sofa(tmp_path / "wrong.sofa")
    with h5py.File(path, "a") as file:
        file["SourcePosition"].attrs["Type"] = np.bytes_(b"interaural-polar")
    with pytest.raises(SceneError, match="interaural-polar"):
        load_head(path)


@pytest.mark.parametrize("content", [b"", b"no HDF5 " * 100])
def test_files_that_are_no_hdf5(tmp_path, content):
    (tmp_path / "head.sofa").write_bytes(content)
    with pytest.raises(SceneError, match="cannot be read as a SOFA file"):
        load_head(tmp_path / "head.sofa")


def test_truncated_file(tmp_path):
    path = write_sofa(tmp_path / "head.sofa")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SceneError, match="cannot be read as a SOFA file"):
        load_head(path)


@pytest.mark.parametrize("name", ["Data.IR", "SourcePosition"])
def test_fields_larger_than_the_file_can_hold(tmp_path, name):
    path = write_sofa(tmp_path / "head.sofa", drop=[name])
    with h5py.File(path, "a") as file:
        file.create_dataset(name, (10**6, 2, 10**4), "f4", chunks=(1, 2, 10**4), compression="gzip")
    with pytest.raises(SceneError, match=f"{name} claims to be 160,000,000,000 bytes"):
        load_head(path)


def test_fields_of_other_files_are_not_followed(tmp_path):
    write_sofa(tmp_path / "other.sofa")
    path = write_sofa(tmp_path / "head.sofa", drop=["Data.IR"])
    with h5py.File(path, "a") as file:
        file["Data.IR"] = h5py.ExternalLink("other.sofa", "Data.IR")
    with pytest.raises(SceneError, match=r"Data\.IR lies in another file"):
        load_head(path)


LIMIT = f"import runpy; runpy.run_path({sofa.sofa_fields.__file__!r})['limit_time']"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("import time; time.sleep(60)", "the HDF5 library did not come to an end in"),
        (f"{LIMIT}(1)\nwhile True: pass", "the HDF5 library crashed, or did not come to an end"),
        ("import os; os.abort()", "the HDF5 library crashed"),
        ("raise KeyError('object type')", "KeyError: 'object type'"),
    ],
)
def test_a_file_that_hangs_or_crashes_the_library(tmp_path, monkeypatch, does, message):
    (tmp_path / "fields.py").write_text(does)
    monkeypatch.setattr(sofa.sofa_fields, "__file__", str(tmp_path / "fields.py"))
    monkeypatch.setattr(sofa, "CPU_SECONDS", 2 if "sleep" in does else 60)
    monkeypatch.setattr(sofa, "PATIENCE", 1)
    with pytest.raises(SceneError, match=f"cannot be read as a SOFA file.*{message}"):
        load_head(write_sofa(tmp_path / "head.sofa"))


# --- what may be no head --------------------------------------------------------------------


def mirrored(path, **fields):
    return write_sofa(path, DIRECTIONS * [1, -1, 1], **fields)


def test_ears_that_contradict_the_directions(tmp_path, plain):
    path = mirrored(tmp_path / "a.sofa")
    with pytest.raises(SceneError) as raised:
        load_head(path)
    message = str(raised.value)
    assert "quieter one in 84 and the later one in 84" in message
    assert "10.0 dB quieter and 0.69 ms later at azimuth 90, elevation 0" in message
    assert "10.0 dB louder and 0.69 ms earlier at azimuth -90, elevation 0" in message
    assert "--no-check-head" in message
    assert "check=False" in message
    found = load_head(path, check=False)
    expected = plain.response((0, -1, 0))
    assert np.abs(found.response((0, 1, 0)) - expected).max() < 1e-5


def test_either_level_or_time_may_contradict(tmp_path):
    nearer_left = DIRECTIONS[:, 1] > 0
    late = np.where(np.stack([nearer_left, ~nearer_left], axis=1), 64.0, 0.0)  # 2 ms
    with pytest.raises(SceneError, match="quieter one in 0 and the later one in 84"):
        load_head(write_sofa(tmp_path / "a.sofa", Data_Delay=late))
    quiet = np.where(np.stack([nearer_left, ~nearer_left], axis=1), 0.05, 1.0)[..., None]
    with pytest.raises(SceneError, match="quieter one in 84 and the later one in 0"):
        load_head(write_sofa(tmp_path / "b.sofa", responses=RESPONSES * quiet))


def test_part_of_the_directions_may_contradict(tmp_path):
    directions = DIRECTIONS.copy()
    directions[directions[:, 0] > 0.1, 1] *= -1
    with pytest.raises(SceneError, match="of 84 lateral directions"):
        load_head(write_sofa(tmp_path / "a.sofa", directions))


NOISE = np.random.default_rng(3).standard_normal(RESPONSES.shape) * np.sqrt((RESPONSES**2).mean())
SIX = np.concatenate([np.eye(3), -np.eye(3)])
GOOD = {
    "noise at 10 dB": {"responses": RESPONSES + 0.3 * NOISE},
    "an ear 6 dB louder": {"responses": RESPONSES * [[[1.0], [2.0]]]},
    "both ears alike": {"responses": np.repeat(RESPONSES[:, :1], 2, axis=1)},
    "six directions": {"directions": SIX, "responses": sphere_responses(SIX, RATE)},
    "the left alone": {
        "directions": DIRECTIONS[DIRECTIONS[:, 1] > 0.3],
        "responses": RESPONSES[DIRECTIONS[:, 1] > 0.3],
    },
    "the front alone": {
        "directions": DIRECTIONS[DIRECTIONS[:, 0] > 0.8],
        "responses": RESPONSES[DIRECTIONS[:, 0] > 0.8],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_good_heads_are_never_refused(tmp_path, name):
    assert len(sofa.read_sofa(write_sofa(tmp_path / "a.sofa", **GOOD[name])).directions) > 5


def test_a_room_is_no_head(tmp_path):
    decay = np.exp(-np.arange(6400) / 1600)
    ringing = 0.1 * decay * np.random.default_rng(4).standard_normal((6, 2, 6400))
    ringing[..., : RESPONSES.shape[-1]] += sphere_responses(SIX, RATE)
    path = write_sofa(tmp_path / "a.sofa", SIX, ringing)
    with pytest.raises(SceneError, match=r"energy comes later than 20 ms.*--no-check-head"):
        sofa.read_sofa(path)
    assert sofa.read_sofa(path, check=False).responses.shape == (6, 2, 6400)

    path = write_sofa(tmp_path / "b.sofa")
    describe(path, "/", RoomType="reverberant")
    with pytest.raises(SceneError, match="RoomType is 'reverberant'"):
        sofa.read_sofa(path)
    for room in ("free field", "Free-Field"):
        describe(path, "/", RoomType=room)
        sofa.read_sofa(path)


def test_directions_around_no_volume(tmp_path):
    median = np.array([unit_vector(0, elevation) for elevation in range(-90, 271, 15)])
    path = write_sofa(tmp_path / "a.sofa", median, sphere_responses(median, RATE), spherical=False)
    with pytest.raises(SceneError, match="in one plane"):
        load_head(path)
    with pytest.raises(SceneError, match="do not surround a head"):
        load_head(path, check=False)


def test_no_such_head():
    with pytest.raises(SceneError, match=r"no head 'kemarr'.*'kemar'"):
        load_head("kemarr")


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    path = write_sofa(tmp_path / "head.sofa")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(OptionError, match=r"gram-hear\[scenes\]"):
        load_head(path)


# --- the same every time --------------------------------------------------------------------


def test_heads_are_kept_and_the_same_every_time(head):
    assert load_head(head.name, RATE) is head
    heads._load.cache_clear()
    again = load_head(head.name, RATE)
    assert again is not head
    assert np.array_equal(again.responses, head.responses)
    assert again.delay == head.delay


def test_changed_file_is_read_anew(tmp_path):
    path = write_sofa(tmp_path / "head.sofa")
    first = load_head(path, check=False)
    write_sofa(path, responses=RESPONSES[:, ::-1])
    second = load_head(path, check=False)
    assert (
        time_difference(first.response((0, 1, 0))) > 0 > time_difference(second.response((0, 1, 0)))
    )
