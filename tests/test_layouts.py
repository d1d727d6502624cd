"""Channel layouts and Ambisonic conventions, from plane waves encoded by hand."""

import warnings
from math import cos, radians, sin, sqrt

import pytest
import torch

from gram_hear.audio.layouts import check_convention, to_layout, to_soundspaces
from gram_hear.errors import AudioError, OptionError

DIRECTIONS = [(0, 0), (90, 0), (180, 0), (-90, 0), (0, 90), (0, -90), (30, 20), (-135, -50)]
AT_DIRECTIONS = pytest.mark.parametrize(("azimuth", "elevation"), DIRECTIONS)


def towards(azimuth, elevation):
    """Front, left and up of the unit vector to a source; degrees, counter-clockwise and upwards."""
    azimuth, elevation = radians(azimuth), radians(elevation)
    return cos(elevation) * cos(azimuth), cos(elevation) * sin(azimuth), sin(elevation)


def wave(signal, *gains):
    return torch.stack([gain * signal for gain in gains])


def ambix(signal, azimuth, elevation):
    front, left, up = towards(azimuth, elevation)
    return wave(signal, 1, left, up, front)


def fuma(signal, azimuth, elevation):
    front, left, up = towards(azimuth, elevation)
    return wave(signal, 1 / sqrt(2), front, left, up)


def n3d_right_up_back(signal, azimuth, elevation):
    """Spherical harmonics of degree 0 and 1, ACN and N3D, in axes x right, y up, z back."""
    front, left, up = towards(azimuth, elevation)
    x, y, z = -left, up, -front
    return wave(signal, 1, sqrt(3) * y, sqrt(3) * z, sqrt(3) * x)


@pytest.fixture
def signal(noise):
    return noise(64)


# --- conventions ----------------------------------------------------------------------------


@AT_DIRECTIONS
@pytest.mark.parametrize(("convention", "encode"), [("ambix", ambix), ("fuma", fuma)])
def test_plane_wave_becomes_n3d_in_the_models_axes(signal, azimuth, elevation, convention, encode):
    found = to_soundspaces(encode(signal, azimuth, elevation), convention)
    torch.testing.assert_close(found, n3d_right_up_back(signal, azimuth, elevation))


@pytest.mark.parametrize(
    ("azimuth", "elevation", "channel", "sign"),
    [
        (0, 90, 1, 1),  # above: channel 1 is up
        (180, 0, 2, 1),  # behind: channel 2 is back
        (0, 0, 2, -1),  # in front
        (-90, 0, 3, 1),  # right: channel 3 is right
        (90, 0, 3, -1),  # left
    ],
)
def test_each_axis_has_its_channel(signal, azimuth, elevation, channel, sign):
    found = to_soundspaces(ambix(signal, azimuth, elevation), "ambix")
    expected = torch.zeros(4, 64)
    expected[0], expected[channel] = signal, sign * sqrt(3) * signal
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_components_have_unit_energy_over_the_sphere():
    axes = [(0, 0), (90, 0), (180, 0), (-90, 0), (0, 90), (0, -90)]  # exact for degree 1
    one = torch.ones(1)
    waves = torch.stack([to_soundspaces(ambix(one, *direction), "ambix") for direction in axes])
    torch.testing.assert_close(waves.square().mean(dim=0), torch.ones(4, 1))


def test_ambix_is_the_written_formula(noise):
    w, y, z, x = audio = noise(4, 64)
    gain = sqrt(3)
    torch.testing.assert_close(
        to_soundspaces(audio, "ambix"), torch.stack([w, gain * z, -gain * x, -gain * y])
    )


def test_soundspaces_passes_unchanged_and_batches_convert_clip_by_clip(noise):
    audio = noise(3, 4, 64)
    assert torch.equal(to_soundspaces(audio, "soundspaces"), audio)
    for convention in ("ambix", "fuma"):
        clips = torch.stack([to_soundspaces(clip, convention) for clip in audio])
        assert torch.equal(to_soundspaces(audio, convention), clips)


