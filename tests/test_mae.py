"""The masked autoencoder: golden numbers, what it may see, what counts."""

import numpy as np
import pytest
import torch

from gram_hear.checkpoints.store import build_autoencoder, load_checkpoint
from gram_hear.errors import ConfigError
from gram_hear.frontend import FrontEnd
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder
from gram_hear.nn.masks import random_mask, split_mask
from gram_hear.nn.patches import position_table

DECODERS = pytest.mark.parametrize("decoder", ["multi_window", "plain"])


@pytest.fixture
def autoencoder(make_config):
    """Return a function that makes a small autoencoder of random weights, none trivial."""

    def make(channels=2, patching="frame", decoder="multi_window"):
        model = MaskedAutoencoder(make_config(channels, patching, decoder))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
        return model

    return make


def seeded_mask(windows=3, tokens=200, masked=160, seed=0):
    return random_mask(windows, tokens, masked, torch.Generator().manual_seed(seed))


def swap_patches(features, one, other):
    """Exchange two frame patches of every window, which keeps its mean and variance."""

    def place(token):
        f, t = divmod(token, 25)
        return (..., slice(8 * t, 8 * t + 8), slice(16 * f, 16 * f + 16))

    swapped = features.clone()
    swapped[place(one)], swapped[place(other)] = features[place(other)], features[place(one)]
    return swapped


# --- golden numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 7])
def test_reconstruction_is_golden(golden, golden_path, golden_audio, channels):
    stored = golden(f"gramt_frame_{channels}ch.npz")
    checkpoint = load_checkpoint(golden_path(f"gramt_frame_{channels}ch.safetensors"), heads=4)
    with torch.no_grad():
        features = FrontEnd(checkpoint.config.front_end)(golden_audio(channels))[:, :, :200]
        found = build_autoencoder(checkpoint)(
            features, *split_mask(torch.from_numpy(stored["mask"]))
        )
    np.testing.assert_allclose(found.loss, stored["loss"], rtol=0, atol=1e-5)
    # The target is made of log-mels and has their tolerance.
    for name, tensor, atol in [("pred", found.prediction, 1e-5), ("patches", found.target, 1e-4)]:
        assert list(tensor.shape) == stored[f"{name}_full_shape"].tolist()
        for key, value in {
            f"{name}_clip0": tensor[0, stored["sub_idx"]],
            f"{name}_patch_mean": tensor.mean(dim=-1),
            f"{name}_patch_std": tensor.std(dim=-1, correction=1),
        }.items():
            np.testing.assert_allclose(value, stored[key], rtol=0, atol=atol, err_msg=key)


# --- the loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("patching", ["frame", "time"])
def test_loss_is_the_mean_over_masked_patches_times_channels(
    autoencoder, noise, channels, patching
):
    model = autoencoder(channels, patching)
    mask = seeded_mask(3, model.config.tokens, 60)
    found = model(noise(3, channels, 200, 128), *split_mask(mask))
    errors = [
        ((found.prediction[n, i] - found.target[n, i]).double() ** 2).mean()
        for n, i in mask.nonzero().tolist()
    ]
    assert len(errors) == 180
    expected = channels * torch.stack(errors).mean()
    torch.testing.assert_close(found.loss.double(), expected, rtol=1e-5, atol=0)


@DECODERS
def test_every_parameter_learns(autoencoder, noise, decoder):
    model = autoencoder(decoder=decoder)
    model(noise(3, 2, 200, 128), *split_mask(seeded_mask())).loss.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


# --- what it may see ------------------------------------------------------------------------


@DECODERS
def test_masked_content_does_not_reach_the_prediction(autoencoder, noise, decoder):
    model, features, mask = autoencoder(decoder=decoder), noise(2, 2, 200, 128), seeded_mask(1)
    one, other = mask[0].nonzero()[[3, -5], 0].tolist()
    mask = mask.expand(2, -1)
    with torch.no_grad():
        before = model(features, *split_mask(mask))
        after = model(swap_patches(features, one, other), *split_mask(mask))
    torch.testing.assert_close(after.prediction, before.prediction, rtol=0, atol=1e-4)
    torch.testing.assert_close(after.target[:, one], before.target[:, other], rtol=0, atol=1e-5)


