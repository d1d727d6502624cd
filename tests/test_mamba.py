"""GRAM-M's encoder: golden numbers, plain mixers, precision, causality and new weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from gram_hear.config import Mamba1Config, Mamba2Config
from gram_hear.nn.initialise import initialise
from gram_hear.nn.mae import MaskedAutoencoder
from gram_hear.nn.mamba import MambaEncoder, RMSNorm
from gram_hear.nn.masks import random_mask, split_mask
from gram_hear.nn.state_space import (
    CPU_CHUNK,
    GPU_CHUNK,
    selective_scan,
    selective_scan_sequential,
    ssd,
    ssd_sequential,
)

CONFIGS = {
    "mamba2": Mamba2Config(width=32, depth=3, state=8, head_width=16),
    "mamba1": Mamba1Config(width=32, depth=3, state=4, expansion=3, step_rank=4),
}
BACKBONES = pytest.mark.parametrize("backbone", ["mamba2", "mamba1"])


@pytest.fixture
def random_encoder():
    """Return a function that makes a small encoder, every weight drawn, none at a trivial point."""

    def make(backbone, dtype=torch.float32):
        encoder = MambaEncoder(CONFIGS[backbone])
        initialise(encoder, 0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in encoder.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.2 * noise)
        return encoder.to(dtype)

    return make


def cosine(one, other):
    return F.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0).item()


# --- golden numbers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_encoder(golden_path):
    """Return a function that loads the authors' shrunk Mamba-2 stack in a type."""

    def load(dtype):
        tensors = {}
        for name, tensor in load_file(golden_path("mamba2_stack.safetensors")).items():
            name = name.removeprefix("encoder_v.").replace("layers.", "blocks.")
            tensors[name.replace("norm_f.", "norm.")] = tensor
        encoder = MambaEncoder(Mamba2Config(width=64, depth=3))
        encoder.load_state_dict(tensors)
        return encoder.eval().to(dtype)

    return load


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["201", "57", "small_57"])
def test_stack_is_golden(golden, golden_encoder, case, dtype):
    stored = golden("mamba2_stack.npz")
    with torch.no_grad():
        found = golden_encoder(dtype)(torch.from_numpy(stored[f"x_{case}"]).to(dtype))
    expected = torch.from_numpy(stored[f"y_{case}"]).to(dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [CPU_CHUNK, GPU_CHUNK])
def test_stack_is_golden_with_the_chunk_of_either_device(
    golden, golden_encoder, monkeypatch, chunk
):
    stored = golden("mamba2_stack.npz")
    monkeypatch.setattr("gram_hear.nn.mamba.ssd", lambda *inputs: ssd(*inputs, chunk=chunk))
    with torch.no_grad():
        found = golden_encoder(torch.float32)(torch.from_numpy(stored["x_201"]))
    torch.testing.assert_close(found, torch.from_numpy(stored["y_201"]), rtol=0, atol=1e-5)


# --- plain references -----------------------------------------------------------------------


def plain_convolution(convolution, tokens):
    """PyTorch's own depthwise convolution, padded at the front, then SiLU."""
    channels, _, taps = convolution.weight.shape
    padded = F.pad(tokens.transpose(1, 2), (taps - 1, 0))
    mixed = F.conv1d(padded, convolution.weight, convolution.bias, groups=channels)
    return (mixed * torch.sigmoid(mixed)).transpose(1, 2)


