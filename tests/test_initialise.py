"""What new models start from: every tensor against its formula, for each backbone."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gram_hear.config import named_config
from gram_hear.model import GramModel
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder

BACKBONES = ["transformer", "mamba2", "mamba1"]


def autoencoder(config, seed=0):
    model = MaskedAutoencoder(config)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)  # whatever is left out shows
    initialise(model, seed)
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=BACKBONES)
def new_model(request):
    """An autoencoder of new weights for each backbone: tiny, with three layers."""
    config = named_config("tiny", 2, backbone=request.param)
    return autoencoder(replace(config, encoder=replace(config.encoder, depth=3)))


# --- formulas -------------------------------------------------------------------------------
#
# Each check takes the tensors of one name in all blocks, stacked.


def uniform(bound):
    """A check that a tensor is uniform within ``bound``: the extremes, the mean, the deviation."""

    def check(tensor):
        n, expected = tensor.numel(), bound / math.sqrt(3)
        assert bound * (1 - 20 / n) <= tensor.abs().max() <= bound * (1 + 1e-6)
        assert abs(tensor.mean()) <= 5 * expected / math.sqrt(n)
        assert tensor.std(correction=0) == pytest.approx(expected, rel=5 * math.sqrt(0.2 / n))

    return check


def normal(deviation):
    def check(tensor):
        n = tensor.numel()
        assert abs(tensor.mean()) <= 5 * deviation / math.sqrt(n)
        assert tensor.std(correction=0) == pytest.approx(deviation, rel=5 * math.sqrt(0.5 / n))

    return check


def equal(value):
    def check(tensor):
        assert torch.equal(tensor, torch.full_like(tensor, value))

    return check


def in_pytorchs_way(tensor, divisor=1.0):
    uniform(1 / math.sqrt(tensor.shape[-1]) / divisor)(tensor)


def in_xaviers_way(tensor):
    fan_out, fan_in = tensor.shape[1:]
    uniform(math.sqrt(6 / (fan_in + fan_out)))(tensor)


def steps(tensor):
    """dt is log-uniform from 0.001 to 0.1."""
    found = F.softplus(tensor.double()).log()
    low, high = math.log(1e-3), math.log(1e-1)
    uniform((high - low) / 2)(found - (low + high) / 2)


def decays(tensor):
    """Mamba-2 draws A from 1 to 16; Mamba-1 has 1, 2, 3, ... in each row."""
    rates = tensor.double().exp()
    if tensor.dim() == 2:
        uniform(7.5)(rates - 8.5)
    else:
        expected = torch.arange(1.0, tensor.shape[2] + 1).double().expand_as(rates)
        assert torch.allclose(rates, expected, rtol=1e-5, atol=0)


def formulas(config):
    """Pattern of names -> check; a tensor takes the first that fits its whole name."""
    inputs = config.patch_values
    patches = {
        r"patches\.(weight|bias)": uniform(1 / math.sqrt(inputs)),
        r"decoder\.mask_token": normal(0.02),
        r"decoder.*\.bias_tables\.\d": normal(0.02),
        r".*\.norm\d?\.weight": equal(1.0),
    }
    if config.encoder.backbone == "transformer":
        return patches | {
            r"patches\.cls_token": normal(1.0),
            r".*\.bias": equal(0.0),
            r"(encoder|decoder)\..*\.(qkv|output|expand|reduce)\.weight": in_xaviers_way,
            r"decoder\.(embedding|prediction)\.weight": in_xaviers_way,
        }
    root = math.sqrt(config.encoder.depth)
    taps = uniform(1 / math.sqrt(config.encoder.convolution))
    mixer = r"encoder\.blocks\.\d+\.mixer\."
    return patches | {
        r"patches\.cls_token": normal(0.02),
        mixer + r"conv1d\.(weight|bias)": taps,
        mixer + r"(dt_bias|dt_proj\.bias)": steps,
        mixer + "A_log": decays,
        mixer + "D": equal(1.0),
        mixer + r"out_proj\.weight": lambda tensor: in_pytorchs_way(tensor, root),
        mixer + r"(in_proj|x_proj|dt_proj)\.weight": in_pytorchs_way,
        r".*\.bias": equal(0.0),
        r"decoder\..*\.(qkv|output)\.weight": in_xaviers_way,
        r"decoder\..*\.reduce\.weight": lambda tensor: in_pytorchs_way(tensor, root),
        r"decoder\..*\.expand\.weight": in_pytorchs_way,
        r"decoder\.(embedding|prediction)\.weight": in_pytorchs_way,
    }


def alike(name):
    """The name of a tensor that is drawn as those of the same name in other blocks and heads."""
    return re.sub(r"\.\d+\b", ".0", name)


def test_every_new_tensor_has_its_formula(new_model):
    together = {}
    for name, tensor in new_model.named_parameters():
        together.setdefault(alike(name), []).append(tensor)
    table = formulas(new_model.config)
    for name, tensors in together.items():
        checks = [check for pattern, check in table.items() if re.fullmatch(pattern, name)]
        assert checks, f"no formula names {name}"
        one_shape = len({tensor.shape for tensor in tensors}) == 1  # but for the bias tables
        try:
            checks[0](torch.stack(tensors) if one_shape else torch.cat(tensors))
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_plain_decoder_is_drawn_too(make_config, backbone):
    model = autoencoder(make_config(7, decoder="plain", backbone=backbone))
    assert all(tensor.isfinite().all() for tensor in model.parameters())
    in_xaviers_way(model.decoder.blocks[0].attention.qkv.weight[None])


# --- seeds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_seed_alone_decides(make_config, backbone):
    config = make_config(2, backbone=backbone)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = MaskedAutoencoder(config)
    torch.set_rng_state(state)
    initialise(one, 0)
    assert torch.equal(torch.get_rng_state(), state)
    again, other = autoencoder(config), autoencoder(config, seed=1)
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.state_dict().items()
    )
    table = formulas(config)
    constant = {name for name, check in table.items() if "equal" in check.__qualname__}
    for name, tensor in one.named_parameters():
        pattern = next(each for each in table if re.fullmatch(each, alike(name)))
        fixed = pattern in constant or (backbone == "mamba1" and name.endswith("A_log"))
        assert torch.equal(tensor, dict(other.named_parameters())[name]) == fixed, name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_encoder_starts_alike_with_a_decoder_and_without(make_config, backbone):
    config = make_config(2, backbone=backbone)
    encoder = GramModel(replace(config, decoder=None))
    initialise(encoder, 0)
    whole = autoencoder(config).state_dict()
    tensors = encoder.state_dict()
    assert {name for name in whole if not name.startswith("decoder.")} <= tensors.keys()
    assert all(torch.equal(whole[n], t) for n, t in tensors.items() if n in whole)