@DECODERS
def test_visible_content_reaches_the_prediction(autoencoder, noise, decoder):
    model, features, mask = autoencoder(decoder=decoder), noise(1, 2, 200, 128), seeded_mask(1)
    one, other = (~mask[0]).nonzero()[[3, -5], 0].tolist()
    with torch.no_grad():
        before = model(features, *split_mask(mask))
        after = model(swap_patches(features, one, other), *split_mask(mask))
    assert (after.prediction - before.prediction).abs().max() > 0.01


def test_only_visible_tokens_are_encoded(autoencoder, noise):
    model, mask = autoencoder(), seeded_mask(3, masked=160)
    lengths = []
    model.encoder.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    model(noise(3, 2, 200, 128), *split_mask(mask))
    assert lengths == [41]


# --- the decoder ----------------------------------------------------------------------------


@DECODERS
def test_decoder_equals_the_plain_reference(autoencoder, noise, decoder):
    model = autoencoder(decoder=decoder)
    part, mask = model.decoder, seeded_mask(2, masked=197)
    visible = torch.stack([(~row).nonzero()[:, 0] for row in mask])
    encoded = noise(2, 4, 64)
    found = part(encoded, visible)
    for n in range(2):
        rows = [part.embedding(encoded[n, 0])] if decoder == "plain" else []
        kept = {int(token): k for k, token in enumerate(visible[n], start=1)}
        for token in range(200):
            place = kept.get(token)
            rows.append(
                part.mask_token[0, 0] if place is None else part.embedding(encoded[n, place])
            )
        tokens = torch.stack(rows)[None] + position_table(32, model.config, decoder == "plain")
        for block in part.blocks:
            tokens = block(tokens)
        expected = part.prediction(part.norm(tokens))[0, -200:]
        torch.testing.assert_close(found[n], expected, rtol=0, atol=1e-5)


def test_decoder_norms_have_epsilon_1e_5_and_the_encoders_1e_6(autoencoder):
    model = autoencoder()

    def epsilons(part):
        return {each.eps for each in part.modules() if isinstance(each, torch.nn.LayerNorm)}

    assert (epsilons(model.encoder), epsilons(model.decoder)) == ({1e-6}, {1e-5})


def test_encoder_only_configuration_is_an_error(make_config):
    with pytest.raises(ConfigError, match="encoder-only"):
        MaskedAutoencoder(make_config(2, decoder=None))


# --- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [seeded_mask(tokens=100, masked=80), seeded_mask(windows=2)])
def test_indices_of_other_windows_or_tokens_are_an_error(autoencoder, noise, mask):
    with pytest.raises(ConfigError, match=r"both need 3 rows, .* and 200 columns"):
        autoencoder()(noise(3, 2, 200, 128), *split_mask(mask))


# --- types of number ------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["multi_window", "plain"])
def test_the_whole_autoencoder_runs_in_bfloat16(make_config, noise, decoder):
    config = make_config(2, decoder=decoder)
    model = MaskedAutoencoder(config)
    initialise(model, 0)
    features = noise(2, 2, 200, 128)
    mask = random_mask(2, config.tokens, 160, torch.Generator().manual_seed(0))
    expected = model(features, *split_mask(mask)).loss
    found = model.bfloat16()(features, *split_mask(mask))
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected, rtol=0.02, atol=0)


# --- torch.compile --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backbone", ["transformer", "mamba2"])
def test_the_whole_step_compiles_without_a_graph_break(make_config, noise, backbone, precision):
    config = make_config(2, backbone=backbone)
    model = MaskedAutoencoder(config)
    initialise(model, 0)
    given = (noise(2, 2, 200, 128), *split_mask(seeded_mask(2)))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # raises at a break
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        expected, found = model(*given).loss, compiled(*given).loss
    torch.testing.assert_close(
        found, expected, rtol=1e-5 if precision == torch.float32 else 0.01, atol=0
    )
    found.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
