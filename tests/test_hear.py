"""The HEAR API: its protocol, its values against a slow plain path, and bad input."""

import copy
import json
import math
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.masked import masked_tensor

import gram_hear
from gram_hear import get_scene_embeddings, get_timestamp_embeddings
from gram_hear.checkpoints.store import load_checkpoint, save_checkpoint
from gram_hear.config import named_config
from gram_hear.errors import AudioError, CheckpointError, OptionError
from gram_hear.model import GramModel
from gram_hear.nn.initialise import initialise
from gram_hear.windows import FILLS

KINDS = [(channels, patching) for channels in (1, 2, 7) for patching in ("frame", "time")]
AUDIO_CHANNELS = {1: 1, 2: 2, 7: 4}
STRATEGIES = ("raw", "mean", "cls")
BACKBONES = ("transformer", "mamba2", "mamba1")
MAMBAS = ("mamba2", "mamba1")
EMBEDDERS = [
    *(("transformer", strategy) for strategy in STRATEGIES),
    *((backbone, strategy) for backbone in MAMBAS for strategy in ("raw", "mean")),
]
RATE = 32000


@pytest.fixture(scope="session")
def model_of(published_file, tmp_path_factory):
    """Return a function: a random small model (channels, patching, backbone, **options)."""
    files, models = {}, {}  # kept

    def file(*kind):
        if kind not in files:
            channels, patching, backbone = kind
            checkpoint = load_checkpoint(published_file(channels, patching, backbone=backbone))
            path = tmp_path_factory.mktemp("models") / "model.safetensors"
            files[kind] = save_checkpoint(checkpoint, path)
        return files[kind]

    def model(channels, patching="frame", backbone="transformer", **options):
        key = (channels, patching, backbone, *sorted(options.items()))
        if key not in models:
            models[key] = gram_hear.load_model(file(channels, patching, backbone), **options)
        return models[key]

    return model


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    """Return a function: the file of a random model of the named tiny size, kept."""
    folder, files = tmp_path_factory.mktemp("tiny"), {}

    def file(channels, patching, backbone="transformer"):
        path = folder / f"{channels}-{patching}-{backbone}.safetensors"
        if path not in files:
            model = GramModel(named_config("tiny", channels, patching, backbone))
            initialise(model, seed=1)
            files[path] = gram_hear.save_model(model, path)
        return files[path]

    return file


def assert_close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# --- the protocol, as hear-validator checks it ----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "strategy"), EMBEDDERS)
@pytest.mark.parametrize(("channels", "patching"), KINDS)
def test_the_hear_protocol(channels, patching, backbone, strategy, tiny_files, noise):
    """One block is enough, but for raw rows of GRAM-T; the next test runs all 24 of GRAM-M."""
    file = tiny_files(channels, patching, backbone)
    layer = None if (backbone, strategy) == ("transformer", "raw") else 1
    model = gram_hear.load_model(file, strategy=strategy, layer=layer)
    assert model.sample_rate == RATE
    for size in (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size):
        assert type(size) is int
    frequency_patches = 8 if patching == "frame" else 1
    assert model.timestamp_embedding_size == 192 * (frequency_patches if strategy == "raw" else 1)
    assert model.multichannel == "channels_first"
    hop = 80 if patching == "frame" else 20
    assert model.hop_ms == hop
    for seconds in (1.07, 1.98, 2.74, 4.0):
        audio = noise(2, int(seconds * RATE))
        embeddings, timestamps = get_timestamp_embeddings(audio, model)
        scenes = get_scene_embeddings(audio, model)
        assert embeddings.dtype == timestamps.dtype == scenes.dtype == torch.float32
        assert embeddings.device == timestamps.device == scenes.device == torch.device("cpu")
        assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
        assert scenes.shape == (2, model.scene_embedding_size)
        assert embeddings.isfinite().all()
        assert scenes.isfinite().all()
        assert torch.equal(timestamps[0], timestamps[1])
        assert_close(timestamps.diff(), torch.full_like(timestamps[:, 1:], hop), 1e-3)
        first, last, duration = *timestamps[0, [0, -1]].tolist(), 1000 * seconds
        assert first == (hop - 10) / 2  # the centre of the first row's frames, 10 ms apart
        assert duration - hop < last <= duration


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "patching"), [("mamba2", "frame"), ("mamba1", "time")])
def test_all_blocks_of_gram_m_embed(backbone, patching, tiny_files, noise):
    file, audio = tiny_files(2, patching, backbone), noise(2, RATE)
    whole, before = (
        get_scene_embeddings(audio, gram_hear.load_model(file, layer=layer)) for layer in (None, 23)
    )
    assert whole.isfinite().all()
    assert not torch.equal(whole, before)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)  # two sounds, two embeddings
    with pytest.raises(OptionError, match="layer is 25; this model has layers 1 to 24"):
        gram_hear.load_model(file, layer=25)