def plain_norm(weight, tokens):
    return tokens / (tokens.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight


def plain_mamba2(mixer, config, tokens):
    inner, state = config.expansion * config.width, config.state
    projected = tokens @ mixer.in_proj.weight.T
    z, xbc, dt = projected.split([inner, inner + 2 * state, inner // config.head_width], dim=-1)
    x, b, c = plain_convolution(mixer.conv1d, xbc).split([inner, state, state], dim=-1)
    y = ssd_sequential(
        x.unflatten(-1, (-1, config.head_width)),
        torch.log1p(torch.exp(dt + mixer.dt_bias)),
        -torch.exp(mixer.A_log),
        b,
        c,
        mixer.D,
    )
    gated = plain_norm(mixer.norm.weight, y.flatten(2) * z * torch.sigmoid(z))
    return gated @ mixer.out_proj.weight.T


def plain_mamba1(mixer, config, tokens):
    inner, state, rank = config.expansion * config.width, config.state, config.step_rank
    x, z = (tokens @ mixer.in_proj.weight.T).split([inner, inner], dim=-1)
    x = plain_convolution(mixer.conv1d, x)
    low, b, c = (x @ mixer.x_proj.weight.T).split([rank, state, state], dim=-1)
    dt = low @ mixer.dt_proj.weight.T + mixer.dt_proj.bias
    y = selective_scan_sequential(
        x, torch.log1p(torch.exp(dt)), -torch.exp(mixer.A_log), b, c, mixer.D
    )
    return (y * z * torch.sigmoid(z)) @ mixer.out_proj.weight.T


PLAIN = {"mamba2": plain_mamba2, "mamba1": plain_mamba1}


@BACKBONES
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 70])
def test_mixer_and_its_gradients_equal_the_plain_reference(random_encoder, noise, backbone, tokens):
    mixer = random_encoder(backbone, torch.float64).blocks[1].mixer
    inputs = noise(2, tokens, 32).double().requires_grad_()
    leaves = [inputs, *mixer.parameters()]
    found = mixer(inputs)
    expected = PLAIN[backbone](mixer, CONFIGS[backbone], inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    weights = noise(*found.shape, seed=3).double()
    gradients = torch.autograd.grad((found * weights).sum(), leaves)
    plain_gradients = torch.autograd.grad((expected * weights).sum(), leaves)
    names = ["inputs", *(name for name, _ in mixer.named_parameters())]
    for name, one, other in zip(names, gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=name)


@BACKBONES
@pytest.mark.parametrize("taps", [1, 2, 6])
def test_any_number_of_taps(noise, backbone, taps):
    kind = Mamba2Config if backbone == "mamba2" else Mamba1Config
    config = kind(
        width=16,
        depth=1,
        state=4,
        convolution=taps,
        **({"head_width": 8} if backbone == "mamba2" else {"step_rank": 2}),
    )
    encoder = MambaEncoder(config).double()
    initialise(encoder, 0)
    mixer, inputs = encoder.blocks[0].mixer, noise(2, 9, 16).double()
    expected = PLAIN[backbone](mixer, config, inputs)
    torch.testing.assert_close(mixer(inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 3e-3])  # 3e-3: the mean square is near the epsilon
def test_norm_equals_the_plain_reference(noise, scale):
    norm = RMSNorm(24).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    tokens = (scale * noise(2, 5, 24).double()).requires_grad_()
    found, expected = norm(tokens), plain_norm(norm.weight, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    leaves = [tokens, norm.weight]
    gradients = torch.autograd.grad(found.sum(), leaves, retain_graph=True)
    for one, other in zip(gradients, torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_norm_of_zeros_is_zero_and_has_a_finite_gradient():
    norm = RMSNorm(8)
    torch.nn.init.ones_(norm.weight)
    tokens = torch.zeros(2, 8, requires_grad=True)
    found = norm(tokens)
    found.sum().backward()
    assert found.eq(0).all()
    torch.testing.assert_close(tokens.grad, torch.full((2, 8), 1e-5**-0.5))


# --- the encoder ----------------------------------------------------------------------------


@BACKBONES
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layer_k_is_k_blocks_then_the_final_norm(random_encoder, noise, backbone, layer):
    encoder, tokens = random_encoder(backbone, torch.float64), noise(2, 9, 32).double()
    expected = tokens
    for block in encoder.blocks[:layer]:
        mixed = plain_norm(block.norm.weight, expected)
        expected = expected + PLAIN[backbone](block.mixer, CONFIGS[backbone], mixed)
    expected = plain_norm(encoder.norm.weight, expected)
    torch.testing.assert_close(encoder(tokens, layer), expected, rtol=0, atol=1e-9)
    assert torch.equal(encoder(tokens), encoder(tokens, 3))


@BACKBONES
def test_encoder_is_causal_and_cls_sees_nothing(random_encoder, noise, backbone):
    encoder, tokens = random_encoder(backbone, torch.float64), noise(1, 80, 32).double()
    changed = tokens.clone()
    changed[:, 50:] = noise(1, 30, 32, seed=1).double()
    one, other = encoder(tokens), encoder(changed)
    torch.testing.assert_close(one[:, :50], other[:, :50], rtol=0, atol=1e-11)
    assert (one - other)[:, 50:].abs().amax(dim=-1).gt(1e-3).all()
    cls_alone = encoder(tokens[:, :1])
    torch.testing.assert_close(one[:, :1], cls_alone, rtol=0, atol=1e-11)


@BACKBONES
def test_encoder_repeats_itself_bit_for_bit(random_encoder, noise, backbone):
    encoder, tokens = random_encoder(backbone), noise(2, 80, 32)
    before = tokens.clone()
    with torch.no_grad():
        one, other = encoder(tokens), encoder(tokens)
    assert torch.equal(one, other)
    assert torch.equal(tokens, before)  # nothing is written into the input
    torch.testing.assert_close(encoder(tokens), one, rtol=0, atol=1e-5)  # with gradients


# --- precision ------------------------------------------------------------------------------


@BACKBONES
def test_bfloat16_weights_are_near_float32(random_encoder, noise, backbone):
    encoder, tokens = random_encoder(backbone), noise(2, 201, 32)
    with torch.no_grad():
        expected = encoder(tokens)
        found = encoder.bfloat16()(tokens.bfloat16())
    assert found.dtype == torch.bfloat16
    assert cosine(found, expected) > 0.999


@BACKBONES
def test_autocast_is_near_float32_and_keeps_the_scan_in_float32(
    random_encoder, noise, backbone, monkeypatch
):
    encoder, tokens = random_encoder(backbone), noise(2, 201, 32)
    scan = {"mamba2": "ssd", "mamba1": "selective_scan"}[backbone]
    original = {"mamba2": ssd, "mamba1": selective_scan}[backbone]
    seen = []

    def watched(*inputs):
        y = original(*inputs)
        seen.append({each.dtype for each in (*inputs, y)})
        seen.append({"autocast": torch.is_autocast_enabled("cpu")})
        return y

    monkeypatch.setattr(f"gram_hear.nn.mamba.{scan}", watched)
    with torch.no_grad():
        expected = encoder(tokens)
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(tokens)
    assert cosine(found, expected) > 0.999
    assert seen == [{torch.float32}, {"autocast": False}] * 3


@BACKBONES
def test_gradients_under_autocast_are_near_float32(random_encoder, noise, backbone):
    encoder, tokens = random_encoder(backbone), noise(2, 90, 32)
    weights = noise(2, 90, 32, seed=4)
    gradients = []
    for enabled in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = (encoder(tokens).float() * weights).sum()
        loss.backward()
        gradients.append(torch.cat([each.grad.flatten() for each in encoder.parameters()]))
    assert cosine(*gradients) > 0.99


@BACKBONES
def test_residual_stays_in_float32_whatever_the_weights(random_encoder, noise, backbone):
    encoder = random_encoder(backbone).bfloat16()
    seen = []
    for norm in (*(block.norm for block in encoder.blocks), encoder.norm):
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(noise(1, 20, 32).bfloat16())
    assert [each.dtype for each in seen] == [torch.float32] * 4
    residual = seen[-1]
    assert not torch.equal(residual, residual.bfloat16().float())  # it holds more than bfloat16


# --- compiled -------------------------------------------------------------------------------


@pytest.mark.slow
@BACKBONES
def test_encoder_compiles_as_one_graph(random_encoder, noise, backbone):
    encoder = random_encoder(backbone)
    encoder.blocks = encoder.blocks[:1]
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    tokens = noise(2, 40, 32)
    results = []
    for each in (encoder, compiled):
        encoder.zero_grad()
        y = each(tokens)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in encoder.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# --- pretraining ----------------------------------------------------------------------------


@BACKBONES
@pytest.mark.parametrize(
    ("channels", "patching"),
    [(1, "frame"), (2, "frame"), (7, "frame"), (1, "time"), (2, "time"), (7, "time")],
)
def test_masked_autoencoder_learns(make_config, noise, backbone, channels, patching):
    config = make_config(channels, patching, backbone=backbone)
    model = MaskedAutoencoder(config)
    initialise(model, 0)
    mask = random_mask(3, config.tokens, config.tokens * 4 // 5, torch.Generator().manual_seed(0))
    features = noise(3, channels, 200, 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    before = model(features, *split_mask(mask)).loss
    before.backward()
    assert before.isfinite()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    assert all(p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    with torch.no_grad():
        after = model(features, *split_mask(mask)).loss
    assert after < before


@BACKBONES
def test_masked_autoencoder_runs_under_autocast(make_config, noise, backbone):
    config = make_config(2, backbone=backbone)
    model = MaskedAutoencoder(config)
    initialise(model, 0)
    mask = random_mask(2, config.tokens, 160, torch.Generator().manual_seed(0))
    features = noise(2, 2, 200, 128)
    expected = model(features, *split_mask(mask)).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = model(features, *split_mask(mask)).loss
    found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())