def test_unknown_convention_is_an_error_that_suggests_the_nearest(noise):
    with pytest.raises(OptionError, match=r"'ambx'.*ambix, fuma, soundspaces.*mean 'ambix'"):
        to_soundspaces(noise(4, 64), "ambx")
    with pytest.raises(OptionError, match="mean 'fuma'"):
        check_convention("fumas")


# --- layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(("channels", "layout"), [(1, "mono"), (2, "binaural")])
def test_the_models_own_layout_passes_unchanged(noise, channels, layout, parity):
    audio = noise(3, channels, 64)
    assert torch.equal(to_layout(audio, layout, parity=parity), audio)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("convention", ["ambix", "fuma", "soundspaces"])
def test_ambisonic_into_ambisonic_is_converted(noise, convention, parity):
    audio = noise(3, 4, 64)
    found = to_layout(audio, "ambisonic", convention, parity)
    assert torch.equal(found, to_soundspaces(audio, convention))


def test_ambix_is_the_default_convention(noise):
    audio = noise(4, 64)
    assert torch.equal(to_layout(audio, "ambisonic"), to_soundspaces(audio, "ambix"))


@pytest.mark.parametrize("parity", [False, True])
def test_mono_reaches_both_ears(noise, parity):
    audio = noise(3, 1, 64)
    assert torch.equal(to_layout(audio, "binaural", parity=parity), torch.cat([audio] * 2, dim=1))


def test_mono_into_ambisonic_is_the_omnidirectional_channel_alone(noise):
    audio = noise(3, 1, 64)
    found = to_layout(audio, "ambisonic")
    assert torch.equal(found[:, :1], audio)
    assert torch.equal(found[:, 1:], torch.zeros(3, 3, 64))


@pytest.mark.parametrize("convention", ["ambix", "fuma", "soundspaces"])
def test_mono_into_ambisonic_with_parity_is_in_every_channel_unconverted(noise, convention):
    audio = noise(3, 1, 64)
    found = to_layout(audio, "ambisonic", convention, parity=True)
    assert torch.equal(found, torch.cat([audio] * 4, dim=1))


@pytest.mark.parametrize("parity", [False, True])
def test_binaural_into_mono_is_the_mean(noise, parity):
    audio = noise(3, 2, 64)
    found = to_layout(audio, "mono", parity=parity)
    torch.testing.assert_close(found[:, 0], (audio[:, 0] + audio[:, 1]) / 2)
    assert found.shape == (3, 1, 64)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(("layout", "ears"), [("mono", 1), ("binaural", 2)])
@pytest.mark.parametrize(
    ("convention", "gain"), [("ambix", 1.0), ("fuma", sqrt(2)), ("soundspaces", 1.0)]
)
def test_ambisonic_into_ears_is_the_omnidirectional_channel(
    noise, layout, ears, convention, gain, parity
):
    audio = noise(3, 4, 64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = to_layout(audio, layout, convention, parity)
    assert ["directions are lost" in str(warning.message) for warning in caught] == [True] * (
        ears - 1
    )
    torch.testing.assert_close(found, torch.cat([gain * audio[:, :1]] * ears, dim=1))


@pytest.mark.parametrize("parity", [False, True])
def test_binaural_into_ambisonic_is_an_error(noise, parity):
    with pytest.raises(AudioError, match=r"2 channels.*Ambisonic model"):
        to_layout(noise(2, 64), "ambisonic", parity=parity)


@pytest.mark.parametrize("channels", [3, 5, 7, 64])
def test_other_numbers_of_channels_are_errors_that_list_the_allowed(noise, channels):
    with pytest.raises(AudioError, match=rf"{channels} channels; allowed are 1 .*2 .*4 "):
        to_layout(noise(channels, 64), "mono")


def test_layouts_change_no_input_and_carry_gradients(noise):
    audio = noise(4, 64).requires_grad_()
    before = audio.detach().clone()
    to_layout(audio, "ambisonic").sum().backward()
    assert torch.equal(audio.detach(), before)
    expected = torch.tensor([1.0, -sqrt(3), sqrt(3), -sqrt(3)])[:, None].expand(4, 64)
    torch.testing.assert_close(audio.grad, expected)