# --- shapes and inputs ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "patching"), KINDS)
def test_shapes_of_batches_and_lists(channels, patching, model_of, noise):
    model = model_of(channels, patching)
    d = model.timestamp_embedding_size
    rows = {"frame": 13, "time": 50}[patching]
    for audio in (noise(3, RATE), noise(3, 1, RATE), noise(3, AUDIO_CHANNELS[channels], RATE)):
        embeddings, timestamps = get_timestamp_embeddings(audio, model)
        assert (embeddings.shape, timestamps.shape) == ((3, rows, d), (3, rows))
        assert get_scene_embeddings(audio, model).shape == (3, d)
        assert model(audio).shape == (3, rows, d)
    clips = [noise(RATE), noise(AUDIO_CHANNELS[channels], 2 * RATE), noise(1, RATE)]
    embeddings, timestamps = get_timestamp_embeddings(clips, model)
    assert isinstance(embeddings, list)
    assert isinstance(timestamps, list)
    assert [each.shape for each in embeddings] == [(rows, d), (rows * 2 - rows % 2, d), (rows, d)]
    assert [len(each) for each in timestamps] == [len(each) for each in embeddings]
    assert get_scene_embeddings(clips, model).shape == (3, d)
    assert isinstance(model(clips), list)


@pytest.mark.parametrize("form", [list, tuple])
def test_equal_clips_in_a_list_stay_a_list(form, model_of, noise):
    audio = noise(2, 2, 30000)
    batch, times = get_timestamp_embeddings(audio, model_of(2))
    rows, row_times = get_timestamp_embeddings(form(audio), model_of(2))
    assert isinstance(rows, list)
    assert isinstance(row_times, list)
    assert torch.equal(torch.stack(rows), batch)
    assert torch.equal(torch.stack(row_times), times)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def every_second(array):
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: torch.from_numpy(a),
        lambda a: torch.from_numpy(a).double(),
        lambda a: torch.from_numpy(a).mT.contiguous().mT,
        lambda a: torch.from_numpy(a).requires_grad_(),
        lambda a: a.astype(np.float64),
        lambda a: a.astype(">f4"),
        lambda a: a.astype(">f8"),
        read_only,
        every_second,
        np.asfortranarray,
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: a[:, ::-1].copy()[:, ::-1],
        lambda a: np.ascontiguousarray(a.transpose(2, 1, 0)).transpose(2, 1, 0),
        list,
        lambda a: [torch.from_numpy(a[0]).double(), a[1].astype(">f4")],
    ],
)
def test_every_form_of_the_same_audio_embeds_the_same(change, model_of, noise):
    audio = noise(2, 2, 20000).numpy()
    expected = get_scene_embeddings(audio, model_of(2))
    given_audio = change(audio)
    assert torch.equal(get_scene_embeddings(given_audio, model_of(2)), expected)
    embeddings, _ = get_timestamp_embeddings(given_audio, model_of(2))
    assert not embeddings[0].requires_grad


def test_the_audio_is_left_as_it_was(model_of, noise):
    audio = noise(2, 4, 700)
    before = audio.clone()
    get_timestamp_embeddings(audio, model_of(7))
    assert torch.equal(audio, before)


# --- values ---------------------------------------------------------------------------------


def slow_rows(model, clip, fill):
    """The corrected rule in plain steps: one clip (channels, samples) in the model's layout."""
    gram, config, strategy = model.gram, model.config, model.options.strategy
    samples = clip.shape[-1]
    if samples < 1024:
        clip = torch.cat([clip, torch.zeros(len(clip), 1024 - samples)], dim=1)
    features = gram.front_end(clip[None])[0]
    p = config.patch.frames
    per_window = 200 // p
    kept = 0
    while (kept * p + (p - 1) / 2) * 320 <= samples:
        kept += 1
    kept = max(kept, 1)
    rows = []
    for first in range(0, kept * p, 200):
        first = max(0, min(first, kept * p - 200))  # the last window hears the clip's end
        window = torch.zeros(len(features), 200, 128)
        if fill == "silence":
            window[: clip.shape[0]] = math.log(config.front_end.log_floor)
        part = features[:, first : first + 200]
        window[:, : part.shape[1]] = part
        own = part.shape[1]
        for frame in range(own, 200):
            if fill == "repeat" and first == 0:
                window[:, frame] = window[:, frame - own]
            elif fill in ("repeat", "mirror"):  # of a later window a few frames lack
                turn = max(1, 2 * (own - 1))
                window[:, frame] = window[:, min(frame % turn, turn - frame % turn)]
        tokens = gram(window[None], model.options.layer)[0]
        for t in range(len(rows) - first // p, per_window):  # rows that no window had yet
            patches = [tokens[1 + f * per_window + t] for f in range(config.frequency_patches)]
            if strategy == "raw":
                rows.append(torch.cat(patches))
            elif strategy == "mean":
                rows.append(sum(patches) / len(patches))
            else:
                rows.append(tokens[0])
    return torch.stack(rows[:kept])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "strategy", "fill"),
    [
        *((*embedder, "repeat") for embedder in EMBEDDERS),
        *(("transformer", "raw", fill) for fill in ("mirror", "silence", "zero")),
    ],
)
@pytest.mark.parametrize(("channels", "patching"), KINDS)
@torch.no_grad()
def test_values_follow_the_slow_path(channels, patching, backbone, strategy, fill, model_of, noise):
    model = model_of(
        channels, patching, backbone, strategy=strategy, window_fill=fill, convention="soundspaces"
    )
    clips = [noise(AUDIO_CHANNELS[channels], n) for n in (900, 40000, 64000, 65440, 150001)]
    rows, _ = get_timestamp_embeddings(clips, model)
    scenes = get_scene_embeddings(clips, model)
    for clip, found, scene in zip(clips, rows, scenes, strict=True):
        expected = slow_rows(model, clip, fill)
        assert_close(found, expected)
        assert_close(scene, expected.mean(dim=0))


