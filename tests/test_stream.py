"""Windows of a clip that arrives in blocks: those of the whole clip, in bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

KINDS = [(channels, patching) for channels in (1, 2, 7) for patching in ("frame", "time")]
AUDIO_CHANNELS = {1: 1, 2: 2, 7: 4}
WINDOW, FRAME, HOP = 64000, 1024, 320
EDGES = [
    *(1, 2, 159, 160, 319, 320, 511, 512, 513, 514, 1023, 1024, 1025),
    # The second window begins; the reflected end still reaches into the first; both are whole.
    *(63679, 63680, 63999, 64000, 64001, 64191, 64192, 64193, 64511, 64512, 64513),
    *(65119, 65120, 65121, 127679, 128000, 128191, 128192, 128512, 128513),
    # With time patches two windows are left at the end, of which the last is moved.
    *(64160, 128160),
]


@pytest.fixture(scope="module")
def models(small_model):
    """Return a function: the kept model of (channels, patching, parity, strategy, fill)."""
    kept = {}

    def model(channels, patching="frame", parity=False, strategy="raw", fill=None):
        key = (channels, patching, parity, strategy, fill)
        if key not in kept:
            kept[key] = small_model(
                channels, patching, parity=parity, strategy=strategy, window_fill=fill
            )
        return kept[key]

    return model


def sound(channels, samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(channels, samples, generator=generator) * 2 - 1


def of_blocks(model, clip, length):
    """The windows of the clip pushed in blocks, and the most samples that were held."""
    stream = model.stream()
    windows, held = [], 0
    for block in clip.split(length, dim=-1):
        windows.append(stream.push(model.lay_out(block)))
        held = max(held, stream._held.shape[-1])
    windows.append(stream.finish())
    assert stream.samples == clip.shape[-1]
    return torch.cat(windows), held


def of_the_whole(model, clip):
    padded = model._pad_short(model.lay_out(clip))
    starts = model.plan(clip.shape[-1]).window_starts()
    return model.gram.windows_of(padded[None], starts, model.window_fill)


def assert_same(model, clip, length):
    whole = of_the_whole(model, clip)
    streamed, _ = of_blocks(model, clip, length)
    assert streamed.shape == whole.shape
    assert streamed.dtype == whole.dtype
    # The log-mels go down to -16; blocks of other lengths round the matrix product differently.
    torch.testing.assert_close(streamed, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("patching", ["frame", "time"])
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("samples", EDGES)
def test_edges_in_blocks_of_any_length_are_as_in_the_whole_clip(models, samples, parity, patching):
    clip = sound(2, samples)
    for length in {max(1, samples // 3), 10000, 320000}:
        assert_same(models(2, patching, parity), clip, length)


@pytest.mark.parametrize("fill", ["mirror", "silence", "zero"])
@pytest.mark.parametrize("samples", [700, 50000, 150001])
def test_every_fill_is_that_of_the_whole_clip(models, samples, fill):
    """The default, repeat, has all the other tests."""
    assert_same(models(2, fill=fill), sound(2, samples), 10000)


@pytest.mark.parametrize("length", [1, 7, 513])
@pytest.mark.parametrize("samples", [1, 512, 513, 1024, 2000])
def test_blocks_of_few_samples_are_enough(models, samples, length):
    assert_same(models(2), sound(2, samples), length)


@pytest.mark.parametrize("per_window", [False, True])
@pytest.mark.parametrize(("channels", "patching"), KINDS)
def test_every_kind_of_model_under_both_rules(models, channels, patching, per_window):
    strategy = "sum" if per_window else "raw"
    for parity in (True,) if per_window else (False, True):
        model = models(channels, patching, parity, strategy)
        for samples in (700, 63999, 64192, 200000):
            assert_same(model, sound(AUDIO_CHANNELS[channels], samples), 50001)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    parity=st.booleans(),
    samples=st.one_of(
        st.integers(1, 3000),
        st.integers(60000, 68000),
        st.integers(1, 330000),
        st.sampled_from(EDGES),
    ),
    blocks=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_any_length_in_any_blocks(models, kind, parity, samples, blocks, seed):
    channels, patching = kind
    clip = sound(AUDIO_CHANNELS[channels], samples, seed)
    assert_same(models(channels, patching, parity), clip, -(-samples // blocks))


@pytest.mark.parametrize("length", [HOP, 10000, 64000, 320000])
def test_what_is_held_does_not_grow_with_the_clip(models, length):
    minutes = sound(1, 60 * 32000).repeat(1, 2)
    model = models(1)
    held = [of_blocks(model, minutes[:, :samples], length)[1] for samples in (640000, 3840000)]
    # A block, a window and the one before it, and the halves of first and last frame.
    assert max(held) <= length + 2 * WINDOW + 2 * FRAME
    assert held[1] <= held[0] + FRAME


def test_what_is_held_owns_its_memory(models):
    """A view of the last window would keep the whole block alive."""
    stream = models(1).stream()
    stream.push(sound(1, 320000))
    held = stream._held
    assert held.untyped_storage().nbytes() == held.numel() * held.element_size()


def test_windows_come_as_soon_as_all_their_frames_are_known(models):
    stream = models(1).stream()
    clip = sound(1, 2 * WINDOW)
    # Frame 199 is centred at 63680 and reaches 512 samples further.
    assert len(stream.push(clip[:, :64191])) == 0
    assert len(stream.push(clip[:, 64191:64192])) == 1
    assert len(stream.push(clip[:, 64192:])) == 0
    assert len(stream.finish()) == 1


def test_the_end_before_any_sound_is_a_mistake_that_says_so(models):
    with pytest.raises(AssertionError, match="finish\\(\\) before any push"):
        models(1).stream().finish()
