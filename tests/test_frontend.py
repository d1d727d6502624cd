"""The front-end: golden numbers, a plain float64 reference, blocks, types, errors, gradients."""

import numpy as np
import pytest
import torch

from gram_hear import frontend
from gram_hear.config import FrontEndConfig
from gram_hear.errors import AudioError
from gram_hear.frontend import FrontEnd, intensity_vector, mel_filterbank

FLOOR = 1.1920929e-07
LAYOUTS = {1: ("mono", FLOOR), 2: ("binaural", FLOOR), 7: ("ambisonic", 1e-6)}
CHANNELS = pytest.mark.parametrize("channels", [1, 2, 7])
GOLDEN_CHANNELS = pytest.mark.parametrize("channels", [2, 7])


def front_end(channels, floor=None):
    layout, published_floor = LAYOUTS[channels]
    return FrontEnd(FrontEndConfig(layout=layout, log_floor=floor or published_floor))


def plain_features(audio, channels, floor, bank):
    """(C, samples) float64 -> (C', frames, mels), frame by frame as the words have it."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    padded = np.pad(audio, ((0, 0), (512, 512)), mode="reflect")
    starts = range(0, audio.shape[-1] + 1, 320)
    spectra = np.stack([np.fft.rfft(padded[:, s : s + 1024] * hann) for s in starts], axis=1)
    power = np.abs(spectra) ** 2
    log_mel = np.log(power @ bank + floor)
    if channels != 7:
        return log_mel
    intensity = 2 * np.real(np.conj(spectra[:1]) * spectra[1:]) / (1e-6 + power.sum(axis=0))
    return np.concatenate([log_mel, intensity @ bank])


# --- golden numbers -------------------------------------------------------------------------


def test_filterbank_and_window_are_the_authors_to_the_last_bit(golden):
    stored, front = golden("mel.npz"), front_end(1)
    np.testing.assert_array_equal(mel_filterbank(front.config).numpy(), stored["fb"])
    np.testing.assert_array_equal(front.filterbank.numpy(), stored["fb"])
    np.testing.assert_array_equal(front.window.numpy(), stored["window"])


@pytest.mark.parametrize(("name", "floor"), [("log_infer", FLOOR), ("log_train", 1e-5)])
def test_log_mel_of_one_channel_is_golden(golden, name, floor):
    stored = golden("mel.npz")
    audio = torch.from_numpy(stored["audio_foa_int16"][None, :1]).float() / 32768
    features = front_end(1, floor)(audio)[0, 0].T
    np.testing.assert_allclose(features.numpy(), stored[name], rtol=0, atol=1e-4)


def test_log_mel_of_less_than_one_window_is_golden(golden):
    stored = golden("mel.npz")
    audio = torch.from_numpy(stored["audio_foa_int16"][None, :1, :1000]).float() / 32768
    expected = np.log(stored["mel_power_first1000samples"] + FLOOR)
    np.testing.assert_allclose(front_end(1)(audio)[0, 0].T.numpy(), expected, rtol=0, atol=1e-4)


def test_ambisonic_features_of_one_second_are_golden(golden):
    stored = golden("mel.npz")
    audio = torch.from_numpy(stored["audio_foa_int16"][None]).float() / 32768
    features = front_end(7)(audio)[0].transpose(1, 2)
    np.testing.assert_allclose(features.numpy(), stored["foa_features"], rtol=0, atol=1e-4)


@GOLDEN_CHANNELS
def test_features_of_whole_clips_are_golden(golden, golden_audio, channels):
    stored = golden(f"gramt_feats_{channels}ch.npz")
    features = front_end(channels)(golden_audio(channels)).numpy()
    assert features.shape == (3, channels, 421, 128)
    first, strided = features[0, :, :200], features[:, :, :: int(stored["frame_stride"])]
    np.testing.assert_allclose(first, stored["feats_clip0_first200"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(strided, stored["feats_strided"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("channels", "floor"), [(2, 1e-5), (7, 1e-6)])
def test_training_features_are_golden(golden, golden_audio, channels, floor):
    stored = golden(f"gramt_frame_{channels}ch.npz")["train_logmel_clip0_last50"]
    features = front_end(channels, floor)(golden_audio(channels)[:1])[0, :, 371:421]
    np.testing.assert_allclose(features.numpy(), stored, rtol=0, atol=1e-4)


# --- a plain reference ----------------------------------------------------------------------


@CHANNELS
@pytest.mark.parametrize("samples", [513, 1024, 3199, 3200])
def test_features_equal_the_plain_reference(noise, channels, samples):
    front = front_end(channels)
    audio = 0.3 * noise(2, front.config.audio_channels, samples)
    features = front(audio)
    assert features.shape[2] == front.frames(samples) == 1 + samples // 320
    bank = front.filterbank.double().numpy()
    for clip, found in zip(audio.double().numpy(), features.numpy(), strict=True):
        expected = plain_features(clip, channels, front.config.log_floor, bank)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_intensity_is_bounded_and_reaches_one_for_a_plane_wave():
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.randn(2, 4, 50, 20, dtype=torch.complex64, generator=generator)
    scale = torch.logspace(-6, 3, 50)[:, None]
    random = intensity_vector(spectrum * scale, (spectrum * scale).abs().square())
    assert random.abs().max() <= 1
    wave = torch.stack([spectrum[:, 0], torch.zeros_like(spectrum[:, 0])], dim=1)[:, [0, 0, 1, 1]]
    intensity = intensity_vector(wave, wave.abs().square())
    torch.testing.assert_close(intensity[:, 0], torch.ones(2, 50, 20), rtol=0, atol=0.05)
    assert intensity[:, 1:].eq(0).all()


def test_silence_is_the_log_of_the_floor_and_no_intensity():
    features = front_end(7)(torch.zeros(1, 4, 3200))
    assert features[:, :4].eq(torch.tensor(1e-6).log()).all()
    assert features[:, 4:].eq(0).all()


# --- blocks, types, places ------------------------------------------------------------------


@CHANNELS
@pytest.mark.parametrize("block", [1, 7, 50])
def test_blocks_give_the_same_numbers(noise, monkeypatch, channels, block):
    front = front_end(channels)
    audio = noise(2, front.config.audio_channels, 16000)  # 51 frames
    whole = front(audio)
    monkeypatch.setattr(frontend, "BLOCK_FRAMES", block)
    torch.testing.assert_close(front(audio), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16])
@CHANNELS
def test_casting_the_model_leaves_the_front_end_alone(noise, channels, cast):
    front = front_end(channels)
    audio = noise(1, front.config.audio_channels, 6400)
    expected = front(audio)
    cast(front)
    found = front(audio)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_front_end_made_without_storage_is_right_once_it_has_some(noise):
    with torch.device("meta"):
        front = front_end(2)
    front.to_empty(device="cpu")
    audio = noise(1, 2, 6400)
    assert torch.equal(front(audio), front_end(2)(audio))


def test_front_end_has_no_stored_tensors():
    assert not front_end(7).state_dict()


def test_double_audio_gives_the_same_float_features(noise):
    audio = noise(1, 1, 6400)
    assert torch.equal(front_end(1)(audio.double()), front_end(1)(audio))


# --- errors and gradients -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "shape"),
    [(1, (1, 2, 6400)), (2, (1, 1, 6400)), (7, (1, 7, 6400)), (2, (2, 6400)), (2, (1, 6400, 2))],
)
def test_another_shape_is_an_error_that_names_both(channels, shape):
    front = front_end(channels)
    with pytest.raises(
        AudioError, match=rf"\(batch, {front.config.audio_channels}, samples\)"
    ) as e:
        front(torch.zeros(shape))
    assert str(shape) in str(e.value)


def test_shortest_waveform_is_taken_and_a_shorter_is_an_error(noise):
    front = front_end(1)
    assert front(noise(1, 1, front.shortest)).shape == (1, 1, 2, 128)
    with pytest.raises(AudioError, match="512 samples; it needs at least 513"):
        front(noise(1, 1, 512))


@CHANNELS
def test_gradients_reach_the_waveform(noise, channels):
    front = front_end(channels)
    audio = noise(1, front.config.audio_channels, 3200).requires_grad_()
    front(audio).square().sum().backward()
    assert audio.grad.isfinite().all()
    assert audio.grad.ne(0).float().mean() > 0.99


@CHANNELS
def test_gradients_of_silence_are_finite(channels):
    front = front_end(channels)
    audio = torch.zeros(1, front.config.audio_channels, 3200, requires_grad=True)
    front(audio).sum().backward()
    assert audio.grad.isfinite().all()