def test_a_scene_may_hold_the_deviation_of_its_rows(model_of, noise):
    plain, spread = model_of(2), model_of(2, scene="mean_std")
    assert spread.scene_embedding_size == 2 * spread.timestamp_embedding_size
    clips = [noise(1, 2, 90000)[0], noise(1, 1, 900)[0, 0]]  # the latter has a single row
    rows, _ = get_timestamp_embeddings(clips, spread)
    found = get_scene_embeddings(clips, spread)
    assert found.shape == (2, spread.scene_embedding_size)
    mean, deviation = found.chunk(2, dim=1)
    assert torch.equal(mean, get_scene_embeddings(clips, plain))
    expected = rows[0].double().numpy().std(axis=0)
    assert np.abs(deviation[0].numpy() - expected).max() < 1e-6 * expected.max()
    assert deviation[1].eq(0).all()


def test_the_fill_matters_only_past_the_clip(model_of, noise):
    models = [model_of(2, window_fill=fill) for fill in FILLS]
    short = [get_scene_embeddings(noise(1, 2, 50000), model) for model in models]
    for one, other in combinations(short, 2):
        assert (one - other).abs().max() > 1e-3
    whole = noise(1, 2, 63999)  # 200 frames: nothing to fill
    first, *others = (get_scene_embeddings(whole, model) for model in models)
    assert all(torch.equal(first, other) for other in others)


def test_a_short_clip_is_repeated_unless_something_else_is_asked_for(model_of, noise):
    """A whole number of frames, so that the clip again has the same frames but at its ends."""
    clip = noise(1, 2, 320 * 100)
    found = get_scene_embeddings(clip, model_of(2))
    assert torch.equal(found, get_scene_embeddings(clip, model_of(2, window_fill="repeat")))
    rows, _ = get_timestamp_embeddings(torch.cat([clip, clip], dim=2), model_of(2))
    assert torch.nn.functional.cosine_similarity(found, rows[:, :13].mean(dim=1)) > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_fill": "repeet"}, "Did you mean 'repeat'"),
        ({"scene": "mean_sd"}, "Did you mean 'mean_std'"),
        ({"scene": "mean_std", "parity": True}, "parity=True .* scene is 'mean_std'"),
        ({"window_fill": "silence", "parity": True}, "Leave one of the two out"),
    ],
)
def test_a_fill_that_cannot_be_is_an_error(model_of, options, message):
    with pytest.raises(OptionError, match=message):
        model_of(2, **options)


@pytest.mark.parametrize("samples", [96000, 150000, 64700])
def test_the_last_row_of_a_longer_clip_hears_what_is_near_it_alone(samples, model_of, noise):
    """Were its half row filled with its window's start, a burst there would be heard again."""
    model = model_of(2)
    starts = model.plan(samples).window_starts()
    first = starts[-1] * 320
    quiet = 1e-3 * noise(1, 2, samples)
    burst = quiet.clone()
    burst[..., first : first + 1200] += noise(1, 2, 1200, seed=1)
    of_quiet, of_burst = (
        model.gram.windows_of(clip, starts, model.window_fill)[-1] for clip in (quiet, burst)
    )
    assert torch.equal(of_quiet[:, -20:], of_burst[:, -20:])
    assert not torch.equal(of_quiet[:, :20], of_burst[:, :20])


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_silence_after_a_clip_is_what_fills_it(channels, model_of, noise):
    model = model_of(channels, window_fill="silence")
    clip = noise(1, AUDIO_CHANNELS[channels], 40000)
    clip[..., -1600:] = 0
    longer = torch.nn.functional.pad(clip, (0, 15000))
    rows, _ = get_timestamp_embeddings(clip, model)
    assert_close(get_timestamp_embeddings(longer, model)[0][:, : rows.shape[1]], rows)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_earlier_layer_is_a_model_of_so_many_layers(
    backbone, published_tensors, model_of, noise, tmp_path
):
    tensors = published_tensors(2, backbone=backbone)
    second = ("encoder.layers.encoder_layer_1.", "encoder_v.layers.1.")
    tensors = {name: t for name, t in tensors.items() if not name.startswith(second)}
    torch.save(tensors, tmp_path / "one_layer.pt")
    shallow = gram_hear.load_model(tmp_path / "one_layer.pt")
    assert shallow.config.encoder.depth == 1
    audio = noise(1, 30000)
    first, last = (
        get_scene_embeddings(audio, model_of(2, backbone=backbone, layer=k)) for k in (1, 2)
    )
    assert torch.equal(first, get_scene_embeddings(audio, shallow))
    assert torch.equal(last, get_scene_embeddings(audio, model_of(2, backbone=backbone)))
    assert not torch.equal(first, last)


# --- layouts reach the model ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "given", "expected"),
    [
        (2, 1, lambda mono: mono.expand(-1, 2, -1)),  # heard by both ears
        (1, 2, lambda ears: ears.mean(dim=1)),
        (1, 4, lambda foa: foa[:, 0]),  # the omnidirectional channel
    ],
)
def test_other_layouts_are_brought_to_the_models(channels, given, expected, model_of, noise):
    audio, model = noise(2, given, 30000), model_of(channels)
    found = get_scene_embeddings(audio, model)
    assert torch.equal(found, get_scene_embeddings(expected(audio), model))


