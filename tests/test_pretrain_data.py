"""Samples of pretraining: drawn from (seed, index) alone, by the recipe, and split among ranks."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import encoded, npy, write_tar
from torch.utils.data import DataLoader

from gram_hear.errors import AudioError, OptionError, SceneError, TrainingError
from gram_hear.pretrain.batches import EpochSampler, collate
from gram_hear.pretrain.clips import ClipSet, open_clips
from gram_hear.pretrain.datamodule import PretrainingData, TimedLoader
from gram_hear.pretrain.pools import (
    Pool,
    SimulatedRooms,
    SyntheticNoises,
    open_noises,
    open_rooms,
    simulate,
)
from gram_hear.pretrain.samples import SampleRecipe, SampleSet
from gram_hear.scenes.mixing import mix
from gram_hear.scenes.noises import Noise, NoiseSet
from gram_hear.scenes.rendering import render, tune
from gram_hear.scenes.rooms import draw_room_and_scene

pytestmark = pytest.mark.slow

RATE = 32000
SMALL = {"seconds": 0.5, "windows": 3, "window_frames": 40, "clip_frames": 64}
SMALL |= {"masked": 8, "tokens": 10}


class Clips(ClipSet):
    """Noise of unequal lengths; ``broken`` ones cannot be decoded."""

    def __init__(self, count=11, broken=(), seconds=0.5):
        self.count, self.broken, self.samples = count, set(broken), round(seconds * RATE)

    def __len__(self):
        return self.count

    def name(self, i):
        return f"clip {i}"

    def read(self, i, samples, rate, seed):
        if i in self.broken:
            raise AudioError(f"clip {i} cannot be decoded.")
        audio = np.random.default_rng([i]).standard_normal(self.samples - 100 * i)
        return audio[:samples].astype(np.float32)


class Rooms:
    layout, rate = "binaural", RATE

    def __init__(self, layout="binaural", broken=()):
        self.layout, self.channels, self.broken = layout, 4 if layout == "ambisonic" else 2, broken

    def __len__(self):
        return 5

    def read_sums(self, i, samples):
        if i in self.broken:
            raise SceneError(f"room {i} cannot be read.")
        shape = (2, self.channels, 500 + 100 * i)
        return np.random.default_rng([i]).standard_normal(shape).astype(np.float32)[..., :samples]


class Noises(NoiseSet):
    """One noise, of given length: whole where it is no longer than the clip."""

    def __init__(self, samples, rate=RATE, failing=0):
        super().__init__("given", rate)
        self.samples, self.failing = samples, failing

    def draw(self, seed, samples):
        if seed[-1] < self.failing:
            raise SceneError("this noise cannot be read.")
        audio = np.random.default_rng([*seed, 0]).standard_normal(min(samples, self.samples))
        return Noise(audio.astype(np.float32), self.samples <= samples, "noise", 0)


def make(seed=0, clips=None, rooms=None, noises=None, layout="binaural", **recipe):
    return SampleSet(
        Clips() if clips is None else clips,
        rooms or Rooms(layout),
        noises or Noises(3 * RATE),
        SampleRecipe(**SMALL | recipe),
        layout,
        seed,
    )


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def batches(samples, sampler, size=4, workers=0):
    return list(DataLoader(samples, size, sampler=sampler, num_workers=workers, collate_fn=collate))


# --- the stream -----------------------------------------------------------------------------


def test_sample_has_the_promised_shapes_and_types():
    sample = make()[3]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in sample.items()}
    length = sample["rirs"].shape[-1]
    assert shapes == {
        "index": ((), torch.int64),
        "clip": ((16000,), torch.float32),
        "rirs": ((2, 2, length), torch.float32),
        "dry": ((), torch.bool),
        "noise": ((16000,), torch.float32),
        "start": ((), torch.int64),
        "length": ((), torch.int64),
        "snr": ((), torch.float32),
        "window_starts": ((3,), torch.int64),
        "masks": ((3, 10), torch.bool),
        "visible": ((3, 2), torch.int64),
        "hidden": ((3, 8), torch.int64),
        "skipped": ((), torch.int64),
    }
    assert sample["index"] == 3


def test_batch_pads_rirs_to_the_longest():
    samples = [make()[i] for i in range(6)]
    batch = collate(samples)
    longest = max(sample["rirs"].shape[-1] for sample in samples)
    assert batch["rirs"].shape == (6, 2, 2, longest)
    for i, sample in enumerate(samples):
        own = sample["rirs"].shape[-1]
        assert torch.equal(batch["rirs"][i, ..., :own], sample["rirs"])
        assert not batch["rirs"][i, ..., own:].any()
        assert all(torch.equal(batch[n][i], sample[n]) for n in sample if n != "rirs")


def test_full_shared_memory_is_an_error_that_names_it(monkeypatch):
    def fail(size):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    samples = make()
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", fail)
    loader = TimedLoader(samples, 4, sampler=EpochSampler(1, 4), num_workers=1, collate_fn=collate)
    with pytest.raises(TrainingError, match=r"^The memory .* \(/dev/shm\) is full: .*--shm-size"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    sampler = EpochSampler(6, 4)
    alone = batches(make(), sampler)
    assert len(alone) == 6
    for one, other in zip(alone, batches(make(), sampler, workers=workers), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("micro", [1, 2])
def test_ranks_share_each_global_batch(ranks, micro):
    """Rank r has samples r, r + R, ... of every global batch, in smaller steps too."""
    whole = batches(make(), EpochSampler(3, 8), 8)
    for rank in range(ranks):
        mine = batches(make(), EpochSampler(3, 8, rank, ranks), micro)
        steps = 8 // ranks // micro
        for k, batch in enumerate(whole):
            parts = mine[k * steps : (k + 1) * steps]
            for name in set(batch) - {"rirs"}:
                joined = torch.cat([part[name] for part in parts])
                assert torch.equal(joined, batch[name][rank::ranks]), name
            for j, part in enumerate(parts):
                expected = batch["rirs"][rank::ranks][j * micro : (j + 1) * micro]
                own = part["rirs"].shape[-1]
                assert torch.equal(part["rirs"], expected[..., :own])
                assert not expected[..., own:].any()


@pytest.mark.parametrize("counts", [(7, 7, 7), (7, 7, 6)])
def test_processes_must_find_the_same_data(counts):
    opened = [make(clips=Clips(count)) for count in counts]
    said = [{"training clips": count, "training scenes": 5} for count in counts]
    said = [each | {"training shards": None} for each in said]

    def check(rank):
        def broadcast(here):
            assert here == said[rank]
            return said[0]

        def reduce(differs, reduce_op):
            assert int(differs) == (said[rank] != said[0])
            return torch.tensor(sum(each != said[0] for each in said))

        strategy = SimpleNamespace(root_device="cpu", broadcast=broadcast, reduce=reduce)
        data = PretrainingData()
        data.training = opened[rank]
        data._require_same_everywhere(SimpleNamespace(strategy=strategy))

    for rank, count in enumerate(counts):
        if len(set(counts)) == 1:
            check(rank)
            continue
        with pytest.raises(OptionError, match=f"found different data.*training clips: {count};"):
            check(rank)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 20), st.integers(1, 3)
)
def test_stream_goes_on_from_any_position(batches, per_rank, ranks, done, epochs):
    """However often it is stopped, the ranks together see every sample of the stream once."""
    batch = per_rank * ranks
    position = done * batch
    samplers = [EpochSampler(batches, batch, r, ranks, position) for r in range(ranks)]
    seen = []
    for _ in range(epochs):
        parts = [list(sampler) for sampler in samplers]
        assert len({len(part) for part in parts}) == 1
        seen += sorted(i for part in parts for i in part)
        for sampler in samplers:
            sampler.position += sum(map(len, parts))
    assert seen == list(range(position, position + len(seen)))
    assert (position + len(seen)) % (batches * batch) == 0
    assert len(samplers[0]) == batches * per_rank


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own():
    samples = make()
    epochs = [[samples.clip_of(11 * e + k) for k in range(11)] for e in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert samples.clip_of(2) == epochs[0][2]  # an order that was left is the same again
    assert [make(1).clip_of(k) for k in range(11)] != epochs[0]
    assert len(samples) == 11


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_sample_depends_on_seed_and_index_alone(indices, seed):
    first, second = make(seed), make(seed)
    drawn = {i: first[i] for i in indices}
    for i in reversed(indices):
        assert_same(drawn[i], second[i])


def test_samples_and_seeds_differ():
    drawn = [make(0)[0], make(0)[11], make(1)[0], make(1)[11]]
    for name in ("noise", "snr", "masks"):
        assert len({tuple(sample[name].flatten().tolist()) for sample in drawn}) == 4, name


def test_draws_of_a_recipe_do_not_depend_on_other_parts_of_it():
    """Fewer windows, other masks or another level leave rooms, noises and ratios as they are."""
    one, other = make()[5], make(windows=2, masked=3, level=-20.0)[5]
    for name in ("rirs", "snr", "start", "length"):
        assert torch.equal(one[name], other[name]), name


def test_golden_draws():
    """What seed 0 gives on every machine."""
    samples = make(noises=Noises(4000))
    assert [samples.clip_of(i) for i in range(11)] == GOLDEN["order"]
    sample = samples[1]
    assert sample["window_starts"].tolist() == GOLDEN["window_starts"]
    assert (~sample["masks"]).nonzero()[:, 1].tolist() == GOLDEN["visible"]
    assert (int(sample["start"]), float(sample["snr"])) == (
        GOLDEN["start"],
        pytest.approx(GOLDEN["snr"], rel=1e-6),
    )


GOLDEN = {
    "order": [4, 6, 7, 2, 0, 3, 5, 10, 9, 8, 1],
    "window_starts": [16, 24, 12],
    "visible": [2, 5, 0, 4, 1, 8],
    "start": 10066,
    "snr": 34.116981506347656,
}


def test_set_survives_pickling_as_a_spawned_worker_gets_it():
    samples = SampleSet(
        open_clips(None),
        SimulatedRooms("ambisonic", RATE, count=1),
        SyntheticNoises(RATE),
        SampleRecipe(**SMALL),
        "ambisonic",
        0,
    )
    assert_same(pickle.loads(pickle.dumps(samples))[2], samples[2])


# --- the recipe -----------------------------------------------------------------------------


def test_published_recipe():
    recipe = SampleRecipe()
    assert (recipe.samples, recipe.frames) == (320000, 1001)
    assert (recipe.level, recipe.snr, recipe.clean_fraction) == (-14.0, (5.0, 40.0), 0.0)
    sizes = (recipe.windows, recipe.window_frames, recipe.clip_frames, recipe.masked, recipe.tokens)
    assert sizes == (16, 200, 1024, 160, 200)


def test_clip_is_at_its_level_before_it_is_padded():
    samples = make(clips=Clips(3, seconds=0.3))
    for i in range(3):
        clip, length = samples[i]["clip"].double(), 9600 - 100 * samples.clip_of(i)
        assert clip[:length].square().mean().sqrt() == pytest.approx(10 ** (-14 / 20), rel=1e-5)
        assert len(clip) == 16000
        assert not clip[length:].any()


class Silence(Clips):
    def read(self, i, samples, rate, seed):
        return np.zeros(samples, dtype=np.float32)


def test_silence_is_left_alone():
    assert not make(clips=Silence())[0]["clip"].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 64), st.integers(2, 40), st.data())
def test_windows_lie_in_the_clip_and_masks_hide_exactly_so_many(windows, frames, tokens, data):
    masked = data.draw(st.integers(1, tokens - 1))
    sizes = {"windows": windows, "window_frames": frames, "masked": masked, "tokens": tokens}
    sample = make(**sizes)[data.draw(st.integers(0, 10**6))]
    assert sample["window_starts"].shape == (windows,)
    assert ((sample["window_starts"] >= 0) & (sample["window_starts"] <= 64 - frames)).all()
    assert sample["masks"].shape == (windows, tokens)
    assert (sample["masks"].sum(dim=1) == masked).all()
    for name, where in (("hidden", sample["masks"]), ("visible", ~sample["masks"])):
        assert sample[name].tolist() == [row.nonzero()[:, 0].tolist() for row in where]


@pytest.mark.parametrize("masks", ["cluster", "frequency", "time"])
def test_other_masks_leave_all_else_as_it_is(masks):
    grid = {"tokens": 12, "frequency_patches": 3, "masked": 8}
    one, other = (make(masks=kind, **grid)[5] for kind in ("random", masks))
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "masks",
        "visible",
        "hidden",
    }
    assert other["masks"].sum(dim=1).eq(8).all()
    lines = other["masks"].unflatten(1, (3, 4))
    if masks == "frequency":
        assert sorted(lines.sum(dim=2)[0].tolist()) == [0, 4, 4]
    if masks == "time":
        assert sorted(lines.sum(dim=1)[0].tolist()) == [0, 2, 3, 3]


def test_windows_and_masks_are_drawn_evenly():
    samples = make()
    drawn = [samples[i] for i in range(300)]
    windows = torch.cat([sample["window_starts"] for sample in drawn])
    assert sorted(set(windows.tolist())) == list(range(25))
    share = torch.cat([sample["masks"] for sample in drawn]).float().mean(dim=0)
    assert ((share - 0.8).abs() < 0.06).all()  # 4.5 deviations of 900 draws
    masks = {tuple(mask.tolist()) for sample in drawn for mask in sample["masks"]}
    assert len(masks) == math.comb(10, 8)


def test_noise_keeps_its_own_level_where_channels_have_their_gains():
    samples = make(noises=Noises(16001), noise_gain="channel")
    noise = Noises(16001).draw([0, 3, 1, 0], 16000).audio
    ramp = np.minimum(1, np.arange(16000)[::-1] / (0.2 * RATE - 1))
    np.testing.assert_allclose(samples[1]["noise"], noise * ramp, atol=1e-6)
    assert torch.equal(samples[1]["clip"], make()[1]["clip"])


def test_snr_is_drawn_evenly_between_its_bounds():
    ratios = np.array([float(make()[i]["snr"]) for i in range(200)])
    assert ratios.min() >= 5
    assert ratios.max() <= 40
    counts = np.histogram(ratios, bins=5, range=(5, 40))[0]
    assert counts.min() > 20


def faded(noise, whole, level=-14.0):
    """A noise with its level and fades, in plain lines."""
    noise = noise.astype(float) * 10 ** (level / 20) / np.sqrt(np.mean(noise.astype(float) ** 2))
    ramp = np.minimum(1, np.arange(len(noise)) / (0.2 * RATE - 1))
    return noise * (ramp if whole else 1) * ramp[::-1]


def test_longer_noise_is_an_excerpt_with_a_fade_out_alone():
    for i in range(3):
        sample = make(noises=Noises(16001))[i]
        assert (sample["start"], sample["length"]) == (0, 16000)
        noise = Noises(16001).draw([0, 3, i, 0], 16000).audio
        np.testing.assert_allclose(sample["noise"], faded(noise, whole=False), atol=1e-6)


@pytest.mark.parametrize("length", [16000, 9000, 5])
def test_other_noise_is_whole_with_both_fades_and_a_random_start(length):
    samples = make(noises=Noises(length))
    starts = []
    for i in range(40):
        sample = samples[i]
        start = int(sample["start"])
        starts.append(start)
        assert sample["length"] == length
        assert 0 <= start <= 16000 - length
        if i < 3:
            expected = np.zeros(16000)
            noise = Noises(length).draw([0, 3, i, 0], 16000).audio
            expected[start : start + length] = faded(noise, whole=True)
            np.testing.assert_allclose(sample["noise"], expected, atol=1e-6)
    spare = 16000 - length
    assert np.ptp(starts) >= 0.8 * spare


def test_rirs_are_those_of_one_room():
    for layout in ("binaural", "ambisonic"):
        samples = make(layout=layout)
        rooms = [torch.from_numpy(Rooms(layout).read_sums(k, 16000)) for k in range(5)]
        drawn = [
            [k for k, room in enumerate(rooms) if torch.equal(samples[i]["rirs"], room)]
            for i in range(40)
        ]
        assert all(len(each) == 1 for each in drawn)
        assert samples.rooms_of(40) == {k for (k,) in drawn} == set(range(5))
        assert samples.rooms_of(3) == {k for (k,) in drawn[:3]}
    assert make(clean_fraction=1.0).rooms_of(40) == set()


def test_dry_clips():
    samples = SampleSet(Clips(), None, None, SampleRecipe(**SMALL, clean_fraction=1.0), "mono", 0)
    batch = collate([samples[i] for i in range(4)])
    assert batch["dry"].all()
    assert batch["rirs"].shape == (4, 2, 1, 0)
    assert not batch["rirs"].any()
    assert not batch["noise"].any()
    assert not batch["length"].any()


def test_some_clips_stay_dry():
    samples = make(clean_fraction=0.3)
    drawn = [samples[i] for i in range(200)]
    dry = [bool(sample["dry"]) for sample in drawn]
    assert 35 < sum(dry) < 90
    for sample in drawn:
        assert bool(sample["rirs"].any()) != bool(sample["dry"])
        assert bool(sample["noise"].any()) != bool(sample["dry"])


def test_scenes_without_noise():
    samples = SampleSet(Clips(), Rooms(), None, SampleRecipe(**SMALL), "binaural", 0)
    assert samples[0]["rirs"].any()
    assert not samples[0]["noise"].any()


# --- what cannot be read --------------------------------------------------------------------


def test_clip_that_cannot_be_decoded_gives_way_to_the_next_of_the_epoch():
    whole = make()
    broken = [whole.clip_of(2), whole.clip_of(3), whole.clip_of(10)]
    samples = make(clips=Clips(broken=broken))
    assert [int(samples[i]["skipped"]) for i in range(11)] == [0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1]
    for i, instead in ((2, 4), (3, 4), (10, 0)):
        assert torch.equal(samples[i]["clip"], whole[instead]["clip"])
        assert torch.equal(samples[i]["masks"], whole[i]["masks"])
    assert torch.equal(samples[5]["clip"], whole[5]["clip"])


def test_unreadable_rooms_and_noises_give_way_too():
    samples = make(rooms=Rooms(broken=(1, 2)), noises=Noises(3 * RATE, failing=2))
    assert {int(samples[i]["skipped"]) for i in range(40)} == {2, 3, 4}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"clips": Clips(broken=range(11))}, "11 clips in a row .* the last: clip .* decoded"),
        ({"clips": Clips(1, broken=[0])}, "The only one of the clips could not be read"),
        ({"rooms": Rooms(broken=range(5))}, "5 rooms in a row could not be read"),
        ({"noises": Noises(10, failing=10**6)}, "100 noises in a row could not be read"),
    ],
)
def test_nothing_readable_is_an_error_at_once(parts, message):
    with pytest.raises(AudioError, match=message):
        make(**parts)


@pytest.fixture
def published(tmp_path):
    """Data in the published layout: tars of clips, of RIRs and of noises."""
    for folder in ("clips", "rirs", "noise"):
        (tmp_path / folder).mkdir()
    generator = np.random.default_rng(0)
    clips = {f"{i}.flac": encoded(0.1 * generator.standard_normal(12000)) for i in range(6)}
    write_tar(tmp_path / "clips" / "0.tar", clips | {"broken.flac": b"fLaC, or not"})
    scenes = np.random.default_rng(0).standard_normal((4, 6, 2, 2000)).astype(np.float16)
    scenes[:, 4:] = 0
    write_tar(
        tmp_path / "rirs" / "train-0.tar", {f"{i}.npy": npy(rirs) for i, rirs in enumerate(scenes)}
    )
    noises = np.random.default_rng(1).standard_normal((3, 20000)).astype(np.float32)
    write_tar(tmp_path / "noise" / "0.tar", {f"{i}.npy": npy(n) for i, n in enumerate(noises)})
    return tmp_path


def open_published(path, layout="binaural", **recipe):
    return SampleSet(
        open_clips(path / "clips"),
        open_rooms(path / "rirs", layout, RATE),
        open_noises(path / "noise", RATE),
        SampleRecipe(**SMALL | recipe),
        layout,
        0,
    )


def test_published_layout_in_workers(published):
    samples = open_published(published)
    alone = batches(samples, EpochSampler(4, 7), 7)
    for one, other in zip(
        alone, batches(open_published(published), EpochSampler(4, 7), 7, 2), strict=True
    ):
        assert_same(one, other)
    assert all(int(batch["skipped"].sum()) == 1 for batch in alone)
    assert alone[0]["rirs"].shape == (7, 2, 2, 2000)
    assert mix(
        *(alone[0][n] for n in ("clip", "rirs", "noise", "start", "length", "snr"))
    ).gain.all()


# --- rooms and noises -----------------------------------------------------------------------


def test_simulated_rooms_are_kept_and_depend_on_their_seed_alone(tmp_path):
    rooms = open_rooms(None, "ambisonic", 8000, count=3)
    assert len(rooms) == 3
    first = rooms.read_sums(2, 10**6)
    assert np.shares_memory(rooms.read_sums(2, 10**6), first)
    again = SimulatedRooms("ambisonic", 8000, count=9, folder=tmp_path / "made")
    again.read_sums(1, 10)
    np.testing.assert_array_equal(again.read_sums(2, 10**6), first)
    np.testing.assert_array_equal(again.read_sums(2, 100), first[..., :100])
    assert first.shape[:2] == (2, 4)
    others = [
        SimulatedRooms("ambisonic", 8000, seed=1),
        SimulatedRooms("ambisonic", 8000, split="valid"),
    ]
    for other in others:
        rir = other.read_sums(2, 10**6)
        assert rir.shape != first.shape or not np.array_equal(rir, first)


def test_simulated_room_is_the_source_and_the_sum_of_the_noise_sources():
    rirs = render(tune(draw_room_and_scene([0, 0, 1])), "binaural", 8000).rirs
    found = SimulatedRooms("binaural", 8000).read_sums(1, 10**6)
    np.testing.assert_array_equal(found, np.stack([rirs[0], rirs[1:].sum(axis=0)]))


def test_pool_makes_each_array_once_for_all_who_share_its_folder(tmp_path):
    made = []

    def make():
        made.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    one, other = Pool(tmp_path / "pool"), Pool(tmp_path / "pool")
    assert not one.has("a")
    np.testing.assert_array_equal(one.get("a", make), make())
    assert other.has("a")
    found = other.get("a", make)
    np.testing.assert_array_equal(found, make())
    found[:] = 0  # what is given away can be changed, and changes nothing
    np.testing.assert_array_equal(Pool(tmp_path / "pool").get("a", make), make())
    assert len(made) == 4
    assert [path.name for path in (tmp_path / "pool").iterdir()] == ["a.npy"]


@pytest.mark.parametrize("data", [b"", b"nothing", npy(np.zeros((2, 3), np.float32))[:-4]])
def test_pool_makes_a_damaged_array_anew(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    array = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(Pool(tmp_path).get("a", lambda: array), array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)


def test_pool_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise SceneError("no room")

    with pytest.raises(SceneError):
        Pool(tmp_path).get("a", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_rooms_are_simulated_side_by_side(tmp_path, processes):
    rooms = SimulatedRooms("ambisonic", 8000, count=3, folder=tmp_path)
    rooms.read_sums(0, 1)
    seen = []
    simulate([(rooms, i) for i in range(3)], processes, lambda *each: seen.append(each))
    assert seen == [(1, 2), (2, 2)]
    assert all(rooms.has(i) for i in range(3))
    expected = SimulatedRooms("ambisonic", 8000).read_sums(2, 10**6)
    np.testing.assert_array_equal(rooms.read_sums(2, 10**6), expected)
    simulate([(rooms, 0)], processes, lambda *each: seen.append(each))
    assert len(seen) == 2


def test_binaural_rooms_have_two_ears():
    assert SimulatedRooms("binaural", RATE, count=1).read_sums(0, 10).shape == (2, 2, 10)


def test_rooms_of_a_split(published):
    (published / "rirs" / "val-0.tar").write_bytes(
        (published / "rirs" / "train-0.tar").read_bytes()
    )
    rooms = open_rooms(published / "rirs", "binaural", RATE, split="valid")
    assert len(rooms) == 4
    assert len(open_rooms(published / "rirs", "binaural", RATE)) == 4
    with pytest.raises(OptionError, match="no split 'test'"):
        open_rooms(published / "rirs", "binaural", RATE, split="test")


def test_set_without_splits_is_for_training_alone(published):
    tar = published / "rirs" / "train-0.tar"
    tar.rename(tar.with_name("0.tar"))
    assert len(open_rooms(published / "rirs", "binaural", RATE)) == 4
    with pytest.raises(OptionError, match="no split 'valid'"):
        open_rooms(published / "rirs", "binaural", RATE, split="valid")


@pytest.mark.parametrize("kept", [False, True])
def test_pool_of_noises(tmp_path, kept):
    noises = open_noises(None, RATE, seed=2, folder=tmp_path if kept else None)
    one = noises.draw([5], 1000)
    assert (len(one.audio), one.whole) == (1000, False)
    again = SyntheticNoises(RATE, 2)
    again.draw([9], 1000)
    again.draw([5], 500)
    np.testing.assert_array_equal(again.draw([5], 1000).audio, one.audio)
    assert not np.array_equal(SyntheticNoises(RATE, 3).draw([5], 1000).audio, one.audio)
    drawn = {noises.draw([k], 1000).name for k in range(60)}
    assert len(drawn) > 4
    one.audio[:] = 0  # what is kept is not what is given
    assert noises.draw([5], 1000).audio.any()


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0}, "seconds is 0"),
        ({"seconds": math.inf}, "seconds is inf"),
        ({"sample_rate": 100}, "sample_rate 100"),
        ({"level": math.nan}, "level is nan"),
        ({"snr": (40.0, 5.0)}, "snr is"),
        ({"snr": (5.0,)}, "snr is"),
        ({"clean_fraction": 1.5}, r"clean_fraction is 1\.5"),
        ({"noise_gain": "ear"}, "noise gain 'ear'"),
        ({"windows": 0}, "0 windows"),
        ({"window_frames": 65}, "windows of 65 frames .* clips of 64 frames"),
        ({"seconds": 1.0}, "1 s has 101 frames, and clip_frames is 64"),
        ({"masked": 10}, "masked is 10 of 10 tokens"),
        ({"masked": 0}, "masked is 0 of 10 tokens"),
        ({"masks": "clusters"}, "Did you mean 'cluster'"),
    ],
)
def test_recipes_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        SampleRecipe(**SMALL | options)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"layout": "binural"}, OptionError, "Did you mean 'binaural'"),
        ({"seed": -1}, OptionError, "seed is -1"),
        ({"seed": 2**32}, OptionError, "seed is 4294967296"),
        ({"clips": Clips(0)}, SceneError, "empty"),
        ({"rooms": Rooms("ambisonic")}, SceneError, "ambisonic at 32000 Hz, .* binaural clips"),
        ({"sample_rate": 16000}, SceneError, "RIRs are binaural at 32000 Hz"),
        ({"noises": Noises(9, rate=16000)}, SceneError, "noises are at 16000 Hz"),
    ],
)
def test_parts_that_do_not_fit(parts, error, message):
    with pytest.raises(error, match=message):
        make(**parts)


def test_no_rooms_for_clips_that_need_them():
    with pytest.raises(OptionError, match="no rooms were given"):
        SampleSet(Clips(), None, None, SampleRecipe(**SMALL, clean_fraction=0.5), "binaural", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "mono"}, "set clean_fraction to 1"),
        ({"split": "dev"}, "split 'dev'"),
        ({"count": 0}, "0 rooms"),
    ],
)
def test_rooms_that_cannot_be_simulated(options, message):
    with pytest.raises(OptionError, match=message):
        open_rooms(**{"path": None, "layout": "binaural", "rate": RATE} | options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "0 batches"),
        ((3, 8, 2, 2), "rank 2 of 2"),
        ((3, 8, 0, 3), "multiple of the ranks"),
        ((3, 8, 0, 1, 12), "position is 12 samples; .* global batch of 8"),
        ((3, 8, 0, 1, -8), "position is -8"),
    ],
)
def test_samplers_that_cannot_be(arguments, message):
    with pytest.raises(OptionError, match=message):
        EpochSampler(*arguments)


def test_stream_begins_at_0():
    with pytest.raises(IndexError, match="Sample -1"):
        make()[-1]


def test_batch_mixes_as_the_recipe_says():
    samples = make(noises=Noises(9000))
    batch = collate([samples[i] for i in range(6)])
    window = (batch["noise"], batch["start"], batch["length"], batch["snr"])
    mixed = mix(batch["clip"], batch["rirs"], *window)
    for i in range(6):
        inside = slice(int(batch["start"][i]), int(batch["start"][i] + batch["length"][i]))
        heard, noise = (
            np.stack([np.convolve(sound, rir)[:16000] for rir in rirs.double().numpy()])
            for sound, rirs in zip(
                (batch["clip"][i].double().numpy(), batch["noise"][i].double().numpy()),
                batch["rirs"][i],
                strict=True,
            )
        )
        gain = float(mixed.gain[i])
        ratio = (heard[:, inside] ** 2).sum() / (gain**2 * (noise[:, inside] ** 2).sum())
        assert 10 * math.log10(ratio) == pytest.approx(float(batch["snr"][i]), abs=1e-3)
        np.testing.assert_allclose(mixed.audio[i], heard + gain * noise, atol=2e-3)