def test_mono_is_the_omnidirectional_channel(model_of, noise):
    mono = noise(2, 30000)
    w_alone = torch.nn.functional.pad(mono[:, None], (0, 0, 0, 3))
    in_all = mono[:, None].expand(-1, 4, -1)
    for parity, expected in ((False, w_alone), (True, in_all)):
        model = model_of(7, convention="soundspaces", parity=parity)
        found = get_scene_embeddings(mono, model)
        assert torch.equal(found, get_scene_embeddings(expected, model))


def test_a_binaural_model_hears_the_omnidirectional_channel_and_warns(model_of, noise):
    foa = noise(2, 4, 30000)
    expected = get_scene_embeddings(foa[:, 0], model_of(2))
    with pytest.warns(UserWarning, match="Ambisonic"):
        found = get_scene_embeddings(foa, model_of(2))
    assert torch.equal(found, expected)


def test_two_ears_are_no_sound_field(model_of, noise):
    with pytest.raises(AudioError, match="Binaural audio"):
        get_scene_embeddings(noise(1, 2, 30000), model_of(7))


def test_ears_and_directions_matter(model_of, noise):
    ears, foa = noise(1, 2, 30000) * torch.tensor([[1.0], [0.1]]), noise(1, 4, 30000)
    for audio, model in ((ears, model_of(2)), (foa, model_of(7))):
        turned = get_scene_embeddings(audio.flip(1), model)
        assert (turned - get_scene_embeddings(audio, model)).abs().max() > 1e-3


def test_conventions_of_one_sound_field_agree(model_of, noise):
    w, x, y, z = noise(4, 1, 30000)
    forms = {
        "ambix": [w, y, z, x],
        "fuma": [w / math.sqrt(2), x, y, z],
        "soundspaces": [w, math.sqrt(3) * z, -math.sqrt(3) * x, -math.sqrt(3) * y],
    }
    found = {
        convention: get_scene_embeddings(
            torch.stack(form, dim=1), model_of(7, convention=convention)
        )
        for convention, form in forms.items()
    }
    assert_close(found["fuma"], found["ambix"])
    assert_close(found["soundspaces"], found["ambix"])
    unconverted = get_scene_embeddings(
        torch.stack(forms["ambix"], dim=1), model_of(7, convention="soundspaces")
    )
    assert (unconverted - found["ambix"]).abs().max() > 1e-3


# --- parity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "strategy"),
    [
        *(("transformer", strategy) for strategy in ("mean", "sum", "cls")),
        *((backbone, strategy) for backbone in MAMBAS for strategy in ("mean", "sum")),
    ],
)
@pytest.mark.parametrize(("seconds", "windows"), [(1.5, 1), (2, 2), (3, 2), (4, 3)])
def test_parity_gives_one_vector_for_each_window(
    backbone, strategy, seconds, windows, model_of, noise
):
    model = model_of(2, backbone=backbone, strategy=strategy, parity=True)
    assert model.timestamp_embedding_size == 64
    embeddings, timestamps = get_timestamp_embeddings(noise(2, int(seconds * RATE)), model)
    assert embeddings.shape == (2, windows, 64)
    expected = torch.arange(windows) * (1000 * seconds / windows)
    assert_close(timestamps, expected.expand(2, -1), 1e-3)
    assert model.hop_ms == 2000


@pytest.mark.parametrize(("patching", "rows"), [("frame", 26), ("time", 101)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_parity_keeps_the_authors_rows(backbone, patching, rows, model_of, noise):
    embeddings, timestamps = get_timestamp_embeddings(
        noise(1, 2 * RATE), model_of(2, patching, backbone=backbone, parity=True)
    )
    assert embeddings.shape[1] == rows
    assert_close(timestamps[0], torch.arange(rows) * (2000 / rows), 1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parity_sums_over_all_tokens(backbone, model_of, noise):
    audio = noise(1, 3 * RATE)
    total, mean = (
        get_timestamp_embeddings(audio, model_of(2, backbone=backbone, strategy=s, parity=True))[0]
        for s in ("sum", "mean")
    )
    assert_close(total / 200, mean)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parity_and_the_corrected_rule_share_their_windows(backbone, model_of, noise):
    audio = noise(1, 2, 50000)
    zero = model_of(2, backbone=backbone, window_fill="zero")
    corrected, _ = get_timestamp_embeddings(audio, zero)
    parity, _ = get_timestamp_embeddings(audio, model_of(2, backbone=backbone, parity=True))
    common = min(corrected.shape[1], parity.shape[1])
    assert_close(corrected[:, :common], parity[:, :common])


# --- short and silent clips -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 100, 512, 513, 1023, 1024, 1119])
@pytest.mark.parametrize(("channels", "patching"), KINDS)
def test_short_clips_embed(channels, patching, samples, parity, model_of, noise):
    model = model_of(channels, patching, parity=parity)
    audio = noise(2, AUDIO_CHANNELS[channels], samples)
    embeddings, timestamps = get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
    assert embeddings.isfinite().all()
    assert get_scene_embeddings(audio, model).isfinite().all()
    assert (timestamps <= samples / 32).all()


@pytest.mark.parametrize(("patching", "samples"), [("frame", 1119), ("time", 159)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_clip_before_the_first_centre_has_one_row(patching, samples, strategy, model_of, noise):
    model = model_of(2, patching, strategy=strategy)
    for n in (1, samples // 2, samples):
        embeddings, timestamps = get_timestamp_embeddings(noise(1, n), model)
        assert embeddings.shape[1] == 1
        assert float(timestamps) == pytest.approx(n / 64)  # half of n / 32 ms
    _, timestamps = get_timestamp_embeddings(noise(1, samples + 1), model)
    assert timestamps.tolist() == [[{"frame": 35, "time": 5}[patching]]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"parity": True}, *({"window_fill": fill} for fill in FILLS)], ids=str
)
@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_silent_clips_embed(backbone, channels, options, model_of):
    model = model_of(channels, backbone=backbone, **options)
    for samples in (100, 30000, 70000):
        audio = torch.zeros(1, AUDIO_CHANNELS[channels], samples)
        assert get_scene_embeddings(audio, model).isfinite().all()


# --- invariances ----------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 90000), min_size=1, max_size=4)
QUICK = settings(max_examples=12, deadline=None, derandomize=True)


def clips_of(lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.rand(2, n, generator=generator) * 2 - 1 for n in lengths]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@QUICK
@given(lengths=LENGTHS, data=st.data())
def test_neighbours_and_order_change_nothing(backbone, model_of, lengths, data):
    model, clips = model_of(2, backbone=backbone), clips_of(lengths)
    order = data.draw(st.permutations(range(len(clips))))
    together, _ = get_timestamp_embeddings([clips[i] for i in order], model)
    for i, found in zip(order, together, strict=True):
        alone, _ = get_timestamp_embeddings(clips[i][None], model)
        assert_close(found, alone[0])


@pytest.mark.parametrize("backbone", BACKBONES)
@QUICK
@given(lengths=LENGTHS, window_batch=st.sampled_from([1, 2, 3]))
def test_the_window_batch_changes_nothing(backbone, model_of, lengths, window_batch):
    clips = clips_of(lengths)
    few = model_of(2, backbone=backbone, window_batch=window_batch)
    found = get_scene_embeddings(clips, few)
    assert_close(found, get_scene_embeddings(clips, model_of(2, backbone=backbone)))


@QUICK
@given(samples=st.integers(1, 200000), patching=st.sampled_from(["frame", "time"]))
def test_rows_tile_the_clip(model_of, samples, patching):
    timestamps = model_of(1, patching).plan(samples).timestamps()
    hop, duration = {"frame": 80, "time": 20}[patching], samples / 32
    assert (timestamps > 0).all()
    assert (timestamps <= duration).all()
    assert duration - timestamps[-1] < hop
    np.testing.assert_allclose(np.diff(timestamps), hop, atol=1e-2)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_two_runs_are_equal_to_the_bit(backbone, model_of, noise):
    clips = [noise(2, 50000), noise(2, 3000)]
    model = model_of(2, backbone=backbone)
    first, second = (get_scene_embeddings(clips, model) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_mode_changes_nothing(backbone, model_of, noise):
    model, audio = copy.deepcopy(model_of(2, backbone=backbone)), noise(1, 30000)
    expected = get_scene_embeddings(audio, model)
    assert torch.equal(get_scene_embeddings(audio, model.train()), expected)


# --- types ----------------------------------------------------------------------------------


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16", "torch.float16"])
@pytest.mark.parametrize(
    ("backbone", "channels"), [("transformer", 2), ("transformer", 7), ("mamba2", 2), ("mamba1", 2)]
)
def test_half_precision_is_close(backbone, channels, dtype, model_of, noise):
    """Within the type's own rounding: 2^-8 of bfloat16 leaves cosines above 0.9995."""
    audio = noise(2, 4, 50000) if channels == 7 else noise(2, 2, 50000)
    half = model_of(channels, backbone=backbone, dtype=dtype)
    expected, _ = get_timestamp_embeddings(audio, model_of(channels, backbone=backbone))
    found, timestamps = get_timestamp_embeddings(audio, half)
    assert found.dtype == timestamps.dtype == torch.float32
    assert cosine(found, expected).min() > 0.9995
    assert (found - expected).abs().max() < 0.1
    assert get_scene_embeddings(audio, half).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("backbone", "channels"), [("transformer", 2), ("transformer", 7), ("mamba2", 2), ("mamba1", 2)]
)
def test_a_cast_model_still_embeds(dtype, backbone, channels, model_of, noise):
    model = copy.deepcopy(model_of(channels, backbone=backbone)).to(dtype)
    audio = noise(2, 1, 70000)
    found, timestamps = get_timestamp_embeddings(audio, model)
    expected, times = get_timestamp_embeddings(audio, model_of(channels, backbone=backbone))
    assert found.dtype == torch.float32
    assert torch.equal(timestamps, times)
    assert_close(found, expected, 1e-5 if dtype == torch.float64 else 0.1)
    restored = get_timestamp_embeddings(audio, model.float())[0]
    assert_close(restored, expected, 1e-5 if dtype == torch.float64 else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("channels", "patching"), KINDS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_autocast_around_the_call_changes_nothing(
    backbone, channels, patching, dtype, model_of, noise
):
    audio = noise(1, AUDIO_CHANNELS[channels], 70000)
    model = model_of(channels, patching, backbone=backbone, dtype=dtype)
    plain, rows = get_scene_embeddings(audio, model), model(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(get_scene_embeddings(audio, model), plain)
        assert torch.equal(model(audio), rows)
    assert plain.dtype == torch.float32


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "strategy"), EMBEDDERS)
@pytest.mark.parametrize(("channels", "patching"), KINDS)
def test_gradients_reach_the_audio_and_every_parameter(
    channels, patching, backbone, strategy, model_of, noise
):
    model = copy.deepcopy(model_of(channels, patching, backbone=backbone, strategy=strategy))
    audio = noise(1, AUDIO_CHANNELS[channels], 20000).requires_grad_()
    rows = model(audio)
    direction = noise(rows.shape[-1])  # a plain sum would be constant after the norm
    (rows @ direction).sum().backward()
    assert audio.grad.isfinite().all()
    assert (audio.grad != 0).any(dim=-1).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_gradients_reach_each_clip_of_a_list(model_of, noise):
    clips = [noise(2, n).requires_grad_() for n in (600, 20000)]
    sum(rows.square().sum() for rows in model_of(2, strategy="mean")(clips)).backward()
    for clip in clips:
        assert clip.grad.isfinite().all()
        assert clip.grad.abs().sum() > 0


def test_the_forward_gives_the_timestamp_embeddings(model_of, noise):
    audio = noise(2, 2, 30000)
    rows = model_of(2)(audio)
    assert rows.requires_grad
    assert torch.equal(rows.detach(), get_timestamp_embeddings(audio, model_of(2))[0])


def test_embeddings_are_ordinary_tensors_without_gradients(model_of, noise):
    audio = noise(1, 2, 30000).requires_grad_()
    assert torch.is_grad_enabled()
    embeddings, timestamps = get_timestamp_embeddings(audio, model_of(2))
    scenes = get_scene_embeddings(audio, model_of(2))
    assert torch.is_grad_enabled()
    for tensor in (embeddings, timestamps, scenes):
        assert not tensor.requires_grad
        assert not tensor.is_inference()
    weight = torch.ones(scenes.shape[1], requires_grad=True)
    (scenes @ weight).sum().backward()  # a probe can be trained on them
    assert torch.equal(weight.grad, scenes[0])


# --- bad audio ------------------------------------------------------------------------------


def filled(value):
    audio = torch.zeros(2, 4000)
    audio[1, 3000] = value
    return audio


@pytest.mark.parametrize(
    ("audio", "told"),
    [
        (filled(float("nan")), r"Clip 1 holds NaN or infinite"),
        (filled(float("inf")), r"Clip 1 holds NaN or infinite"),
        (filled(-float("inf")).numpy(), r"Clip 1 holds NaN or infinite"),
        ([torch.zeros(4000), filled(float("nan"))], r"Clip 1 of the list holds NaN"),
        (torch.full((1, 4000), 1e300, dtype=torch.float64), r"infinite"),
        (torch.zeros(2, 0), r"no samples"),
        (torch.zeros(2, 2, 0), r"no samples"),
        ([torch.zeros(4000), np.zeros(0, np.float32)], r"Clip 1 of the list has no samples"),
        ([], r"no clips|empty"),
        ((), r"no clips|empty"),
        (torch.zeros(0, 4000), r"no clips|empty"),
        (torch.zeros(0, 2, 4000), r"no clips|empty"),
        (np.zeros((0, 4000), np.float32), r"no clips|empty"),
        (torch.zeros(4000), r"shape \(4000,\).*audio\[None\]"),
        (torch.zeros(()), r"shape \(\)"),
        (torch.zeros(1, 1, 2, 4000), r"shape \(1, 1, 2, 4000\)"),
        ([torch.zeros(1, 2, 4000)], r"Clip 0 of the list has shape \(1, 2, 4000\)"),
        ([torch.tensor(0.5)], r"Clip 0 of the list has shape \(\)"),
        (torch.zeros(1, 3, 4000), r"3 channels.*allowed are 1 \(mono\), 2 \(binaural\) and 4"),
        (torch.zeros(1, 0, 4000), r"0 channels"),
        (torch.zeros(1, 7, 4000), r"7 channels"),
        (torch.zeros(1, 4000, 2), r"channels seem to come last"),
        (torch.zeros(4000, 2), r"channels of one clip seem to come last"),
        ([np.zeros((4000, 1), np.float32)], r"channels seem to come last"),
        (torch.zeros(1, 4000, dtype=torch.int16), r"int16.*divide it by 32768\.0"),
        (np.zeros((1, 4000), np.int16), r"int16.*divide it by 32768\.0"),
        (np.zeros((1, 4000), ">i2"), r"int16.*divide it by 32768\.0"),
        ([np.zeros(4000, np.int16)], r"int16.*divide it by 32768\.0"),
        (np.zeros((1, 4000), np.int32), r"int32.*divide it by 2147483648\.0"),
        (np.zeros((1, 4000), np.int8), r"int8.*divide it by 128\.0"),
        (np.zeros((1, 4000), np.uint8), r"uint8.*subtract 128 and divide by 128\.0"),
        (np.zeros((1, 4000), np.uint16), r"uint16"),
        (np.zeros((1, 4000), np.int64), r"int64.*\[-1, 1\]"),
        (np.zeros((1, 4000), bool), r"bool.*must be float32 or float64"),
        (torch.zeros(1, 4000, dtype=torch.bool), r"bool.*must be float32 or float64"),
        (np.zeros((1, 4000), np.complex64), r"complex64.*must be float32 or float64"),
        (torch.zeros(1, 4000, dtype=torch.complex64), r"complex64.*must be float32 or float64"),
        (np.zeros((1, 4000), np.float16), r"float16.*must be float32 or float64"),
        (torch.zeros(1, 4000, dtype=torch.bfloat16), r"bfloat16.*must be float32 or float64"),
        (np.zeros((1, 4000), np.longdouble), r"must be float32 or float64"),
        (np.array([["a"]]), r"must be float32 or float64"),
        (np.array([[None]]), r"must be float32 or float64"),
        ("speech.wav", r"a str; it must be a numpy array, a torch tensor"),
        (["speech.wav"], r"a str; it must be a numpy array, a torch tensor"),
        ([0.1, 0.2], r"a float; it must be"),
        ([[0.1, 0.2]], r"a list; it must be"),
        (None, r"a NoneType; it must be"),
        (iter([torch.zeros(4000)]), r"iterator; it must be"),
    ],
)
def test_bad_audio_is_refused(audio, told, model_of):
    for embed in (get_scene_embeddings, get_timestamp_embeddings, lambda a, model: model(a)):
        with pytest.raises(AudioError, match=told):
            embed(audio, model_of(2))


@pytest.mark.filterwarnings("ignore:.* far outside")
@pytest.mark.parametrize("form", [torch.stack, list])
def test_embeddings_that_are_not_finite_are_an_error(form, model_of, noise):
    clips = form([*noise(2, 2, 40000), noise(2, 40000) * 1e18])
    for embed in (get_scene_embeddings, get_timestamp_embeddings, lambda a, model: model(a)):
        with pytest.raises(AudioError, match=r"Clip 2: its embeddings hold NaN .* \[-1, 1\]"):
            embed(clips, model_of(2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_audio_is_refused_with_what_to_do(model_of, noise):
    audio = noise(1, 2, 4000)
    mask = audio > 0
    masked = np.ma.array(audio.numpy(), mask=mask.numpy())
    for array, advice in (
        (masked, r"audio\.filled\(0"),
        ([masked[0]], r"audio\.filled\(0"),
        (masked_tensor(audio, mask), r"audio\.to_tensor\(0"),
    ):
        with pytest.raises(AudioError, match=f"masked.*{advice}"):
            get_scene_embeddings(array, model_of(2))
    silenced = audio.masked_fill(mask, 0.0)
    expected = get_scene_embeddings(silenced, model_of(2))
    assert torch.equal(get_scene_embeddings(masked.filled(0.0), model_of(2)), expected)
    tensor = masked_tensor(audio, ~mask).to_tensor(0.0)
    assert torch.equal(get_scene_embeddings(tensor, model_of(2)), expected)


@pytest.mark.parametrize("peak", [3.0, -32768.0])
def test_audio_far_outside_its_range_warns(peak, model_of):
    with pytest.warns(
        UserWarning, match=r"Clip 1 has samples up to .* outside \[-1, 1\]"
    ) as caught:
        get_scene_embeddings(filled(peak), model_of(2))
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the caller's line, not one of ours


@pytest.mark.parametrize("peak", [1.0, -1.5])
def test_audio_a_little_outside_its_range_does_not_warn(peak, model_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_scene_embeddings(filled(peak), model_of(2))


# --- options --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(model_of):
    """A small binaural model's file."""
    return model_of(2).source.path


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stratgy": "raw"}, r"no option 'stratgy'.*Did you mean 'strategy'"),
        ({"windowbatch": 3}, r"Did you mean 'window_batch'"),
        ({"batch_size": 3}, r"no option 'batch_size'; its options are strategy, scene"),
        ({"strategy": "avg"}, r"Unknown strategy 'avg'; allowed are raw, mean, cls"),
        ({"strategy": "men"}, r"Did you mean 'mean'"),
        ({"strategy": None}, r"strategy"),
        ({"strategy": 3}, r"strategy"),
        ({"strategy": "sum"}, r"'sum' needs parity=True"),
        ({"strategy": "sum", "parity": "false"}, r"'sum' needs parity=True"),
        ({"convention": "ambx"}, r"'ambx'; allowed are .*Did you mean 'ambix'"),
        ({"convention": 3}, r"allowed are ambix, fuma, soundspaces"),
        ({"dtype": "float64"}, r"allowed are float32, bfloat16, float16"),
        ({"dtype": torch.int16}, r"allowed are float32, bfloat16, float16"),
        ({"dtype": "bfloat"}, r"Did you mean 'bfloat16'"),
        ({"device": "gpu"}, r"'gpu' is not available.*'auto'"),
        ({"device": "cpu:99x"}, r"not available"),
        ({"device": None}, r"device"),
        ({"device": "meta"}, r"'meta' is not available"),  # it has no values
        ({"layer": 0}, r"layer is 0; this model has layers 1 to 2"),
        ({"layer": 3}, r"layer is 3; this model has layers 1 to 2"),
        ({"layer": "13"}, r"layer is 13"),
        ({"layer": -1}, r"layer is -1"),
        ({"layer": "abc"}, r"layer is 'abc'; it must be a whole number"),
        ({"layer": 2.5}, r"layer is 2\.5; it must be a whole number"),
        ({"layer": float("inf")}, r"layer is inf; it must be a whole number"),
        ({"layer": True}, r"layer is True; it must be a whole number"),
        ({"layer": [1]}, r"layer is \[1\]; it must be a whole number"),
        ({"window_batch": 0}, r"window_batch is 0; it must be at least 1"),
        ({"window_batch": None}, r"window_batch is None"),
        ({"window_batch": "many"}, r"window_batch is 'many'"),
        ({"parity": "maybe"}, r"parity is 'maybe'; it must be true or false"),
        ({"parity": 1}, r"parity is 1"),
        ({"parity": None}, r"parity is None"),
        ({"revision": "main"}, r"revision='main' was given with the local path.*Leave it out"),
    ],
)
def test_bad_options_are_refused(options, told, file):
    with pytest.raises(OptionError, match=told):
        gram_hear.load_model(file, **options)


@pytest.mark.parametrize("parity", [False, True, "true"])
@pytest.mark.parametrize("backbone", MAMBAS)
def test_cls_of_gram_m_is_refused_with_the_reason(backbone, parity, model_of):
    path = model_of(2, backbone=backbone).source.path
    reason = r"'cls'.*GRAM-M.*causal.*comes first.*same for every input\. Use 'raw' or 'mean'"
    with pytest.raises(OptionError, match=reason):
        gram_hear.load_model(path, strategy="cls", parity=parity)


def test_options_that_would_be_positional_are_not(file):
    with pytest.raises(TypeError, match="positional"):
        gram_hear.load_model(file, "mean")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"strategy": "mean"}', {"strategy": "mean"}),
        ('{"strategy": "sum", "parity": "true"}', {"strategy": "sum", "parity": True}),
        ('{"parity": "False", "layer": "1"}', {"parity": False, "layer": 1}),
        ('{"parity": true, "layer": 2.0}', {"parity": True, "layer": 2}),
        ('{"layer": "none", "revision": null}', {"layer": None}),
        ('{"layer": "", "window_batch": "7"}', {"layer": None, "window_batch": 7}),
        ('{"dtype": "torch.bfloat16", "heads": "null"}', {"dtype": "bfloat16"}),
        ('{"device": "auto", "convention": "fuma"}', {"convention": "fuma"}),
    ],
)
def test_options_come_as_json(text, expected, file):
    options = gram_hear.load_model(str(file), **json.loads(text)).options
    for name, value in expected.items():
        assert getattr(options, name) == value
        assert type(getattr(options, name)) is type(value)


def test_the_options_show_in_the_model(model_of):
    shown = repr(model_of(2, strategy="mean", layer=1))
    assert "strategy='mean'" in shown
    assert "layer=1" in shown


def test_loud_audio_warns_once_for_a_call(small_model):
    audio = torch.ones(5, 4000) * torch.arange(1, 6)[:, None]
    with pytest.warns(UserWarning, match="Clip 4 has samples up to 5") as caught:
        get_scene_embeddings(audio, small_model(1))
    assert len(caught) == 1


@pytest.mark.parametrize("patching", ["frame", "time"])
def test_cls_rows_carry_the_cls_token_of_their_window(patching, model_of, noise):
    rows, _ = get_timestamp_embeddings(noise(1, 3 * RATE), model_of(2, patching, strategy="cls"))
    per_window = {"frame": 25, "time": 100}[patching]
    first, second = rows[0, :per_window], rows[0, per_window:]
    assert torch.equal(first, first[:1].expand_as(first))
    assert torch.equal(second, second[:1].expand_as(second))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mean_rows_are_the_mean_of_raw_rows(backbone, model_of, noise):
    audio = noise(2, 50000)
    raw, times = get_timestamp_embeddings(audio, model_of(2, backbone=backbone))
    mean, mean_times = get_timestamp_embeddings(
        audio, model_of(2, backbone=backbone, strategy="mean")
    )
    assert torch.equal(times, mean_times)
    assert_close(raw.unflatten(-1, (8, 64)).mean(dim=2), mean)


@pytest.mark.parametrize("backbone", MAMBAS)
def test_time_runs_one_way_in_gram_m_and_the_cls_token_hears_nothing(backbone, model_of, noise):
    """Time patches of a window stand in their order: a change at the end leaves the start."""
    gram = model_of(2, "time", backbone=backbone).gram
    windows = noise(2, 2, 200, 128)
    tokens = gram(windows)
    assert torch.equal(tokens[0, 0], tokens[1, 0])  # CLS
    assert not torch.allclose(tokens[0, 1:], tokens[1, 1:], atol=1e-3)
    patches = gram.patches(torch.stack([noise(100, 512), noise(100, 512)]))
    patches[1, 61:] += 1
    tokens = gram.encoder(patches)
    assert_close(tokens[1, :61], tokens[0, :61])
    assert (tokens[1, 61:] - tokens[0, 61:]).abs().amax(dim=-1).min() > 1e-3


def test_parity_fills_with_the_value_zero(model_of, noise):
    audio = noise(1, 30000)
    default, zero = (
        get_scene_embeddings(audio, model_of(2, parity=True, **options))
        for options in ({}, {"window_fill": "zero"})
    )
    assert torch.equal(default, zero)
    assert model_of(2, parity=True).window_fill == "zero"


def test_a_batch_of_equal_clips_has_equal_rows(model_of, noise):
    rows, _ = get_timestamp_embeddings(noise(1, 2, 50000).expand(5, -1, -1), model_of(2))
    for row in rows[1:]:
        assert_close(row, rows[0])


def test_heads_come_as_a_string(golden_path):
    model = gram_hear.load_model(golden_path("gramt_frame_2ch.safetensors"), heads="4")
    assert model.config.encoder.heads == 4
    with pytest.raises(CheckpointError, match="heads="):
        gram_hear.load_model(golden_path("gramt_frame_2ch.safetensors"))
